"""The commands as a person types them, on a phantom small enough to train in seconds."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
import tifffile
import typer
from typer.main import get_command
from typer.testing import CliRunner

from bench.cli import app, main
from bench.cli._app import PANELS, say
from bench.cli.training import FLAGS
from bench.config import RunConfig, flatten
from bench.errors import BenchError
from bench.overrides import configure, override, parse_assignment, written
from bench.registry import REGISTRIES
from bench.tracking import connect, download_model, find_run, read_table
from tests.fakes import write_others
from tests.servers import free_port


def sets(**values: object) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


SMALL = sets(dataset__patients=6, dataset__size=32, dataset__slices=6, dataset__institutions=2)
SHORT = ["--folds", "3", "--epochs", "2", "--batch-size", "4", "--lr", "0.01"]
TINY = [*SMALL, *sets(model__base=4, model__depth=2), *SHORT]


@pytest.fixture(scope="module", autouse=True)
def home(template: Path, tmp_path_factory: pytest.TempPathFactory):
    """A working folder and a cache of their own for all commands of this module."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(template, folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        yield folder


def bench(*words: object) -> str:
    """Run a command in this process; gives standard output. Raises what it raises."""
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> str:
    with pytest.raises(BenchError) as caught:
        bench(*words)
    return str(caught.value)


def test_the_ui_opens_the_newest_leaderboard_once_it_answers(home, store, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("bench.servers.run_server", lambda command, environment, address, ready: ready())
    first, second = store.experiment("older"), store.experiment("newer")
    port = free_port()
    last = bench("ui", "--open", "--port", port, "--tracking-uri", store.uri).splitlines()[-1]
    assert opened == [last.removeprefix("leaderboard of newer: ")]
    assert opened[0].startswith(f"http://127.0.0.1:{port}/#/experiments/{second}/runs?")
    assert first != second


@pytest.fixture(scope="module")
def ran(home: Path) -> str:
    """The name of a finished run."""
    bench("run", "--model", "unet", *TINY, "--name", "first", "--quiet")
    return "first"


@pytest.fixture(scope="module")
def other(home: Path) -> Path:
    """A folder of other patients in the same layout."""
    return write_others(home / "other", patients=3, size=32, slices=6, institutions=1, seed=9)


REFUSED = """
import sys
from pathlib import Path
from typer.testing import CliRunner
from bench.cli import app
Path("suite.yaml").write_text("entries: {a: {model: unnet}}")
Path("search.yaml").write_text("space: {train.lrr: [1, 2]}")
for words in ("run --epochs 0", "run --dataset lgg --data nowhere", "suite suite.yaml", "search search.yaml"):
    print(CliRunner().invoke(app, words.split()).exception)
print({"torch", "mlflow", "optuna", "scipy"} & set(sys.modules))
"""


def test_a_refused_run_suite_or_search_needs_no_heavy_import(tmp_path):
    refused = [sys.executable, "-c", REFUSED]
    found = subprocess.run(refused, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    said = (
        "train.epochs",
        "folder nowhere",
        "suite.yaml: entries: a: no model",
        "search.yaml: space: train.lrr: no",
    )
    assert all(part in line for part, line in zip(said, found[:-1], strict=True))
    assert found[-1] == "set()"


def test_help_needs_no_heavy_import():
    code = "import sys, bench.cli; print({'torch', 'mlflow', 'numpy', 'pandas'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def test_list_without_a_kind_lists_the_kinds():
    kinds = [line.split()[0] for line in bench("list").splitlines()[:10]]
    assert kinds == [*REGISTRIES, "encoders", "settings"]


def test_settings_are_listed_and_shown_with_their_option():
    assert "train.lr                  learning rate, before the schedule changes it (default: 0.001)" in bench(
        "list", "settings"
    )
    assert bench("show", "train.lr") == (
        "train.lr\n"
        "  meaning  learning rate, before the schedule changes it\n"
        "  takes    float, >= 1e-10, <= 1000.0\n"
        "  default  0.001\n"
        "  set it   --set train.lr=VALUE, or --lr of `bench run`\n"
    )


def test_show_explains_columns_of_boards_and_names_that_are_two_components():
    assert bench("show", "P(1st)").endswith(": probability of leading over resampled patients\n")
    out = bench("show", "dice")
    assert out.startswith("2 components are named dice: a loss, a metric.\n")
    assert "  loss.smooth  default: 1.0  (float, >= 1e-12, <= 1000000.0)" in out
    assert "margin  default: 5" in bench("show", "brier")
    assert "Did you mean 'train.epochs'?" in refused("show", "epoch")
    assert "`bench list` shows what there is" in refused("show", "nonsense")


def test_every_command_is_in_a_panel_of_the_help():
    assert {name for names in PANELS.values() for name in names} == set(get_command(app).commands)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("epochs", "no setting 'epochs'. Did you mean train.epochs, or --epochs?"),
        ("image_size", "no setting 'image_size'. Did you mean input.image_size, or --image-size?"),
        ("data", "no setting 'data'. Did you mean dataset.folder, or --data?"),
    ],
)
def test_a_setting_named_like_an_option_is_answered_with_both(key, message):
    assert refused("run", "--set", f"{key}=5") == message


def test_options_of_run_set_what_they_are_listed_for(monkeypatch, tmp_path: Path):
    seen = []

    def stop(config, **_):
        seen.append(config)
        raise typer.Exit

    monkeypatch.setattr("bench.experiments.run.execute", stop)
    values = {flag: "3" for flag in FLAGS.values()} | {"--model": "fpn", "--encoder": "resnet18", "--loss": "dice"}
    values |= {"--dataset": "lgg", "--image-size": "32", "--device": "cpu", "--lr": "3.0", "--data": str(tmp_path)}
    del values["--deterministic"], values["--plugin"]
    bench("run", "--deterministic", *(word for pair in values.items() for word in pair))
    (config,) = seen
    settings = {key.removesuffix(".name"): value for key, value in flatten(config.model_dump(mode="json"))}
    del settings["train.schedule"]
    for key, flag in FLAGS.items():
        assert str(settings[key]) == values.get(flag, "True" if flag == "--deterministic" else "[]"), flag


def test_the_help_of_run_states_the_defaults_of_the_settings():
    options = {option: p.help for p in get_command(app).commands["run"].params for option in p.opts}
    settings = configure({"dataset": "lgg", "dataset.folder": "x"}).completed().model_dump()
    values = {key.removesuffix(".name"): value for key, value in flatten(settings)}
    for key in ("model", "dataset", "loss", "split.folds", "train.epochs", "train.batch_size", "train.lr", "seed"):
        assert re.search(rf"[Dd]efault: {re.escape(written(values[key]))}\b", options[FLAGS[key]]), key


@pytest.mark.slow
def test_a_run_prints_the_board_it_stands_on(home):
    out = bench("run", "--model", "unet", *TINY, "--name", "loud", "--verbose")
    assert "SYNTHETIC" in out
    assert "loud [synthetic]" in out


def test_a_run_leaves_parent_folds_tables_masks_figures_and_models(ran):
    store = connect()
    parent = find_run(store, ran)
    assert parent.info.status == "FINISHED"
    folds = store.client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert sorted(f.info.run_name for f in folds) == ["fold 0", "fold 1", "fold 2"]
    names = {a.path for a in store.client.list_artifacts(parent.info.run_id)}
    assert {"cases.csv", "split.csv", "overlays"} <= names
    for fold in folds:
        assert {"cases.csv", "slices.csv", "history.csv", "masks", "curves.png"} <= {
            a.path for a in store.client.list_artifacts(fold.info.run_id)
        }
        assert fold.outputs.model_outputs
    assert {"model.name", "train.lr", "run.seed", "augment.warp.rotate"} <= parent.data.params.keys()
    assert {
        "dice",
        "dice_low",
        "dice_high",
        "hd95",
        "dice_global",
        "cost/parameters",
    } <= parent.data.metrics.keys()
    assert {"env.torch", "env.cpu", "bench.split", "bench.fingerprint"} <= parent.data.tags.keys()
    assert parent.data.tags["bench.synthetic"] == "true"
    assert "SYNTHETIC" in parent.data.tags["mlflow.note.content"]
    assert parent.inputs.dataset_inputs[0].dataset.digest == parent.data.tags["bench.data"]


def test_the_mlflow_model_gives_the_logged_prediction(ran, home, tmp_path):
    from bench.data.pack import open_pack

    store = connect()
    parent = find_run(store, ran)
    fold = store.client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`bench.fold` = '0'",
    )[0]
    logged = download_model(store, fold.outputs.model_outputs[0].model_id, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(logged))
    case = pd.read_csv(store.client.download_artifacts(fold.info.run_id, "cases.csv")).iloc[0]
    packs = [open_pack(path.parent) for path in (home / "cache" / "packs").glob("*/manifest.json")]
    pack = next(p for p in packs if p.manifest.key == parent.data.tags["bench.data"])
    rows = pack.rows([case["case"]])
    predicted = model.predict(pack.images[rows]) >= case["threshold"]
    assert (predicted & pack.masks[rows].astype(bool)).sum() == case["tp"]
    assert predicted.sum() == case["tp"] + case["fp"]


def test_the_leaderboard_says_the_same_in_every_format(ran):
    rows = list(csv.DictReader(io.StringIO(bench("leaderboard", "--format", "csv"))))
    boards = json.loads(bench("leaderboard", "--format", "json"))
    texts = [
        bench("leaderboard", "--wide"),
        *(bench("leaderboard", "--format", form) for form in ("markdown", "html")),
    ]
    ranked = [row for board in boards for row in board["rows"]]
    assert [row["run_id"] for row in rows] == [row["run_id"] for row in ranked]
    for line, row in zip(rows, ranked, strict=True):
        assert float(line["score"]) == row["score"] == pytest.approx(row["dice"])
        assert row["synthetic"] is True
        for text in texts:
            assert f"{row['score']:.3f}" in text
            assert f"{row['low']:.3f} to {row['high']:.3f}" in text
            assert row["run_id"][:8] in text
    assert all("SYNTHETIC" in text for text in texts)


@pytest.fixture(scope="module")
def three(template: Path, home: Path) -> str:
    """A store with two seeds of one configuration and a smaller model, of one epoch each."""
    shutil.copytree(template, home / "three")
    uri = f"sqlite:///{home / 'three' / 'mlflow.db'}"
    for name, *more in (["one"], ["two", "--seed", 1], ["small", "--set", "model.base=2"]):
        bench("run", *TINY, "--epochs", 1, "--folds", 2, "--name", name, *more, "--quiet", "--tracking-uri", uri)
    return uri


def shown(uri: str, *words: object) -> dict[str, dict[str, object]]:
    """The rows of the only board, by name."""
    (board,) = json.loads(bench("leaderboard", "--tracking-uri", uri, "--format", "json", *words))
    return {row["name"]: row for row in board["rows"]}


def test_seeds_of_one_configuration_are_a_row_and_can_be_told_apart(three):
    together, apart = shown(three), shown(three, "--group-by", "run")
    assert together.keys() == {"two", "small"}
    assert apart.keys() == {"one", "two", "small"}
    assert (together["two"]["seeds"], together["small"]["seeds"]) == (2, 1)
    assert together["two"]["score"] == pytest.approx((apart["one"]["score"] + apart["two"]["score"]) / 2)
    (everything,) = shown(three, "--group-by", "loss.name").values()
    assert everything["score"] == pytest.approx(sum(row["score"] for row in apart.values()) / 3)


def test_a_leaderboard_can_be_narrowed_and_ranked_by_another_score(three):
    assert shown(three, "--where", "model.base=2").keys() == {"small"}
    assert shown(three, "--where", "seed=0", "--where", "name!=small").keys() == {"one"}
    ranked = shown(three, "--primary", "hd95", "--group-by", "run").values()
    assert [row["score"] for row in ranked] == pytest.approx(sorted(row["hd95"] for row in ranked))
    cheapest = min(shown(three).values(), key=lambda row: row["parameters"])
    assert cheapest["name"] in shown(three, "--pareto", "parameters")
    assert next(iter(shown(three, "--sort", "parameters"))) == "small"


def test_a_run_knows_its_rank_also_when_a_better_one_comes_after_it(three):
    store = connect(three)
    for row in shown(three).values():
        for run_id in row["runs"].split():
            values = store.client.get_run(run_id).data.metrics
            assert (values["rank"], values["rank_low"], values["rank_high"]) == (
                *(row["rank"], row["rank_low"], row["rank_high"]),
            )
            assert values["rank_first"] == pytest.approx(row["first"])


@pytest.mark.parametrize(
    ("component", "setting", "said"),
    [
        ("warp", "augment.warp.scale", "default: 0.1  (float, >= 0, < 1)"),
        ("unet", "model.up", "default: transposed  ('transposed' | 'nearest' | 'bilinear')"),
        ("unet", "model.encoder", "default: none  (str | none)"),
        ("pairs", "dataset.resize", "default: none  (int, >= 16, <= 4096 | none)"),
        ("pairs", "dataset.folder", "required  (Path)"),
        ("modality_dropout", "augment.modality_dropout.by", "default: 0  (str | int, >= 0, <= 10000)"),
    ],
)
def test_a_component_shows_its_settings_as_people_write_them(component, setting, said):
    shown = CliRunner().invoke(app, ["show", component]).stdout
    assert re.search(rf"  {re.escape(setting)} +{re.escape(said)}\n", shown)


def test_where_nothing_is_left_it_is_said(three):
    words = ["leaderboard", "--tracking-uri", three, "--where", "model=none", "--where", "train.lr<1"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "none of 3 runs matches model=none and train.lr<1.\n"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--sort", "flop", "no column 'flop'; .*Did you mean 'flops'"),
        ("--pareto", "flop", "no column 'flop'"),
        ("--primary", "dise", "cannot rank by 'dise'; .*Did you mean 'dice'"),
        ("--group-by", "loss.nam", "cannot group by 'loss.nam'.*Did you mean 'loss.name'"),
        ("--where", "unet", "'unet' is not a condition"),
        ("--where", "modl=unet", "no run has 'modl'"),
    ],
)
def test_what_a_leaderboard_cannot_do_is_refused(ran, option, value, said):
    assert re.search(said, refused("leaderboard", option, value))


JSON = [
    ("leaderboard", [], {"task", "primary", "dataset", "patients", "left_out", "notes", "rows"}),
    ("compare", ["small", "two"], {"a", "b", "means", "paired", "strata", "patients", "claim", "ties"}),
    ("gate", ["--baseline", "two", "--candidate", "small"], {"worse", "message", "margin", "difference"}),
    ("power", [], {"patients", "folds", "seeds", "models", "power", "lines", "table"}),
]


@pytest.mark.parametrize(("command", "words", "keys"), JSON, ids=[command for command, *_ in JSON])
def test_json_has_the_documented_keys(command, words, keys, three):
    documented = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    result = CliRunner().invoke(app, [command, *words, "--format", "json", "--tracking-uri", three])
    printed = json.loads(result.stdout)
    (printed,) = printed if command == "leaderboard" else (printed,)
    assert printed.keys() >= keys
    assert {key for key in printed if f"`{key}`" not in documented} == set()
    if command == "gate":
        assert result.exit_code == int(printed["worse"])
    for row in printed["rows"] if command == "leaderboard" else ():
        names = {key for key in row if key not in connect(three).client.get_run(row["run_id"]).data.metrics}
        assert {key for key in names if f"`{key}`" not in documented} == set()


def test_components_settings_and_columns_are_printed_as_json():
    assert {"unet", "resunet"} <= {row["name"] for row in json.loads(bench("list", "models", "--format", "json"))}
    (unet,) = json.loads(bench("show", "unet", "--format", "json"))
    assert unet.keys() == {"kind", "name", "meaning", "settings"}
    (lr,) = json.loads(bench("show", "train.lr", "--format", "json"))
    assert lr.keys() == {"kind", "name", "takes", "default", "meaning", "of", "required"}
    assert (lr["kind"], lr["default"], lr["required"]) == ("setting", RunConfig().train.lr, False)
    (column,) = json.loads(bench("show", "P(1st)", "--format", "json"))
    assert (column["kind"], column["name"]) == ("column", "P(1st)")


def test_a_command_that_logs_a_run_prints_it_as_json(ran, other, tmp_path):
    result = CliRunner().invoke(app, ["rescore", ran, "--name", "as json", "--format", "json"])
    printed = json.loads(result.stdout)
    run = find_run(connect(), "as json")
    assert (printed["run_id"], printed["name"]) == (run.info.run_id, "as json")
    assert printed["scores"]["dice"] == run.data.metrics["dice"]
    assert printed["settings"] == run.data.params
    assert "Dice" in result.stderr  # what people read is not lost
    called = json.loads(bench("predict", ran, other, "--out", tmp_path / "out", "--format", "json"))
    assert len(called["images"]) == 18
    assert called["images"][0].keys() == {"image", "probability", "called"}


def test_findings_and_tables_of_data_are_printed_as_json(other, tmp_path):
    printed = json.loads(bench("data", "check", other, "--format", "json"))
    assert (printed["usable"], printed["errors"]) == (True, [])
    assert {"code", "message", "where"} == printed["warnings"][0].keys()
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "empty"), "--format", "json"])
    assert (result.exit_code, json.loads(result.stdout)["usable"]) == (1, False)
    tables = json.loads(bench("data", "describe", other, "--format", "json"))
    assert tables.keys() == {"counts", "institutions", "patients", "tumours", "intensity", "contrast"}
    assert tables["counts"][0]["patients"] == len(tables["patients"]) == 3


def test_an_error_of_bench_itself_exits_with_3_and_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr("bench.cli.app", lambda: 1 / 0)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_help_lists_the_exit_codes():
    text = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    for code in ("0 success", "1 the answer is no", "2 an error", "3 an error of bench itself", "130 interrupted"):
        assert code in text


def test_an_error_wraps_between_words_on_a_terminal_only(monkeypatch, capsys):
    message = "the folder /data/heads does not exist. Give --data another folder."
    say(message)
    assert capsys.readouterr().err == f"{message}\n"
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say(message)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 30
    assert " ".join(lines) == message


@pytest.mark.parametrize(("no_color", "plain"), [("", False), ("1", True)])
def test_no_color_and_pipes_give_plain_text(no_color, plain, monkeypatch, capsys):
    from rich.text import Text

    from bench.console import console

    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    console().print(Text("piped", "bold red"))
    assert capsys.readouterr().out == "piped\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    console().print(Text("shown", "bold red"))
    assert (capsys.readouterr().out == "shown\n") == plain


def test_no_runs_is_no_error(template):
    assert bench("leaderboard", "--tracking-uri", f"sqlite:///{template / 'mlflow.db'}") == ""


def test_an_external_test_is_a_child_of_the_run(ran, other):
    out = bench("evaluate", ran, "--data", other)
    assert "mean of 3 fold models" in out
    store = connect()
    parent = find_run(store, ran)
    (child,) = [
        r
        for r in store.client.search_runs([parent.info.experiment_id])
        if r.data.tags.get("bench.kind") == "evaluation"
        and r.data.tags["mlflow.parentRunId"] == parent.info.run_id
    ]
    assert child.data.metrics["patients"] == 3
    assert f"Dice {child.data.metrics['dice']:.3f}" in out
    boards = json.loads(bench("leaderboard", "--format", "json"))
    assert child.info.run_id not in {row["run_id"] for board in boards for row in board["rows"]}


def test_patients_of_the_run_are_no_external_test(ran, home):
    bench("data", "phantom", home / "same", *sets(patients=6, size=32, slices=6, institutions=2))
    assert "took part in the run itself" in refused("evaluate", ran, "--data", home / "same")


def test_nor_are_they_under_another_name(ran, home, other, tmp_path):
    bench("data", "phantom", home / "again", *sets(patients=6, size=32, slices=6, institutions=2))
    for folder, name in ((home / "again", "patient1"), (other, "patient2")):
        one = next(path for path in folder.rglob("PHANTOM_*") if path.is_dir())
        shutil.copytree(one, tmp_path / "mixed" / name)
    said = refused("evaluate", ran, "--data", tmp_path / "mixed")
    assert re.match(r"1 of the patients of \S+ took part in the run itself, .* their images \(patient1\)", said)


def test_predict_writes_a_mask_and_an_overlay_for_every_image(ran, other, tmp_path):
    images = tmp_path / "scans"
    shutil.copytree(other, images)
    for mask in images.rglob("*_mask.tif"):
        mask.unlink()
    out = bench("predict", ran, images, "--out", tmp_path / "out")
    assert "masks and overlays of 18 images are in" in " ".join(out.split())
    written = sorted((tmp_path / "out").rglob("*_mask.tif"))
    assert len(written) == 18
    for path in written:
        mask = tifffile.imread(path)
        assert mask.shape == (32, 32)
        assert set(np.unique(mask)) <= {0, 255}
        assert cv2.imread(str(path).replace("_mask.tif", "_overlay.png")).ndim == 3


def test_predict_takes_one_png_and_one_fold(ran, other, tmp_path):
    scan = next(p for p in sorted(other.rglob("*.tif")) if "_mask" not in p.name)
    cv2.imwrite(str(tmp_path / "one.png"), tifffile.imread(scan)[..., ::-1])
    out = bench("predict", ran, tmp_path / "one.png", "--out", tmp_path / "out", "--fold", "1")
    assert "masks and overlays of 1 image are in" in " ".join(out.split())
    assert tifffile.imread(tmp_path / "out" / "one_mask.tif").shape == (32, 32)


def test_a_dry_run_trains_and_logs_nothing(home, tmp_path):
    out = bench("run", *TINY, "--dry-run", "--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}")
    printed = dict(parse_assignment(line) for line in out.splitlines() if " = " in line)
    assert override(RunConfig(), printed).train.epochs == 2  # every name is one that --set accepts
    assert "train.lr = 0.01" in out
    assert "fold 2: train" in out
    assert re.search(
        r"estimated time on cpu: .+, from the time of \d+ training images? and \d+ predicted slices?", out
    )
    assert not (tmp_path / "none.db").exists()


def test_training_in_an_emulated_precision_warns_with_the_ratio(home, monkeypatch):
    monkeypatch.setattr("bench.experiments.run.has_bfloat16", lambda device: False)
    monkeypatch.setattr("bench.experiments.run.bfloat16_slowdown", lambda device: 17.6)
    result = CliRunner().invoke(app, ["run", *TINY, "--dry-run", "--set", "train.precision=bfloat16"])
    assert "a convolution takes 18 times as long as in float32" in " ".join(result.output.split())


def test_flags_win_over_the_file_and_set_over_flags(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {name: resunet, depth: 2}\ntrain: {lr: 0.5, epochs: 7}\n")
    model = sets(model__name="resunet", model__base=2, model__depth=2)
    words = ["--model", "unet", "--epochs", "3", "--set", "train.lr=0.25", *model]
    out = bench("run", *SMALL, "--config", tmp_path / "mine.yaml", *words, "--dry-run")
    for line in ("model.name = resunet", "train.epochs = 3", "train.lr = 0.25"):
        assert line in out


@pytest.mark.parametrize(
    "kind", ["models", "losses", "augmentations", "metrics", "datasets", "schedules", "splits"]
)
def test_every_component_is_listed_with_one_line(kind):
    from bench.registry import REGISTRIES

    lines = bench("list", kind).splitlines()
    assert [line.split()[0] for line in lines] == list(REGISTRIES[kind])
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_a_flag_that_the_chosen_component_does_not_have_is_refused():
    assert "has no setting 'folds'" in refused("run", *SMALL, "--set", "split=institutions", "--folds", "3")


def test_encoders_are_listed():
    names = [line.split()[0] for line in bench("list", "encoders").splitlines()]
    assert {"resnet50", "efficientnet-b0", "mit_b0"} <= set(names)


def test_an_unknown_kind_is_refused():
    assert "Did you mean 'losses'" in refused("list", "loses")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("focal_tversky", "Abraham"),
        ("focal_tversky", "0.7  (float, >= 1e-06, < 1)"),
        ("unet", "base"),
        ("dice", "Dice"),
        ("lgg", "folder"),
    ],
)
def test_show_tells_settings_and_source(name, says):
    assert says in bench("show", name)


def test_show_of_nothing():
    assert "Did you mean 'unet'" in refused("show", "unnet")


TEN_LINES = '''
"""A model of one's own."""
import torch
from bench.registry import model


@model
def one_layer(channels: int, *, width: int = 4) -> torch.nn.Module:
    """Two convolutions and nothing else."""
    layers = torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(width, 1, 1)
    return torch.nn.Sequential(*layers)
'''


@pytest.mark.slow
def test_a_model_of_ones_own_in_ten_lines(home, other, tmp_path):
    from bench import registry

    (home / "mine.py").write_text(TEN_LINES)
    try:
        bench(
            "run", "--model", "one_layer", "--plugin", home / "mine.py", *SMALL, *SHORT, "--name", "own", "--quiet"
        )
        assert "one_layer" in bench("list", "models", "--plugin", home / "mine.py")
        assert "own" in bench("leaderboard")
        bench("predict", "own", other, "--out", tmp_path / "out")
    finally:
        registry.model._entries.pop("one_layer", None)
        sys.modules.pop(f"bench_plugin_{(home / 'mine.py').resolve()}", None)


def test_checking_whole_data_succeeds_and_broken_data_fails(other, tmp_path):
    assert "0 errors" in bench("data", "check", other)
    shutil.copytree(other, tmp_path / "broken")
    next((tmp_path / "broken").rglob("*_mask.tif")).unlink()
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path / "broken")])
    assert result.exit_code == 1
    assert "has no mask" in result.stdout or "mask" in result.stdout


def test_describing_writes_tables_and_figures(other, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.reports.dataset.printing.DPI", 30)
    out = bench("data", "describe", other, "--out", tmp_path / "out")
    assert "institutions" in out
    assert len(list((tmp_path / "out").glob("*.png"))) >= 4
    assert pd.read_csv(tmp_path / "out" / "counts.csv")["patients"][0] == 3


def test_packing_twice_finds_the_pack_again(other):
    assert bench("data", "pack", other, "--verify") == bench("data", "pack", other, "--verify")


def test_the_download_says_how_to_do_it_by_hand(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # as if it were not installed
    said = refused("data", "download", tmp_path / "lgg")
    assert "medseg-bench[data]" in said
    assert "By hand" in said


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--model", "unnet"],
        ["run", "--data", "/nowhere"],
        ["run", "--set", "train.lrr=1"],
        ["run", "--config", "/nowhere.yaml"],
        ["run", "--tracking-uri", "http://127.0.0.1:9"],
        ["evaluate", "nobody", "--data", "/nowhere"],
        ["predict", "nobody", "/nowhere", "--out", "out"],
        ["data", "check", "/nowhere"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1


INTERRUPTED = """
    import os, signal, sys
    from bench.training import cross_validation
    from bench.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    finished = cross_validation.run_fold
    def run_fold(experiment, fold, *rest, **named):
        if fold.number == 1:
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        return finished(experiment, fold, *rest, **named)

    cross_validation.run_fold = run_fold
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_is_killed_and_keeps_its_finished_folds(home, name, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = ["run", *TINY, "--name", "stopped", "--tracking-uri", uri]
    code = textwrap.dedent(INTERRUPTED)
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ | {"SIGNAL": name}
    )
    assert ended.returncode == 130
    assert "finished folds are kept" in ended.stderr
    store = connect(uri)
    parent = find_run(store, "stopped")
    assert parent.info.status == "KILLED"
    folds = store.client.search_runs([parent.info.experiment_id], "tags.`bench.kind` = 'fold'")
    assert {f.info.run_name: f.info.status for f in folds} == {"fold 0": "FINISHED", "fold 1": "KILLED"}
    fold = find_run(store, "fold 0")
    assert len(read_table(store, fold, "cases")) == 2
    assert bench("leaderboard", "--tracking-uri", uri) == ""  # half a run is not ranked


SEARCHES = Path(__file__).parents[2] / "benchmarks" / "search"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["leaderboard", "--cases", "out.csv"], "out.csv"),
        (["report", "--out", "out.html"], "out.html"),
        (["compare", "one", "other", "--out", "out"], "out/comparison.png"),
        (["suite", "benchmarks/smoke.yaml", "--out", "out.md"], "out.md"),
        (["search", str(SEARCHES / "unet.yaml"), "--data", ".", "--out", "best.yaml"], "best.yaml"),
        (["data", "describe", ".", "--html", "out.html"], "out.html"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_no_command_replaces_the_file_of_someone_else(words, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("theirs")
    assert f"{Path(file).name} exists, and bench did not write it" in refused(*words)
    assert Path(file).read_text() == "theirs"


def test_joining_a_study_refuses_settings_of_a_new_one():
    message = "--join uses the settings of the study: leave out --trials and --set."
    assert refused("search", "--join", "unet", "--trials", 5, "--set", "train.lr=1") == message
