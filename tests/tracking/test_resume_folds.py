"""An interrupted fold that is continued ends exactly as if it had not been interrupted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bench.data.loader import SliceLoader
from bench.overrides import configure
from bench.training.checkpoint import read_state, write_state
from bench.training.cross_validation import cross_validate
from bench.training.experiment import Experiment, resolve
from bench.training.fold import FoldWorkspace, run_fold
from bench.types import FoldResult, Watch
from tests.fakes import MemoryRecorder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]

SETTINGS = {
    "dataset": {"name": "phantom", "patients": 6, "size": 32, "slices": 6, "institutions": 2},
    "split.folds": 3,
    "model": {"name": "unet", "base": 2, "depth": 1},
    "evaluate.metrics": ["dice", "precision"],
    "train": {"epochs": 3, "batch_size": 4, "lr": 0.01},
    "checkpoint_every": 0,
    "device": "cpu",
}


class InterruptingWatch(Watch):
    """Interrupts when an event happens for the n-th time; counts events and keeps messages."""

    def __init__(self, event: str = "", n: int = 0) -> None:
        self.event, self.n, self.count = event, n, Counter()
        self.messages: list[str] = []

    def _happens(self, event: str) -> None:
        self.count[event] += 1
        if (event, self.count[event]) == (self.event, self.n):
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.messages.append(text)

    def images(self, count: int) -> None:
        self._happens("images")

    def epoch(self, number: int, of: int, loss: float, score: float) -> None:
        self._happens("epoch")

    def scored(self, number: int, values: Any) -> None:
        self._happens("scored")


class InterruptingRecorder(MemoryRecorder):
    """Interrupts when one of its methods is called in the fold of this name."""

    def __init__(self, method: str, fold: str = "", name: str = "") -> None:
        super().__init__()
        self.method, self.fold = method, fold
        if name == fold:
            setattr(self, method, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def child(self, name: str, tags: Any = None) -> Iterator[MemoryRecorder]:
        self.children[name] = InterruptingRecorder(self.method, self.fold, name)
        yield self.children[name]


def interruption(moment: str | tuple[str, int], fold: str = "") -> tuple[MemoryRecorder, InterruptingWatch]:
    """A recorder and a watch that interrupt at a call of the recorder, or at the n-th event of the watch."""
    if isinstance(moment, tuple):
        return MemoryRecorder(), InterruptingWatch(*moment)
    return InterruptingRecorder(moment, fold), InterruptingWatch()


def weights_of(recorder: MemoryRecorder) -> bytes:
    return recorder.paths["model"]["weights.safetensors"]


def without_times(table: pd.DataFrame) -> pd.DataFrame:
    return table[[c for c in table.columns if "second" not in c]]


def timeless_metrics(values: dict[str, list[tuple[int, float]]]) -> dict[tuple[str, int], float]:
    """Metrics by name and step, without measured times."""
    return {(k, step): v for k, steps in values.items() if "second" not in k for step, v in steps}


def comparable(result: FoldResult) -> dict[str, Any]:
    measured = ("seconds", "earlier_seconds", "peak_memory", "scores")
    scores = [(s.case, repr(s.values), s.counts, s.slices.to_csv()) for s in result.scores]
    return {k: v for k, v in asdict(result).items() if k not in measured} | {"scores": scores}


@dataclass
class CompleteFold:
    """A fold that ran without interruption."""

    experiment: Experiment
    loader: SliceLoader
    recorder: MemoryRecorder
    result: FoldResult
    masks: Any

    def run_again(
        self, recorder: MemoryRecorder, folder: Path, watch: InterruptingWatch
    ) -> tuple[FoldResult, Any]:
        workspace, fold = FoldWorkspace(folder, 0, watch), self.experiment.folds[0]
        return run_fold(self.experiment, fold, self.loader, recorder, watch=watch, workspace=workspace)


def run_complete_fold(**changes: Any) -> CompleteFold:
    experiment = resolve(configure(SETTINGS, {k.replace("__", "."): v for k, v in changes.items()}))
    loader = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))
    recorder = MemoryRecorder()
    return CompleteFold(experiment, loader, recorder, *run_fold(experiment, experiment.folds[0], loader, recorder))


@pytest.fixture(scope="module")
def trained(cache: Path) -> CompleteFold:
    """Three epochs; the learning rate of each depends on the scores before."""
    return run_complete_fold(
        train__schedule={"name": "plateau", "patience": 0, "factor": 0.5}, evaluate__threshold="validation"
    )


@pytest.fixture(scope="module")
def stopped(cache: Path) -> CompleteFold:
    """Up to nine epochs at a rate that learns almost nothing, until two bring no improvement."""
    return run_complete_fold(train__epochs=9, train__patience=2, train__lr=1e-10)


WHILE_TRAINING = [("epoch", n) for n in (1, 2, 3)] + [("images", 5)]
AFTER_TRAINING = ["tags", "table", "model"]  # before it is scored, before scores are logged, before it is complete
MOMENTS = [("trained", moment) for moment in (*WHILE_TRAINING, *AFTER_TRAINING)]


@pytest.mark.parametrize(("case", "moment"), [*MOMENTS, ("stopped", ("epoch", 3)), ("stopped", "tags")], ids=str)
def test_an_interrupted_fold_ends_as_if_it_had_not_been_interrupted(case, moment, request, tmp_path):
    complete: CompleteFold = request.getfixturevalue(case)
    recorder, first = interruption(moment)
    with pytest.raises(KeyboardInterrupt):
        complete.run_again(recorder, tmp_path, first)
    torch.rand(7)  # the random state of another process is different
    after, second = MemoryRecorder(), InterruptingWatch()
    result, masks = complete.run_again(after, tmp_path, second)
    assert weights_of(after) == weights_of(complete.recorder)
    assert comparable(result) == comparable(complete.result)
    assert all(np.array_equal(masks[case], complete.masks[case]) for case in complete.masks)
    assert after.labels == complete.recorder.labels
    assert after.tables.keys() == complete.recorder.tables.keys()
    for name, table in complete.recorder.tables.items():
        pd.testing.assert_frame_equal(without_times(after.tables[name]), without_times(table), check_exact=True)
    before, expected = timeless_metrics(recorder.values), timeless_metrics(complete.recorder.values)
    assert before | timeless_metrics(after.values) == expected
    assert before == {which: expected[which] for which in before}
    lost = moment[0] == "epoch" if isinstance(moment, tuple) else 0  # the epoch that was not yet saved
    assert first.count["epoch"] + second.count["epoch"] == result.epochs + lost


def test_the_fold_with_patience_stops_two_epochs_after_the_best(stopped):
    """Otherwise the cases of `stopped` above would test nothing."""
    assert 3 <= stopped.result.epochs == stopped.result.best_epoch + 2 < 9


@pytest.fixture(scope="module")
def crossed(cache: Path) -> tuple[Experiment, MemoryRecorder, Any]:
    experiment, recorder = resolve(configure(SETTINGS)), MemoryRecorder()
    return experiment, recorder, cross_validate(experiment, recorder)


@pytest.mark.parametrize(
    ("moment", "again", "epochs"),
    [
        (("epoch", 5), {"fold 1", "fold 2"}, 2 + 3),  # before the second epoch of the second fold was saved
        ("model", {"fold 1", "fold 2"}, 3),  # the second fold was scored, its result not yet saved
        (("scored", 3), set(), 0),
    ],
)
def test_finished_folds_are_not_trained_again(crossed, tmp_path, moment, again, epochs):
    experiment, undisturbed, expected = crossed
    one, first = interruption(moment, "fold 1")
    with pytest.raises(KeyboardInterrupt):
        cross_validate(experiment, one, watch=first, workspace=tmp_path)
    two, watch = MemoryRecorder(), InterruptingWatch()
    outcome = cross_validate(experiment, two, watch=watch, workspace=tmp_path)
    assert two.children.keys() == again
    assert (watch.count["epoch"], watch.count["scored"]) == (epochs, 3)
    assert not [text for text in watch.messages if "checkpoint" in text]
    assert [comparable(r) for r in outcome.results] == [comparable(r) for r in expected.results]
    assert outcome.values == pytest.approx(expected.values, rel=0, abs=0, nan_ok=True)
    for name, table in undisturbed.tables.items():
        pd.testing.assert_frame_equal(two.tables[name], table, check_exact=True)
    children = one.children | two.children
    for name, child in undisturbed.children.items():
        assert weights_of(children[name]) == weights_of(child)


def test_the_logged_time_of_a_run_is_that_of_all_its_processes(monkeypatch, tmp_path):
    """Epochs take 100 seconds each and nothing else any; a repeated epoch is counted once."""
    seconds = 0.0

    class Slow(InterruptingWatch):
        def epoch(self, number: int, of: int, loss: float, score: float) -> None:
            nonlocal seconds
            seconds += 100
            super().epoch(number, of, loss, score)

    clock = SimpleNamespace(perf_counter=lambda: seconds)
    for module in ("cross_validation", "fold"):
        monkeypatch.setattr(f"bench.training.{module}.time", clock)
    experiment = resolve(configure(SETTINGS))
    for moment in ("epoch", 2), ("epoch", 4):  # in the first fold, then in the second
        with pytest.raises(KeyboardInterrupt):
            cross_validate(experiment, MemoryRecorder(), watch=Slow(*moment), workspace=tmp_path)
    outcome = cross_validate(experiment, MemoryRecorder(), watch=Slow(), workspace=tmp_path)
    assert outcome.costs["cost/wall_seconds"] == 3 * 3 * 100


def test_a_damaged_result_is_made_again_from_the_last_checkpoint(crossed, tmp_path):
    experiment, _, expected = crossed
    cross_validate(experiment, MemoryRecorder(), only=0, workspace=tmp_path)
    (file,) = tmp_path.rglob("result.state")
    file.write_bytes(file.read_bytes()[:-1])
    watch = InterruptingWatch()
    outcome = cross_validate(experiment, MemoryRecorder(), only=0, watch=watch, workspace=tmp_path)
    assert comparable(outcome.results[0]) == comparable(expected.results[0])
    assert watch.count["epoch"] == 0
    assert any("damaged" in text for text in watch.messages)


CONTENTS = {
    "result.state": {"result": {"words": 1}, "scores": []},
    "epoch-000003.state": {"progress": {}, "model": {}},
    "another fold": None,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_checkpoint_with_unexpected_contents_gives_way_to_the_one_before(crossed, tmp_path, name):
    """Their checksums are right, as if they were copied from another run, or from another fold."""
    experiment, _, expected = crossed
    cross_validate(experiment, MemoryRecorder(), only=0, workspace=tmp_path)
    (result,) = tmp_path.rglob("result.state")
    newest, older = sorted(tmp_path.rglob("epoch-*.state"), reverse=True)
    if name == "another fold":
        newest.write_bytes(older.read_bytes())
        write_state(newest, read_state(newest) | {"fold": 1})
    else:
        write_state(result.parent / name, CONTENTS[name])
    if name != result.name:
        result.unlink()
    watch = InterruptingWatch()
    outcome = cross_validate(experiment, MemoryRecorder(), only=0, watch=watch, workspace=tmp_path)
    assert comparable(outcome.results[0]) == comparable(expected.results[0])
    assert watch.count["epoch"] == (name != result.name)
    assert sum("is damaged (its contents" in text for text in watch.messages) == 1
