"""One fold: train on its training patients, choose by its validation patients, score its test patients once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.data.loader import SliceLoader
from bench.device import memory_in_use, out_of_memory
from bench.errors import TrainingError
from bench.masks import Masks
from bench.training.checkpoint import UNEXPECTED, Best, Checkpoints, DamagedState, read_state, write_state
from bench.training.experiment import Experiment
from bench.training.fold_records import record_fold
from bench.training.loop import Progress
from bench.training.step import Execution
from bench.types import SILENT, CaseScore, Fold, FoldResult, Recorder, Watch


class FoldWorkspace(Checkpoints):
    """The folder of one fold: checkpoints while it trains, and its result once it is done."""

    def __init__(self, folder: Path, every: float, watch: Watch) -> None:
        super().__init__(folder, every, watch)
        self.file, self.started = folder / "result.state", time.perf_counter()

    def save_result(self, result: FoldResult, masks: Masks) -> None:
        scores = [asdict(s) | {"slices": s.slices.to_dict("list")} for s in result.scores]
        seconds = result.earlier_seconds + time.perf_counter() - self.started
        kept = replace(result, scores=(), earlier_seconds=seconds)
        write_state(self.file, {"result": asdict(kept), "scores": scores, **masks.state()})

    def load_result(self) -> tuple[FoldResult, Masks] | None:
        """Return the result of a finished fold; None if the fold is unfinished or its file is damaged."""
        if not self.file.exists():
            return None
        try:
            kept = read_state(self.file)
            scores = tuple(CaseScore(**s | {"slices": pd.DataFrame(s["slices"])}) for s in kept["scores"])
            return FoldResult(**kept["result"] | {"scores": scores}), Masks.of_state(kept)
        except DamagedState as error:
            problem = str(error)
        except UNEXPECTED:
            problem = f"{self.file} is damaged (its contents are not a result)."
        self.watch.say(f"{problem} The fold continues from its last checkpoint.")
        return None


class FoldTraining:
    """A model in training on one fold, and everything that a checkpoint must hold."""

    KEPT = ("history", "scores", "step_tags", "peak_memory", "earlier_seconds")

    def __init__(self, experiment: Experiment, fold: Fold, loader: SliceLoader) -> None:
        self.experiment, self.fold, self.loader, self.started = experiment, fold, loader, time.perf_counter()
        self.seed = derive_seed(experiment.config.seed, fold.number)
        self.model = experiment.model(self.seed)
        self.predictor = experiment.predictor([self.model], loader)
        self.best = Best()
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []  # one row per epoch
        self.scores: list[float] = []  # of the validation patients after each epoch, higher is better
        self.step_tags: dict[str, str] = {}
        self.peak_memory, self.earlier_seconds = 0, 0.0

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.KEPT} | {
            "fold": self.fold.number,
            "progress": self.progress.state(),
            "model": self.model.state_dict(),
            "best": self.best.state(),
            "earlier_seconds": self.earlier_seconds + time.perf_counter() - self.started,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["fold"] != self.fold.number:
            raise ValueError("a checkpoint of another fold")
        self.progress = Progress(state["progress"])
        self.model.load_state_dict(state["model"])
        self.best.load(state["best"])
        for name in self.KEPT:
            setattr(self, name, state[name])

    def out_of_patience(self, patience: int | None) -> bool:
        """Return whether the last `patience` epochs brought no better validation score."""
        return patience is not None and bool(self.scores) and len(self.scores) - self.best.epoch >= patience

    def train(
        self, recorder: Recorder, execution: Execution, watch: Watch, workspace: FoldWorkspace | None
    ) -> None:
        """Train on the training patients; after every epoch, validate, record, and save a checkpoint that is due.

        The model has the weights of the best epoch in the end.
        """
        experiment, fold = self.experiment, self.fold
        task, settings = experiment.task, experiment.config.train
        if experiment.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(experiment.device)
        watch.fold(fold.number, len(experiment.folds), experiment.images_per_fold(fold))
        if self.history:
            watch.images(sum(row["images"] for row in self.history))
            watch.say(f"fold {fold.number} continues after epoch {len(self.history)}")
        epochs = experiment.train(
            self.model,
            self.loader,
            experiment.pack.rows(fold.train),
            seed=self.seed,
            scores=self.scores,
            execution=execution,
            watch=watch,
            progress=self.progress,
        )
        for epoch in () if self.out_of_patience(settings.patience) else epochs:
            value = task.validate(self.predictor, fold.val)
            self.scores.append(task.sign * value)
            self.best.consider(self.model, self.scores[-1], epoch.number)
            self.peak_memory = max(self.peak_memory, memory_in_use(experiment.device))
            row = {
                "train/loss": epoch.loss,
                "train/lr": epoch.lr,
                "train/images_per_second": epoch.images / epoch.seconds,
                f"val/{task.primary}": value,
            }
            self.history.append({"epoch": epoch.number, **row, "images": epoch.images, "seconds": epoch.seconds})
            recorder.metrics(row, epoch.number)
            watch.epoch(epoch.number, settings.epochs, epoch.loss, value)
            self.step_tags = {"plan.steps": epoch.how, "plan.parts_of_a_batch": str(epoch.parts)}
            if workspace is not None and workspace.due():
                workspace.save(epoch.number, self.state())
            if self.out_of_patience(settings.patience):
                break
        recorder.tags(self.step_tags)
        if task.sign > 0 and max(self.scores) == 0:
            watch.say(
                f"fold {fold.number} learnt nothing: its validation {task.primary} is 0 after every epoch. "
                "If most slices are empty, try train.warmup_epochs=1, train.positive_fraction=0.5 or "
                "loss.over=batch."
            )
        self.best.restore(self.model)

    def test(self) -> tuple[FoldResult, Masks]:
        """Choose the thresholds by validation patients, then score the test patients once."""
        task, history = self.experiment.task, self.history
        thresholds = task.thresholds(self.predictor, self.fold.val)
        tested = list(task.score(self.predictor, self.fold.test, thresholds))
        result = FoldResult(
            fold=self.fold.number,
            scores=tuple(score for score, _ in tested),
            thresholds=thresholds,
            best_epoch=self.best.epoch,
            best_score=task.sign * self.best.score,
            epochs=len(history),
            images=sum(row["images"] for row in history),
            seconds=sum(row["seconds"] for row in history),
            earlier_seconds=self.earlier_seconds,
            peak_memory=self.peak_memory,
        )
        return result, Masks.joined(masks for _, masks in tested)


def run_fold(
    experiment: Experiment,
    fold: Fold,
    loader: SliceLoader,
    recorder: Recorder,
    *,
    execution: Execution = "eager",
    watch: Watch = SILENT,
    workspace: FoldWorkspace | None = None,
) -> tuple[FoldResult, Masks]:
    """Train, choose, test and record one fold, continuing from the last checkpoint in `workspace`.

    Returns the result and the predicted masks of the test patients.
    """
    training = start_or_resume(experiment, fold, loader, workspace)
    try:
        training.train(recorder, execution, watch, workspace)
        result, masks = training.test()
    except TrainingError as error:
        raise TrainingError(f"fold {fold.number}: {error}") from error
    record_fold(experiment, result, masks, training.model, pd.DataFrame(training.history), recorder)
    return result, masks


def start_or_resume(
    experiment: Experiment, fold: Fold, loader: SliceLoader, workspace: FoldWorkspace | None
) -> FoldTraining:
    """Return the training of a fold as its newest checkpoint has left it, or at its start without one."""
    for state in workspace.undamaged() if workspace is not None else ():
        training = FoldTraining(experiment, fold, loader)
        try:
            training.restore(state)
        except UNEXPECTED as error:
            if out_of_memory(error):
                raise
            continue  # a half restored model is not used
        return training
    return FoldTraining(experiment, fold, loader)


def derive_seed(*parts: object) -> int:
    """Return a seed for something identified by `parts`, such as (run seed, fold): 48 bits of a SHA-256."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6])
