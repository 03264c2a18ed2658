"""A run that was broken off is gone on with, and ends as if nothing had happened; or it is said why it is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from typer.testing import CliRunner

import bench
from bench import registry
from bench.cli import app
from bench.config import RunConfig
from bench.data.loader import SliceLoader
from bench.errors import BadSetting
from bench.experiments.run import execute, resumed
from bench.experiments.suite import DONE, FAILED, MISSING, RUNNING, run_suite, states
from bench.experiments.suite_file import read_suite
from bench.overrides import configure
from bench.tracking import Store, connect, find_run, folds_of, model_folders, open_run, read_table
from bench.tracking.recorder import reopen
from bench.tracking.resume import CODE, SHOWS, code_of, digest, is_active, run_lock, workspace_of
from bench.training.cross_validation import cross_validate
from bench.training.experiment import Experiment, resolve
from bench.training.fold import FoldWorkspace, run_fold
from bench.types import FoldResult, Watch
from tests.fakes import MemoryRecorder

SMALL = {
    "dataset": {"name": "phantom", "patients": 6, "size": 32, "slices": 6, "institutions": 2},
    "split.folds": 3,
    "model": {"name": "unet", "base": 2, "depth": 1},
    "evaluate.metrics": ["dice", "precision"],
    "train": {"epochs": 3, "batch_size": 4, "lr": 0.01},
    "checkpoint_every": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        yield folder


# Folds, without a store


class Moment(Watch):
    """Interrupts the n-th time that something happens; counts epochs and keeps what is said."""

    def __init__(self, what: str = "", at: int = 0) -> None:
        self.what, self.at, self.count = what, at, Counter()
        self.said: list[str] = []

    def _happens(self, what: str) -> None:
        self.count[what] += 1
        if (what, self.count[what]) == (self.what, self.at):
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)

    def images(self, count: int) -> None:
        self._happens("images")

    def epoch(self, number: int, of: int, loss: float, score: float) -> None:
        self._happens("epoch")

    def scored(self, number: int, values: Any) -> None:
        self._happens("scored")


class Fragile(MemoryRecorder):
    """Interrupts in place of one of its methods, in the fold of this name."""

    def __init__(self, method: str, fold: str = "", name: str = "") -> None:
        super().__init__()
        self.method, self.fold = method, fold
        if name == fold:
            setattr(self, method, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def child(self, name: str, tags: Any = None) -> Iterator[MemoryRecorder]:
        self.children[name] = Fragile(self.method, self.fold, name)
        yield self.children[name]


def weights_of(recorder: MemoryRecorder) -> bytes:
    return recorder.paths["model"]["weights.safetensors"]


def figures(table: pd.DataFrame) -> pd.DataFrame:
    """Without what a clock has measured."""
    return table[[c for c in table.columns if "second" not in c]]


def lasting(values: dict[str, list[tuple[int, float]]]) -> dict[tuple[str, int], float]:
    """Metrics by name and step, without what a clock has measured."""
    return {(k, step): v for k, told in values.items() if "second" not in k for step, v in told}


def plain(result: FoldResult) -> dict[str, Any]:
    measured = ("seconds", "before", "peak_memory", "scores")
    scores = [(s.case, repr(s.values), s.counts, s.slices.to_csv()) for s in result.scores]
    return {k: v for k, v in asdict(result).items() if k not in measured} | {"scores": scores}


@dataclass
class Whole:
    """A fold that nothing has interrupted."""

    experiment: Experiment
    loader: SliceLoader
    recorder: MemoryRecorder
    result: FoldResult
    masks: Any

    def again(self, recorder: MemoryRecorder, folder: Path, watch: Moment) -> tuple[FoldResult, Any]:
        kept = FoldWorkspace(folder, 0, watch)
        return run_fold(self.experiment, self.experiment.folds[0], self.loader, recorder, watch=watch, kept=kept)


def whole(**changes: Any) -> Whole:
    experiment = resolve(configure(SMALL, {k.replace("__", "."): v for k, v in changes.items()}))
    loader, recorder = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu")), MemoryRecorder()
    return Whole(experiment, loader, recorder, *run_fold(experiment, experiment.folds[0], loader, recorder))


@pytest.fixture(scope="module")
def trained(cache: Path) -> Whole:
    """Three epochs, the rate of each depending on the scores before."""
    return whole(
        train__schedule={"name": "plateau", "patience": 0, "factor": 0.5}, evaluate__threshold="validation"
    )


@pytest.fixture(scope="module")
def stopped(cache: Path) -> Whole:
    """Nine epochs at a rate at which next to nothing is learnt, until two have brought nothing."""
    return whole(train__epochs=9, train__patience=2, train__lr=1e-12)


AMIDST = [("epoch", n) for n in (1, 2, 3)] + [("images", 5)]
AFTERWARDS = ["tags", "table", "model"]  # before it is scored, before the scores are kept, before all are
ANYWHERE = [("trained", moment) for moment in (*AMIDST, *AFTERWARDS)]


@pytest.mark.parametrize(("case", "moment"), [*ANYWHERE, ("stopped", ("epoch", 3)), ("stopped", "tags")], ids=str)
def test_a_fold_broken_off_anywhere_ends_as_if_it_had_not_been(case, moment, request, tmp_path):
    one: Whole = request.getfixturevalue(case)
    recorder = MemoryRecorder() if isinstance(moment, tuple) else Fragile(moment)
    first = Moment(*moment) if isinstance(moment, tuple) else Moment()
    with pytest.raises(KeyboardInterrupt):
        one.again(recorder, tmp_path, first)
    torch.rand(7)  # another process stands elsewhere
    after, second = MemoryRecorder(), Moment()
    result, masks = one.again(after, tmp_path, second)
    assert weights_of(after) == weights_of(one.recorder)
    assert plain(result) == plain(one.result)
    assert all(np.array_equal(masks[case], one.masks[case]) for case in one.masks)
    assert after.labels == one.recorder.labels
    assert after.tables.keys() == one.recorder.tables.keys()
    for name, table in one.recorder.tables.items():
        pd.testing.assert_frame_equal(figures(after.tables[name]), figures(table), check_exact=True)
    before, wanted = lasting(recorder.values), lasting(one.recorder.values)
    assert before | lasting(after.values) == wanted
    assert before == {which: wanted[which] for which in before}
    lost = moment[0] == "epoch" if isinstance(moment, tuple) else 0  # the epoch that was not yet kept
    assert first.count["epoch"] + second.count["epoch"] == result.epochs + lost


def test_a_fold_stops_early_at_the_epoch_at_which_it_would_have(stopped):
    """What the cases above are compared with: two epochs after the best of nine."""
    assert 3 <= stopped.result.epochs == stopped.result.best_epoch + 2 < 9


@pytest.fixture(scope="module")
def crossed(cache: Path) -> tuple[Experiment, MemoryRecorder, Any]:
    experiment, recorder = resolve(configure(SMALL)), MemoryRecorder()
    return experiment, recorder, cross_validate(experiment, recorder)


@pytest.mark.parametrize(
    ("moment", "again", "epochs"),
    [
        (("epoch", 5), {"fold 1", "fold 2"}, 2 + 3),  # before the second epoch of the second was kept
        ("model", {"fold 1", "fold 2"}, 3),  # the second was scored, its result not yet there
        (("scored", 3), set(), 0),
    ],
)
def test_finished_folds_are_not_trained_again(crossed, tmp_path, moment, again, epochs):
    experiment, undisturbed, wanted = crossed
    one = MemoryRecorder() if isinstance(moment, tuple) else Fragile(moment, "fold 1")
    with pytest.raises(KeyboardInterrupt):
        cross_validate(
            experiment, one, watch=Moment(*moment) if isinstance(moment, tuple) else Moment(), workspace=tmp_path
        )
    two, watch = MemoryRecorder(), Moment()
    outcome = cross_validate(experiment, two, watch=watch, workspace=tmp_path)
    assert two.children.keys() == again
    assert (watch.count["epoch"], watch.count["scored"]) == (epochs, 3)
    assert not [text for text in watch.said if "checkpoint" in text]
    assert [plain(r) for r in outcome.results] == [plain(r) for r in wanted.results]
    assert outcome.values == pytest.approx(wanted.values, rel=0, abs=0, nan_ok=True)
    for name, table in undisturbed.tables.items():
        pd.testing.assert_frame_equal(two.tables[name], table, check_exact=True)
    children = one.children | two.children
    for name, child in undisturbed.children.items():
        assert weights_of(children[name]) == weights_of(child)


def test_the_time_that_a_run_took_is_that_of_all_its_processes(monkeypatch, tmp_path):
    """Epochs take 100 seconds and nothing else any; one that was not kept is done again, and not counted twice."""
    seconds = 0.0

    class Slow(Moment):
        def epoch(self, number: int, of: int, loss: float, score: float) -> None:
            nonlocal seconds
            seconds += 100
            super().epoch(number, of, loss, score)

    monkeypatch.setattr("bench.training.cross_validation.time", SimpleNamespace(perf_counter=lambda: seconds))
    experiment = resolve(configure(SMALL))
    for moment in ("epoch", 2), ("epoch", 4):  # in the first fold, then in the second
        with pytest.raises(KeyboardInterrupt):
            cross_validate(experiment, MemoryRecorder(), watch=Slow(*moment), workspace=tmp_path)
    outcome = cross_validate(experiment, MemoryRecorder(), watch=Slow(), workspace=tmp_path)
    assert outcome.costs["cost/wall_seconds"] == 3 * 3 * 100


def test_a_damaged_result_is_made_again_from_the_last_checkpoint(crossed, tmp_path):
    experiment, _, wanted = crossed
    cross_validate(experiment, MemoryRecorder(), only=0, workspace=tmp_path)
    (file,) = tmp_path.rglob("result.state")
    file.write_bytes(file.read_bytes()[:-1])
    watch = Moment()
    outcome = cross_validate(experiment, MemoryRecorder(), only=0, watch=watch, workspace=tmp_path)
    assert plain(outcome.results[0]) == plain(wanted.results[0])
    assert watch.count["epoch"] == 0
    assert any("damaged" in text for text in watch.said)


# Recording, going on


def test_what_was_logged_is_not_logged_twice(store):
    with suppress(KeyboardInterrupt), open_run(store, "mine", "lgg", {}) as run:
        run.settings({"a": 1})
        with run.child("fold 0") as fold:
            for step in (1, 2):
                fold.metrics({"loss": step, "score": np.nan}, step)
            raise KeyboardInterrupt
    before = store.client.get_run(run.run_id)
    with open_run(store, "mine", "lgg", {}, again=before) as run:
        assert store.client.get_run(run.run_id).info.status == "RUNNING"
        run.settings({"a": 2, "b": 3})
        with run.child("fold 0") as again, run.child("fold 1") as other:
            for step in (2, 3):
                again.metrics({"loss": 10 * step, "score": 0}, step)
    after = store.client.get_run(run.run_id)
    assert (run.run_id, again.run_id) == (before.info.run_id, fold.run_id) != (run.run_id, other.run_id)
    assert after.data.params == {"a": "1", "b": "3"}
    history = store.client.get_metric_history(fold.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1), (2, 2), (3, 30)]
    assert [m.step for m in store.client.get_metric_history(fold.run_id, "score")] == [1, 2, 3]
    for run_id in (run.run_id, fold.run_id, other.run_id):
        assert store.client.get_run(run_id).info.status == "FINISHED"


def test_a_model_that_was_logged_is_not_logged_twice(store, tmp_path):
    (tmp_path / "segmenter").mkdir()
    (tmp_path / "segmenter" / "model.json").write_text("{}")
    with open_run(store, "mine", "lgg", {}) as run:
        run.model(tmp_path / "segmenter", 3)
    with open_run(store, "mine", "lgg", {}, again=store.client.get_run(run.run_id)) as again:
        again.model(tmp_path / "segmenter", 3)
    assert len(store.client.get_run(run.run_id).outputs.model_outputs) == 1


def test_what_went_wrong_is_forgotten_as_a_run_goes_on(store):
    with pytest.raises(ValueError, match="a bad day"), open_run(store, "mine", "lgg", {}) as run:
        raise ValueError("a bad day")
    assert "a bad day" in store.client.get_run(run.run_id).data.tags["bench.error"]
    reopen(store, store.client.get_run(run.run_id))
    assert "bench.error" not in store.client.get_run(run.run_id).data.tags


# Runs in a store


class Budget:
    """Steps that the loss `breaking` allows before it interrupts; None: any number."""

    left: int | None = None


@pytest.fixture(scope="module")
def breaking(cache: Path) -> Iterator[None]:
    """A loss through which this process interrupts itself."""

    @registry.loss(name="breaking")
    def breaking(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy that ends with Ctrl-C."""
        if Budget.left == 0:
            raise KeyboardInterrupt
        Budget.left = None if Budget.left is None else Budget.left - 1
        return F.binary_cross_entropy_with_logits(logits, target)

    yield
    del registry.loss._entries["breaking"]


MINE = SMALL | {"loss": "breaking", "train": {"epochs": 2, "batch_size": 4, "lr": 0.01}}


PACKAGE = Path(bench.__file__).parent


def config(**changes: Any) -> RunConfig:
    return configure(MINE, {"name": "mine"}, {k.replace("__", "."): v for k, v in changes.items()})


def break_off(what: RunConfig, store: Store, after: int = 0, **given: Any) -> None:
    """Start, or go on, for so many steps."""
    Budget.left = after
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(what, uri=store.uri, quiet=True, **given)
    finally:
        Budget.left = None


@pytest.fixture(scope="module")
def broken(template: Path, tmp_path_factory: pytest.TempPathFactory, breaking: None) -> Path:
    """A store with a run that was interrupted in its second fold."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(template, folder, dirs_exist_ok=True)
    experiment = resolve(config())
    steps = experiment.images_per_fold(experiment.folds[0]) // 4
    break_off(config(), connect(f"sqlite:///{folder / 'mlflow.db'}"), after=steps + 1)
    return folder


@pytest.fixture
def store_with_it(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of that store, of the test's own."""
    shutil.copytree(broken, tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return connect(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")


def everything(store: Store) -> list[Any]:
    runs = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])
    return sorted(runs, key=lambda run: run.info.start_time)


def parents(store: Store) -> list[Any]:
    return [run for run in everything(store) if run.data.tags["bench.kind"] == "cv"]


def refused(store: Store, what: RunConfig, **given: Any) -> str:
    """The sentence with which a run is refused, which changes nothing in the store."""
    before = [run.to_dictionary() for run in everything(store)]
    with pytest.raises(BadSetting) as caught:
        execute(what, uri=store.uri, quiet=True, **given)
    assert [run.to_dictionary() for run in everything(store)] == before
    return str(caught.value)


def bench(*words: object) -> None:
    assert CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False).exit_code == 0


def test_a_run_is_gone_on_with_by_its_name_until_it_is_finished(store_with_it):
    (before,) = parents(store_with_it)
    assert before.info.status == "KILLED"
    bench("run", "--resume", "mine", "--tracking-uri", store_with_it.uri, "--quiet")
    (after,) = parents(store_with_it)
    assert after.info.run_id == before.info.run_id
    children = folds_of(store_with_it, after)
    assert list(children) == [0, 1, 2]
    assert len(everything(store_with_it)) == 4
    assert {run.info.status for run in everything(store_with_it)} == {"FINISHED"}
    for child in children.values():
        history = store_with_it.client.get_metric_history(child.info.run_id, "train/loss")
        assert [metric.step for metric in history] == [1, 2]
    assert not workspace_of(store_with_it, after.info.run_id).exists()
    with pytest.raises(BadSetting, match="is finished"):
        bench("run", "--resume", "mine", "--tracking-uri", store_with_it.uri)


def test_a_run_is_found_by_its_id_with_its_settings_and_its_fold(store_with_it):
    (mine,) = parents(store_with_it)
    found, only, run_id = resumed(mine.info.run_id[:8], uri=store_with_it.uri)
    assert (found.completed(), only, run_id) == (config().completed(), None, mine.info.run_id)
    break_off(config(), store_with_it, only=2)  # one fold alone is another run
    assert len(parents(store_with_it)) == 2
    alone = parents(store_with_it)[-1].info.run_id
    assert resumed(alone, uri=store_with_it.uri)[1:] == (2, alone)


def test_a_fresh_run_takes_the_place_of_the_one_that_was_interrupted(store_with_it):
    (old,) = parents(store_with_it)
    store_with_it.client.update_run(old.info.run_id, status="RUNNING")  # as a killed process leaves it
    break_off(config(), store_with_it, fresh=True)
    old, fresh = parents(store_with_it)
    assert (old.info.status, fresh.info.status) == ("KILLED", "KILLED")
    assert not workspace_of(store_with_it, old.info.run_id).exists()
    with pytest.raises(BadSetting, match=r"given up by --fresh.*start it anew"):
        resumed(old.info.run_id, uri=store_with_it.uri)
    break_off(config(), store_with_it)
    assert len(parents(store_with_it)) == 2
    assert parents(store_with_it)[0].info.end_time == old.info.end_time
    assert parents(store_with_it)[1].info.end_time > fresh.info.end_time
    store_with_it.client.set_terminated(fresh.info.run_id, "FINISHED")
    break_off(config(), store_with_it)  # a new one, not the old one
    assert len(parents(store_with_it)) == 3
    assert parents(store_with_it)[0].info.end_time == old.info.end_time


def test_a_fresh_run_of_other_settings_takes_the_place_of_its_namesake(store_with_it):
    (old,) = parents(store_with_it)
    break_off(config(train__lr=0.02), store_with_it, fresh=True)
    break_off(config(train__lr=0.02), store_with_it)  # and is not refused for the sake of the old one
    assert len(parents(store_with_it)) == 2
    assert not workspace_of(store_with_it, old.info.run_id).exists()


def test_a_fresh_fold_leaves_the_other_runs_alone(store_with_it):
    (old,) = parents(store_with_it)
    break_off(config(), store_with_it, only=2, fresh=True)
    break_off(config(), store_with_it)
    assert parents(store_with_it)[0].info.end_time > old.info.end_time


def test_settings_beside_resume_are_refused_in_a_sentence(store_with_it):
    said = r"settings of the run: leave out --epochs and --set and --fresh\.$"
    before = [run.to_dictionary() for run in everything(store_with_it)]
    with pytest.raises(BadSetting, match=said):
        bench("run", "--resume", "mine", "--quiet", "--epochs", 9, "--set", "seed=1", "--fresh")
    assert [run.to_dictionary() for run in everything(store_with_it)] == before


def test_a_run_that_mlflow_has_opened_never_goes_on_with_another(store_with_it, monkeypatch):
    (mine,) = parents(store_with_it)
    opened = store_with_it.client.create_run(store_with_it.experiment("theirs"))
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    break_off(config(), store_with_it)
    assert [run.info.run_id for run in parents(store_with_it)] == [mine.info.run_id, opened.info.run_id]
    assert parents(store_with_it)[0].info.end_time == mine.info.end_time


def change_code(store: Store, mine: Any) -> None:
    """As if `train.py` had been another when the run was interrupted."""
    code = code_of(config()) | {"train.py": "01234567"}
    store.client.set_tag(mine.info.run_id, CODE, digest(code))
    (workspace_of(store, mine.info.run_id) / "code.json").write_text(json.dumps(code))


def test_what_training_imports_is_looked_at_and_trials_depend_on_their_search_too():
    """In a process of its own, where nothing else is loaded. A board is known to what writes to the store."""
    script = (
        "import sys, bench.training.cross_validation, bench.datasets.lgg, bench.losses.combo, bench.models.unet\n"
        "for name in sorted(sys.modules):\n"
        "    if name.startswith('bench.'): print(name.removeprefix('bench.').replace('.', '/'))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name for name in found.stdout.split() if (PACKAGE / f"{name}.py").exists()}
    known = {name.removesuffix(".py") for name in code_of(config())}
    assert loaded - known == {"conditions", "leaderboard", "pictures", "ranking", "tables"}
    assert {"train", "splits", "losses/combo", "metrics/overlap", "postprocess"} <= known
    assert {"search/objective", "search/space"} <= {
        n.removesuffix(".py") for n in code_of(config(), besides="search/")
    }
    assert not any(name.startswith("search/") for name in known)
    for start in SHOWS:
        assert list(PACKAGE.glob(f"{start}*")), f"there is no {start}"


def test_changed_code_is_refused_and_shown(store_with_it):
    (mine,) = parents(store_with_it)
    change_code(store_with_it, mine)
    for given in ({}, {"resume": mine.info.run_id}):
        said = refused(store_with_it, config(), **given)
        assert f"train.py 01234567 -> {code_of(config())['train.py']}. " in said
        assert "--fresh" in said
    break_off(config(), store_with_it, fresh=True)
    assert len(parents(store_with_it)) == 2


def test_a_run_that_failed_by_itself_is_gone_on_with_only_by_the_same_code(store_with_it):
    (mine,) = parents(store_with_it)
    store_with_it.client.set_terminated(mine.info.run_id, "FAILED")
    break_off(config(), store_with_it)
    assert len(parents(store_with_it)) == 1
    store_with_it.client.set_terminated(mine.info.run_id, "FAILED")
    change_code(store_with_it, mine)
    assert "code has changed" in refused(store_with_it, config(), resume=mine.info.run_id)
    break_off(config(), store_with_it)
    assert len(parents(store_with_it)) == 2


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"train__lr": 0.02}, "train.lr 0.01 -> 0.02"),
        ({"seed": 1}, "run.seed 0 -> 1"),
        ({"dataset__seed": 1, "model__depth": 2}, "dataset.seed 0 -> 1, model.depth 1 -> 2"),
    ],
)
def test_other_settings_under_the_name_of_an_interrupted_run_are_refused_and_shown(
    store_with_it, changes, difference
):
    said = refused(store_with_it, config(**changes))
    assert f"settings: {difference}. " in said
    assert f"--resume {parents(store_with_it)[0].info.run_id[:8]}" in said


def test_other_data_are_refused(store_with_it):
    (mine,) = parents(store_with_it)
    store_with_it.client.set_tag(mine.info.run_id, "bench.data", "another")
    assert "other data" in refused(store_with_it, config())
    assert "other data" in refused(store_with_it, config(), resume=mine.info.run_id)


def test_another_name_is_another_command_only_where_settings_differ(store_with_it):
    break_off(config(name="yours"), store_with_it)
    assert len(parents(store_with_it)) == 1
    break_off(config(name="yours", train__lr=0.02), store_with_it)
    assert len(parents(store_with_it)) == 2


LOCK = """
import filelock, sys, time
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(workspace: Path) -> Iterator[None]:
    """Another process has the lock, until it is killed."""
    other = subprocess.Popen([sys.executable, "-c", LOCK, workspace / "lock"], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        other.stdout.readline()
        yield
    finally:
        other.kill()
        other.communicate()


@pytest.mark.parametrize("status", ["RUNNING", "KILLED"])
def test_a_run_at_work_in_another_process_is_refused_and_left_alone(store_with_it, status):
    (mine,) = parents(store_with_it)
    store_with_it.client.update_run(mine.info.run_id, status=status)
    with held_elsewhere(workspace_of(store_with_it, mine.info.run_id)):
        for given in ({}, {"resume": mine.info.run_id}):
            assert "at work in another process" in refused(store_with_it, config(), **given)
        break_off(config(), store_with_it, fresh=True)
    store_with_it.client.set_terminated(parents(store_with_it)[1].info.run_id, "FINISHED")
    break_off(config(), store_with_it)  # the lock went with its process
    assert [run.info.status for run in parents(store_with_it)] == ["KILLED", "FINISHED"]


def test_a_run_at_work_is_not_spoken_of_as_interrupted_because_its_code_is_another(store_with_it):
    (mine,) = parents(store_with_it)
    store_with_it.client.update_run(mine.info.run_id, status="RUNNING")
    change_code(store_with_it, mine)
    with held_elsewhere(workspace_of(store_with_it, mine.info.run_id)):
        assert "at work in another process" in refused(store_with_it, config())


def test_who_works_on_a_run_is_known_here_and_assumed_of_other_machines(store_with_it):
    (mine,) = parents(store_with_it)
    workspace = workspace_of(store_with_it, mine.info.run_id)
    assert not is_active(store_with_it, mine)
    with run_lock(workspace):
        assert is_active(store_with_it, mine)
    shutil.rmtree(workspace)
    assert not is_active(store_with_it, mine)
    assert is_active(Store("http://somewhere:5000", store_with_it.client), mine)


def test_an_interrupted_cell_of_a_suite_is_missing_and_gone_on_with(store_with_it, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(
        yaml.safe_dump({"base": MINE, "entries": {"mine": {}}, "budgets": {"smoke": {"train.epochs": 1}}})
    )
    suite, smoke = read_suite(file), read_suite(file, budget="smoke")
    (mine,) = parents(store_with_it)
    assert [s.state for s in states(suite, store_with_it)] == [MISSING]
    store_with_it.client.update_run(mine.info.run_id, status="RUNNING")  # as a killed process leaves it
    assert [s.state for s in states(suite, store_with_it)] == [MISSING]
    with held_elsewhere(workspace_of(store_with_it, mine.info.run_id)):
        assert [s.state for s in states(suite, store_with_it)] == [RUNNING]
    Budget.left = 0
    with pytest.raises(KeyboardInterrupt):  # the same entry at another budget is nobody's rival
        run_suite(smoke, uri=store_with_it.uri, quiet=True)
    Budget.left = None
    assert [s.state for s in states(smoke, store_with_it)] == [MISSING]
    (done,) = run_suite(suite, uri=store_with_it.uri, quiet=True)
    assert (done.state, done.run.info.run_id) == (DONE, mine.info.run_id)
    assert len(parents(store_with_it)) == 2


def test_a_fresh_suite_starts_anew_what_is_not_done_and_only_that(store_with_it, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"base": MINE, "entries": {"mine": {}, "other": {"seed": 1}}}))
    suite, (mine,) = read_suite(file), parents(store_with_it)
    change_code(store_with_it, mine)
    mine_now, other = run_suite(suite, uri=store_with_it.uri, quiet=True)
    assert (mine_now.state, other.state) == (FAILED, DONE)
    assert "Give --fresh to start anew" in mine_now.run.data.tags["bench.error"]
    again, same = run_suite(suite, uri=store_with_it.uri, fresh=True, quiet=True)
    assert (again.state, same.run.info.run_id) == (DONE, other.run.info.run_id)
    assert again.run.info.run_id not in (mine.info.run_id, mine_now.run.info.run_id)
    assert not workspace_of(store_with_it, mine.info.run_id).exists()


# Killed


def command(uri: str) -> list[str]:
    given = configure(SMALL).flat() | {"name": "mine"}
    chosen = {k: v for k, v in given.items() if k.startswith(("dataset", "split", "model", "train.e", "train.b"))}
    words = [w for k, v in chosen.items() for w in ("--set", f"{k}={v}")]
    return ["run", "--quiet", "--tracking-uri", uri, "--name", "mine", "--set", "checkpoint_every=0", *words]


KILLER = """
import os, signal, sys, time
from pathlib import Path
import bench.experiments.run  # once, for all that are killed
from bench.cli import app

folder, moments, words = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
for moment in moments:
    if not (child := os.fork()):
        app(words)
    while not list(folder.glob(moment)) and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)  # raises where it has ended by itself
    os.waitpid(child, 0)
"""


def killed(words: list[str], folder: Path, *moments: str) -> None:
    """Run a command in a process of its own, killed as soon as the first of these files is there; then again."""
    script = [sys.executable, "-c", KILLER, str(folder), ",".join(moments)]
    subprocess.run([*script, *words], check=True, timeout=200)


def steps(store: Store, run: Any) -> dict[str, list[int]]:
    """The steps of each metric, but for those that depend on the clock or on other runs."""
    names = [name for name in run.data.metrics if not name.startswith(("system/", "rank"))]
    return {n: [m.step for m in store.client.get_metric_history(run.info.run_id, n)] for n in names}


def test_a_process_killed_again_and_again_leaves_one_run_as_if_it_had_not_been(store, tmp_path, template):
    shutil.copytree(template, tmp_path / "undisturbed")
    calm = connect(f"sqlite:///{tmp_path / 'undisturbed' / 'mlflow.db'}")
    bench(*command(calm.uri))
    unfinished = tmp_path / "mlruns" / "unfinished"
    killed(command(store.uri), unfinished, "*/fold-0/epoch-000002.state", "*/fold-1/result.state")
    assert [run.info.status for run in parents(store)] == ["RUNNING"]
    bench(*command(store.uri))
    assert len(parents(store)) == 1
    assert {run.info.status for run in everything(store)} == {"FINISHED"}
    ours, theirs = find_run(store, "mine"), find_run(calm, "mine")
    assert ours.data.metrics["dice"] == theirs.data.metrics["dice"]
    pd.testing.assert_frame_equal(read_table(store, ours, "cases"), read_table(calm, theirs, "cases"))
    for one, other in zip(everything(store), everything(calm), strict=True):
        assert steps(store, one) == steps(calm, other)
    weights = [
        [path.read_bytes() for path in sorted((tmp_path / f"models-{n}").rglob("weights.safetensors"))]
        for n, (where, run) in enumerate(((store, ours), (calm, theirs)))
        if model_folders(where, run, tmp_path / f"models-{n}")
    ]
    assert len(weights[0]) == 3
    assert weights[0] == weights[1]
    assert list(unfinished.iterdir()) == []
