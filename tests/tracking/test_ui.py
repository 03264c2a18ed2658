"""MLflow's UI: the saved view and description of an experiment, and the server without a line per request."""

from __future__ import annotations

import json

from bench.tracking import leaderboards, ui_command
from bench.tracking.ui import DESCRIPTION, KEY, VIEW


def view_of(store, name: str) -> dict[str, object]:
    saved = json.loads(store.client.get_experiment_by_name(name).tags[VIEW])
    return dict(json.loads(saved["state"]))


def test_every_experiment_has_its_leaderboard_in_the_ui(store):
    number = store.experiment("lgg")
    (link,) = leaderboards(store).items()
    assert link == ("lgg", f"/#/experiments/{number}/runs?viewStateShareKey={KEY}&workflowType=machine_learning")


def test_the_view_shows_rank_dice_interval_model_loss_and_encoder_first(store):
    store.experiment("lgg")
    view = view_of(store, "lgg")
    shown = [c.partition(".")[2].strip("`") for c in view["columnOrder"] if "." in c]
    scores, settings = ["rank", "dice", "dice_low", "dice_high"], ["model.name", "loss.name", "model.encoder"]
    assert shown[:9] == ["Run Name", *scores, *settings, "Source"]
    assert set(view["selectedColumns"]) < set(view["columnOrder"])
    assert sum(view["columnWidths"].values()) <= 1440 - 222 - 73  # without MLflow's menu and column of boxes


def test_an_experiment_describes_how_to_read_it(store):
    store.experiment("lgg")
    text = store.client.get_experiment_by_name("lgg").tags[DESCRIPTION]
    assert "data set **lgg**" in text
    assert all(f"`{name}`" in text for name in ("rank", "dice", "dice_low", "dice_high", "missed_slices"))


def test_an_older_experiment_gets_the_new_view_and_keeps_its_own_description(store):
    number = store.client.create_experiment("lgg", tags={VIEW: "{}", DESCRIPTION: "ours"})
    assert store.experiment("lgg") == number
    assert store.client.get_experiment(number).tags[DESCRIPTION] == "ours"
    assert "columnOrder" in view_of(store, "lgg")


def test_the_server_prints_no_line_per_request(store):
    command, _ = ui_command(store, "127.0.0.1", 5000)
    assert command[command.index("--uvicorn-opts") + 1] == "--log-level warning"
