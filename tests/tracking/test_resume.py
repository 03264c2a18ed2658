"""Commands resume an interrupted run, or say why they do not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.config import RunConfig
from bench.errors import BadSetting
from bench.experiments.run import execute, settings_to_resume
from bench.experiments.suite import DONE, FAILED, MISSING, RUNNING, run_suite, states
from bench.experiments.suite_file import read_suite
from bench.overrides import configure
from bench.tracking import Store, Tag, connect, download_models, find_folds, find_run, read_table
from bench.tracking.resume import digest, hash_code, is_active, run_lock, workspace_folder
from bench.training.experiment import resolve
from tests.fakes import run_and_end

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]

SETTINGS = {
    "dataset": {"name": "phantom", "patients": 6, "size": 32, "slices": 6, "institutions": 2},
    "split.folds": 3,
    "model": {"name": "unet", "base": 2, "depth": 1},
    "loss": "interrupting",
    "evaluate.metrics": ["dice", "precision"],
    "train": {"epochs": 2, "batch_size": 4, "lr": 0.01},
    "checkpoint_every": 0,
    "device": "cpu",
}


class StepLimit:
    """Steps that the loss `interrupting` allows before it interrupts; None: any number."""

    left: int | None = None


@pytest.fixture(scope="module")
def interrupting(cache: Path) -> Iterator[None]:
    """Register a loss with which this process interrupts itself."""

    @registry.loss(name="interrupting")
    def interrupting(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy that ends with Ctrl-C."""
        if StepLimit.left == 0:
            raise KeyboardInterrupt
        StepLimit.left = None if StepLimit.left is None else StepLimit.left - 1
        return F.binary_cross_entropy_with_logits(logits, target)

    yield
    del registry.loss._entries["interrupting"]


def config(**changes: Any) -> RunConfig:
    return configure(SETTINGS, {"name": "mine"}, {k.replace("__", "."): v for k, v in changes.items()})


def interrupt(config: RunConfig, store: Store, after: int = 0, **options: Any) -> None:
    """Start or resume a run, and interrupt it after so many steps."""
    StepLimit.left = after + 1  # the trial before training computes the loss once
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(config, uri=store.uri, quiet=True, **options)
    finally:
        StepLimit.left = None


@pytest.fixture(scope="module")
def interrupted(template: Path, tmp_path_factory: pytest.TempPathFactory, interrupting: None) -> Path:
    """The folder of a store with a run that was interrupted in its second fold."""
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(template, folder, dirs_exist_ok=True)
    experiment = resolve(config())
    steps = experiment.images_per_fold(experiment.folds[0]) // 4
    interrupt(config(), connect(f"sqlite:///{folder / 'mlflow.db'}"), after=steps + 1)
    return folder


@pytest.fixture
def store_with_run(interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of that store for one test."""
    shutil.copytree(interrupted, tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return connect(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")


def all_runs(store: Store) -> list[Any]:
    runs = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])
    return sorted(runs, key=lambda run: run.info.start_time)


def parents(store: Store) -> list[Any]:
    return [run for run in all_runs(store) if run.data.tags["bench.kind"] == "cv"]


def finish(store: Store, run: Any) -> None:
    """Let a run look as one that has ended by itself."""
    store.client.set_terminated(run.info.run_id, "FINISHED")
    shutil.rmtree(workspace_folder(store, run.info.run_id))


def refusal(store: Store, config: RunConfig, **options: Any) -> str:
    """Return the message with which a run is refused, and check that the store has not changed."""
    before = [run.to_dictionary() for run in all_runs(store)]
    with pytest.raises(BadSetting) as caught:
        execute(config, uri=store.uri, quiet=True, **options)
    assert [run.to_dictionary() for run in all_runs(store)] == before
    return str(caught.value)


def run_bench(*words: object) -> None:
    assert CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False).exit_code == 0


def test_resume_finishes_a_run_by_its_name(store_with_run):
    (before,) = parents(store_with_run)
    assert before.info.status == "KILLED"
    run_bench("run", "--resume", "mine", "--tracking-uri", store_with_run.uri, "--quiet")
    (after,) = parents(store_with_run)
    assert after.info.run_id == before.info.run_id
    children = find_folds(store_with_run, after)
    assert list(children) == [0, 1, 2]
    assert len(all_runs(store_with_run)) == 4
    assert {run.info.status for run in all_runs(store_with_run)} == {"FINISHED"}
    for child in children.values():
        history = store_with_run.client.get_metric_history(child.info.run_id, "train/loss")
        assert [metric.step for metric in history] == [1, 2]
    assert not workspace_folder(store_with_run, after.info.run_id).exists()
    with pytest.raises(BadSetting, match="is finished"):
        run_bench("run", "--resume", "mine", "--tracking-uri", store_with_run.uri)


def test_resume_finds_settings_and_fold_of_a_run_by_its_id(store_with_run):
    (mine,) = parents(store_with_run)
    settings, only, run_id = settings_to_resume(mine.info.run_id[:8], uri=store_with_run.uri)
    assert (settings.completed(), only, run_id) == (config().completed(), None, mine.info.run_id)
    interrupt(config(), store_with_run, only=2)  # a single fold is another run
    assert len(parents(store_with_run)) == 2
    single = parents(store_with_run)[-1].info.run_id
    assert settings_to_resume(single, uri=store_with_run.uri)[1:] == (2, single)


def test_a_fresh_run_replaces_the_interrupted_one(store_with_run):
    (old,) = parents(store_with_run)
    store_with_run.client.update_run(old.info.run_id, status="RUNNING")  # as a killed process leaves it
    interrupt(config(), store_with_run, fresh=True)
    old, fresh = parents(store_with_run)
    assert (old.info.status, fresh.info.status) == ("KILLED", "KILLED")
    assert not workspace_folder(store_with_run, old.info.run_id).exists()
    with pytest.raises(BadSetting, match="abandoned by --fresh"):
        settings_to_resume(old.info.run_id, uri=store_with_run.uri)
    interrupt(config(), store_with_run)
    assert len(parents(store_with_run)) == 2
    assert parents(store_with_run)[0].info.end_time == old.info.end_time
    assert parents(store_with_run)[1].info.end_time > fresh.info.end_time
    finish(store_with_run, fresh)
    interrupt(config(), store_with_run)  # a new one, not the old one
    assert len(parents(store_with_run)) == 3
    assert parents(store_with_run)[0].info.end_time == old.info.end_time


def test_a_fresh_run_with_other_settings_replaces_the_run_with_its_name(store_with_run):
    (old,) = parents(store_with_run)
    interrupt(config(train__lr=0.02), store_with_run, fresh=True)
    interrupt(config(train__lr=0.02), store_with_run)  # is not refused because of the old run
    assert len(parents(store_with_run)) == 2
    assert not workspace_folder(store_with_run, old.info.run_id).exists()


def test_a_fresh_single_fold_does_not_replace_other_runs(store_with_run):
    (old,) = parents(store_with_run)
    interrupt(config(), store_with_run, only=2, fresh=True)
    interrupt(config(), store_with_run)
    assert parents(store_with_run)[0].info.end_time > old.info.end_time


def test_settings_together_with_resume_are_refused(store_with_run):
    message = r"settings of the run: leave out --epochs, --set and --fresh\.$"
    before = [run.to_dictionary() for run in all_runs(store_with_run)]
    with pytest.raises(BadSetting, match=message):
        run_bench("run", "--resume", "mine", "--quiet", "--epochs", 9, "--set", "seed=1", "--fresh")
    assert [run.to_dictionary() for run in all_runs(store_with_run)] == before


def test_a_run_that_mlflow_run_has_opened_does_not_resume_another(store_with_run, monkeypatch):
    (mine,) = parents(store_with_run)
    opened = store_with_run.client.create_run(store_with_run.experiment("theirs"))
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    interrupt(config(), store_with_run)
    assert [run.info.run_id for run in parents(store_with_run)] == [mine.info.run_id, opened.info.run_id]
    assert parents(store_with_run)[0].info.end_time == mine.info.end_time


def change_code(store: Store, mine: Any) -> None:
    """Change the logged code as if `training/loop.py` had been different when the run was interrupted."""
    code = hash_code(config()) | {"training/loop.py": "01234567"}
    store.client.set_tag(mine.info.run_id, Tag.CODE, digest(code))
    (workspace_folder(store, mine.info.run_id) / "code.json").write_text(json.dumps(code))


def test_a_run_is_not_resumed_with_changed_code_and_the_files_are_named(store_with_run):
    (mine,) = parents(store_with_run)
    change_code(store_with_run, mine)
    now = hash_code(config())["training/loop.py"]
    for options in ({}, {"resume": mine.info.run_id}):
        message = refusal(store_with_run, config(), **options)
        assert f"training/loop.py 01234567 -> {now}. " in message
        assert "--fresh" in message
    interrupt(config(), store_with_run, fresh=True)
    assert len(parents(store_with_run)) == 2


def test_a_failed_run_is_resumed_only_if_the_code_is_unchanged(store_with_run):
    (mine,) = parents(store_with_run)
    store_with_run.client.set_terminated(mine.info.run_id, "FAILED")
    interrupt(config(), store_with_run)
    assert len(parents(store_with_run)) == 1
    store_with_run.client.set_terminated(mine.info.run_id, "FAILED")
    change_code(store_with_run, mine)
    assert "code has changed" in refusal(store_with_run, config(), resume=mine.info.run_id)
    interrupt(config(), store_with_run)
    assert len(parents(store_with_run)) == 2


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"train__lr": 0.02}, "train.lr 0.01 -> 0.02"),
        ({"seed": 1}, "run.seed 0 -> 1"),
        ({"dataset__seed": 1, "model__depth": 2}, "dataset.seed 0 -> 1, model.depth 1 -> 2"),
    ],
)
def test_the_name_of_an_interrupted_run_is_refused_with_other_settings(store_with_run, changes, difference):
    message = refusal(store_with_run, config(**changes))
    assert f"settings: {difference}. " in message
    assert f"--resume {parents(store_with_run)[0].info.run_id[:8]}" in message


def test_a_run_is_not_resumed_on_other_data(store_with_run):
    (mine,) = parents(store_with_run)
    store_with_run.client.set_tag(mine.info.run_id, "bench.data", "another")
    assert "other data" in refusal(store_with_run, config())
    assert "other data" in refusal(store_with_run, config(), resume=mine.info.run_id)


def test_a_run_with_another_name_but_equal_settings_is_resumed(store_with_run):
    interrupt(config(name="yours"), store_with_run)
    assert len(parents(store_with_run)) == 1
    interrupt(config(name="yours", train__lr=0.02), store_with_run)
    assert len(parents(store_with_run)) == 2


LOCK = """
import filelock, sys, time
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def locked_by_another_process(workspace: Path) -> Iterator[None]:
    """Let another process hold the lock until the block ends."""
    other = subprocess.Popen([sys.executable, "-c", LOCK, workspace / "lock"], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        other.stdout.readline()
        yield
    finally:
        other.kill()
        other.communicate()


@pytest.mark.parametrize("status", ["RUNNING", "KILLED"])
def test_a_run_that_another_process_works_on_is_left_alone(store_with_run, status):
    (mine,) = parents(store_with_run)
    store_with_run.client.update_run(mine.info.run_id, status=status)
    with locked_by_another_process(workspace_folder(store_with_run, mine.info.run_id)):
        for options in ({}, {"resume": mine.info.run_id}):
            assert "running in another process" in refusal(store_with_run, config(), **options)
        interrupt(config(), store_with_run, fresh=True)
    finish(store_with_run, parents(store_with_run)[1])
    interrupt(config(), store_with_run)  # the lock was released with its process
    assert [run.info.status for run in parents(store_with_run)] == ["KILLED", "FINISHED"]


def test_a_running_run_with_other_code_is_not_called_interrupted(store_with_run):
    (mine,) = parents(store_with_run)
    store_with_run.client.update_run(mine.info.run_id, status="RUNNING")
    change_code(store_with_run, mine)
    with locked_by_another_process(workspace_folder(store_with_run, mine.info.run_id)):
        assert "running in another process" in refusal(store_with_run, config())


def test_a_run_on_this_machine_is_active_while_its_lock_is_held(store_with_run):
    (mine,) = parents(store_with_run)
    workspace = workspace_folder(store_with_run, mine.info.run_id)
    assert not is_active(store_with_run, mine)
    with run_lock(workspace):
        assert is_active(store_with_run, mine)
    shutil.rmtree(workspace)
    assert not is_active(store_with_run, mine)


@pytest.fixture
def without_ranks(store_with_run, monkeypatch) -> Store:
    """A store whose run was interrupted between its end and its ranks."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bench.experiments.run.update_ranks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(config(), uri=store_with_run.uri, quiet=True)
    (mine,) = parents(store_with_run)
    assert (mine.info.status, "rank" in mine.data.metrics) == ("FINISHED", False)
    change_code(store_with_run, mine)  # ranks do not depend on it
    return store_with_run


@pytest.mark.parametrize("how", ["run", "resume", "suite"])
def test_a_run_that_was_interrupted_before_its_ranks_is_only_ranked(without_ranks, how, tmp_path, monkeypatch):
    (before,) = parents(without_ranks)
    monkeypatch.setattr("bench.experiments.run.cross_validate", pytest.fail)
    if how == "suite":
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump({"base": SETTINGS, "entries": {"mine": {}}}))
        assert [s.state for s in states(read_suite(file), without_ranks)] == [MISSING]
        assert [s.state for s in run_suite(read_suite(file), uri=without_ranks.uri, quiet=True)] == [DONE]
    else:
        execute(
            config(), uri=without_ranks.uri, quiet=True, resume=before.info.run_id if how == "resume" else None
        )
    (after,) = parents(without_ranks)
    assert (after.data.metrics["rank"], after.info.end_time) == (1, before.info.end_time)
    assert not workspace_folder(without_ranks, after.info.run_id).exists()


def test_a_fresh_run_leaves_a_finished_one_as_it_is(without_ranks):
    interrupt(config(), without_ranks, fresh=True)
    done, fresh = parents(without_ranks)
    assert (done.info.status, fresh.info.status) == ("FINISHED", "KILLED")
    assert Tag.GIVEN_UP not in done.data.tags


def test_an_interrupted_cell_of_a_suite_is_missing_and_resumed(store_with_run, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(
        yaml.safe_dump({"base": SETTINGS, "entries": {"mine": {}}, "budgets": {"smoke": {"train.epochs": 1}}})
    )
    suite, smoke = read_suite(file), read_suite(file, budget="smoke")
    (mine,) = parents(store_with_run)
    assert [s.state for s in states(suite, store_with_run)] == [MISSING]
    store_with_run.client.update_run(mine.info.run_id, status="RUNNING")  # as a killed process leaves it
    assert [s.state for s in states(suite, store_with_run)] == [MISSING]
    with locked_by_another_process(workspace_folder(store_with_run, mine.info.run_id)):
        assert [s.state for s in states(suite, store_with_run)] == [RUNNING]
    StepLimit.left = 1  # the trial
    with pytest.raises(KeyboardInterrupt):  # the same entry at another budget is another run
        run_suite(smoke, uri=store_with_run.uri, quiet=True)
    StepLimit.left = None
    assert [s.state for s in states(smoke, store_with_run)] == [MISSING]
    (done,) = run_suite(suite, uri=store_with_run.uri, quiet=True)
    assert (done.state, done.run.info.run_id) == (DONE, mine.info.run_id)
    assert len(parents(store_with_run)) == 2


def test_a_fresh_suite_restarts_only_cells_that_are_not_done(store_with_run, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"base": SETTINGS, "entries": {"mine": {}, "other": {"seed": 1}}}))
    suite, (mine,) = read_suite(file), parents(store_with_run)
    change_code(store_with_run, mine)
    mine_now, other = run_suite(suite, uri=store_with_run.uri, quiet=True)
    assert (mine_now.state, other.state) == (FAILED, DONE)
    assert "Give --fresh to start a new run" in mine_now.run.data.tags["bench.error"]
    again, same = run_suite(suite, uri=store_with_run.uri, fresh=True, quiet=True)
    assert (again.state, same.run.info.run_id) == (DONE, other.run.info.run_id)
    assert again.run.info.run_id not in (mine.info.run_id, mine_now.run.info.run_id)
    assert not workspace_folder(store_with_run, mine.info.run_id).exists()


def command(uri: str) -> list[str]:
    settings = configure(SETTINGS, {"loss": "bce", "train.epochs": 3}).flat()
    chosen = {
        k: v for k, v in settings.items() if k.startswith(("dataset", "split", "model", "train.e", "train.b"))
    }
    words = [w for k, v in chosen.items() for w in ("--set", f"{k}={v}")]
    return ["run", "--quiet", "--tracking-uri", uri, "--name", "mine", "--set", "checkpoint_every=0", *words]


def steps(store: Store, run: Any) -> dict[str, list[int]]:
    """Return the steps of each metric, without those that depend on time or on other runs."""
    names = [name for name in run.data.metrics if not name.startswith(("system/", "rank"))]
    return {n: [m.step for m in store.client.get_metric_history(run.info.run_id, n)] for n in names}


def test_a_run_killed_twice_ends_as_if_it_had_not_been_killed(store, tmp_path, template):
    shutil.copytree(template, tmp_path / "undisturbed")
    undisturbed = connect(f"sqlite:///{tmp_path / 'undisturbed' / 'mlflow.db'}")
    run_bench(*command(undisturbed.uri))
    unfinished = tmp_path / "mlruns" / "unfinished"
    moments = ("*/fold-0/epoch-000002.state", "*/fold-1/result.state")
    assert run_and_end(command(store.uri), signal.SIGKILL, unfinished, *moments) == [-signal.SIGKILL] * 2
    assert [run.info.status for run in parents(store)] == ["RUNNING"]
    run_bench(*command(store.uri))
    assert len(parents(store)) == 1
    assert {run.info.status for run in all_runs(store)} == {"FINISHED"}
    killed, whole = find_run(store, "mine"), find_run(undisturbed, "mine")
    assert killed.data.metrics["dice"] == whole.data.metrics["dice"]
    pd.testing.assert_frame_equal(read_table(store, killed, "cases"), read_table(undisturbed, whole, "cases"))
    for one, other in zip(all_runs(store), all_runs(undisturbed), strict=True):
        assert steps(store, one) == steps(undisturbed, other)
    weights = [
        [path.read_bytes() for path in sorted((tmp_path / f"models-{n}").rglob("weights.safetensors"))]
        for n, (where, run) in enumerate(((store, killed), (undisturbed, whole)))
        if download_models(where, run, tmp_path / f"models-{n}")
    ]
    assert len(weights[0]) == 3
    assert weights[0] == weights[1]
    assert list(unfinished.iterdir()) == []
