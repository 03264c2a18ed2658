"""The training loop: `Recipe.train`, a generator that yields an `Epoch` after each pass.

It knows neither validation nor tracking. The caller validates the model, records, keeps the best weights and stops
early with `break`; `scores` is the caller's list of validation scores, which schedules read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.config import RunConfig, Train
from bench.data.loader import SliceLoader
from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting, TrainingError
from bench.training.step import Execution, Loss, Stepper
from bench.types import SILENT, Epoch, Watch

Augment = Callable[[Tensor, Tensor, SliceRandom], tuple[Tensor, Tensor]]
Schedule = Callable[[float, Sequence[float]], float]


class Progress:
    """The progress of training besides weights and scores: `Recipe.train` keeps it here and can continue from it.

    `state()` is called between two epochs. On the same device with the same threads, continuing gives the same
    weights as training without interruption.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._from = state
        self.epoch = int(state["epoch"]) if state else 0
        if state is not None:  # used only after training has begun, when it is too late for another checkpoint
            torch.Generator().set_state(state["random"])
            if not isinstance(state["optimizer"], dict) or int(state["parts"]) < 1 or "random_cuda" not in state:
                raise ValueError("the state of another program")
        self._step: Stepper | None = None

    def state(self) -> dict[str, Any]:
        assert self._step is not None
        device = self._step.device
        return {
            "epoch": self.epoch,
            "optimizer": self._step.optimizer.state_dict()["state"],
            "parts": self._step.parts,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def enter(self, step: Stepper, first: int) -> None:
        """Start a stage that begins with epoch `first`; restore its optimizer if the state is of that stage."""
        self._step, state = step, self._from
        if state is None:
            return
        self._from = None
        if self.epoch >= first:
            own = step.optimizer.state_dict()["param_groups"]
            step.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": own})
            step.parts = state["parts"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and step.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], step.device)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How models are trained. `target` turns masks (B, K, H, W) into what the loss compares with."""

    config: RunConfig
    loss: Loss
    augment: tuple[Augment, ...]
    schedule: Schedule
    target: Callable[[Tensor], Tensor] = lambda masks: masks
    smallest_batch: int = 1  # the fewest slices that the model can be trained on

    def train(
        self,
        model: nn.Module,
        loader: SliceLoader,
        rows: NDArray[np.int64],
        *,
        seed: int,
        scores: Sequence[float] = (),
        execution: Execution = "eager",
        watch: Watch = SILENT,
        progress: Progress | None = None,
    ) -> Iterator[Epoch]:
        """Train `model` in place on these rows of the pack, yielding after every epoch.

        With `freeze_epochs` there are two stages, first with a frozen encoder, each with its own rate and its own
        run of the schedule. `execution` is that of `bench.training.step.Stepper`. `watch.images` is called after
        each step. `progress` is where to continue from; `model` and `scores` must be of the same epoch. Raises
        `TrainingError` on a loss that is not a number, naming the slices of the batch.
        """
        settings, table = self.config.train, loader.pack.index
        positive = table["positive"].to_numpy()[rows]
        size, steps = min(settings.batch_size, len(rows)), steps_per_epoch(len(rows), settings.batch_size)
        freeze, smallest, device = settings.freeze_epochs, self.smallest_batch, loader.device
        stages = (
            (1, freeze, settings.freeze_lr or settings.lr, True),
            (freeze + 1, settings.epochs, settings.lr, False),
        )
        encoder = _encoder_parameters(model) if freeze else []
        progress = progress or Progress()
        for first, last, rate, frozen in stages:
            if progress.epoch >= last:
                continue
            for parameter in encoder:
                parameter.requires_grad_(not frozen)
            step = Stepper(
                model, self.loss, settings, rate, device, execution=execution, smallest=smallest, say=watch.say
            )
            progress.enter(step, first)
            length = (last - first + 1) * steps
            earlier = min(first - 1, len(scores))
            for epoch in range(max(first, progress.epoch + 1), last + 1):
                _train_mode(model, frozen)
                started = time.perf_counter()
                losses, order = [], _order(rows, positive, settings, seed, epoch)
                batches = [order[at : at + size] for at in range(0, steps * size, size)]
                repeats = pd.Series(order).groupby(order).cumcount().to_numpy()
                keys = order + len(table) * repeats  # a repeated slice gets new random numbers
                units = loader.load_batches(batches)
                for number, (batch, (images, masks)) in enumerate(zip(batches, units, strict=True)):
                    done = (epoch - first) * steps + number
                    warmup = min(1.0, (done / steps + 1e-2) / (settings.warmup_epochs or 1e-2))
                    lr = rate * warmup * self.schedule(done / length, scores[earlier:])
                    slice_keys = keys[number * size :][: len(batch)].tolist()
                    draws = SliceRandom(seed, epoch, slice_keys, device, channels=loader.channel_names)
                    for change in self.augment:
                        images, masks = change(images, masks, draws)
                    losses.append(step(loader.normalise(images, batch), self.target(masks), lr))
                    watch.images(len(batch))
                values = torch.stack(losses).cpu()  # the only time in an epoch that waits for the device
                if not values.isfinite().all():
                    first_nan = int((~values.isfinite()).nonzero()[0])
                    raise TrainingError(_not_a_number(loader, batches[first_nan], epoch, first_nan))
                seconds = time.perf_counter() - started
                progress.epoch = epoch
                loss = float(values.mean())
                yield Epoch(epoch, loss, lr, steps * size, seconds, how=step.how, parts=step.parts)


def steps_per_epoch(slices: int, batch_size: int) -> int:
    """Return the number of full batches; epochs are shuffled, so other slices are left over each time."""
    return max(1, slices // batch_size)


def _order(
    rows: NDArray[np.int64], positive: NDArray[np.bool_], settings: Train, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the shuffled rows of an epoch; with `positive_fraction`, that share has tumour."""
    rng = np.random.default_rng((seed, epoch))
    if settings.positive_fraction is None or not 0 < positive.sum() < len(rows):
        return rng.permutation(rows)
    # The number of slices, and so the budget, stays the same: some are repeated and some left out.
    wanted = round(settings.positive_fraction * len(rows))
    parts = (_draw(rng, rows[positive], wanted), _draw(rng, rows[~positive], len(rows) - wanted))
    return rng.permutation(np.concatenate(parts))


def _draw(rng: np.random.Generator, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` rows, none repeated before all were used."""
    rounds = [rng.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count] if rounds else rows[:0]


def _encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters to freeze; those that the model never trains are left out."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise BadSetting("train.freeze_epochs needs a model with an encoder. Give --encoder, or set it to 0.")
    return [p for p in encoder.parameters() if p.requires_grad]


def _train_mode(model: nn.Module, frozen: bool) -> None:
    model.train()
    if frozen:
        assert isinstance(model.encoder, nn.Module)
        model.encoder.eval()  # a frozen encoder keeps its batch statistics too


def _not_a_number(loader: SliceLoader, batch: NDArray[np.int64], epoch: int, step: int) -> str:
    seen = loader.pack.index.iloc[batch]
    names = ", ".join(f"{case} slice {number}" for case, number in zip(seen["case"], seen["slice"], strict=True))
    return (
        f"the loss is not a number in epoch {epoch}, step {step + 1}, on {names}. "
        "Try a smaller train.lr, train.clip=1, or train.precision=float32."
    )
