"""The loop: the right slices, the right rate, the right weights, and a sentence when it breaks."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config import Input, RunConfig, Train
from bench.data.loader import SliceLoader
from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting, TrainingError
from bench.training.checkpoint import read_state, write_state
from bench.training.loop import Progress, Recipe, steps_per_epoch
from bench.training.schedules import plateau
from bench.types import Watch
from tests.fakes import pack_of, tiny_pack

PACK = tiny_pack()
FEED = SliceLoader(PACK, Input(), torch.device("cpu"))
ROWS = np.arange(20)


class Encoded(nn.Module):
    """The smallest model with an encoder that keeps batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images))


class Offset(nn.Module):
    """One weight: the loss `mean` has the gradient 1 with respect to it, so each step moves it by its rate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight + 0 * images[:, :1]


def mean(logits: Tensor, masks: Tensor) -> Tensor:
    return logits.mean()


def loop(model: nn.Module, rows=ROWS, loader=FEED, **given):
    """`Recipe.train` with plain choices; what is no argument of it is a setting."""
    named = {"loss": F.binary_cross_entropy_with_logits, "augment": (), "schedule": lambda progress, scores: 1.0}
    named |= {k: given.pop(k) for k in tuple(named) if k in given}
    watch = Watch()
    watch.images = given.pop("tick", watch.images)
    how = {"seed": 0, "watch": watch} | {k: given.pop(k) for k in ("seed", "scores", "progress") if k in given}
    settings = Train(**({"epochs": 1, "batch_size": 4, "lr": 0.01, "weight_decay": 0} | given))
    return Recipe(config=RunConfig(train=settings), **named).train(model, loader, rows, **how)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


class Watcher:
    """An augmentation that changes nothing and keeps what passes."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []
        self.drawn: list[float] = []

    def __call__(self, images: Tensor, masks: Tensor, draws: SliceRandom) -> tuple[Tensor, Tensor]:
        self.masks += list(masks[:, 0])
        self.drawn += draws.uniform().tolist()
        return images, masks


# Epochs


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_the_loss_goes_down(optimizer):
    losses = [epoch.loss for epoch in loop(Encoded(), epochs=6, optimizer=optimizer, lr=0.05)]
    assert losses[-1] < 0.7 * losses[0]


def test_an_epoch_says_which_it_is_and_what_it_saw():
    ticks = []
    epochs = list(loop(Encoded(), rows=ROWS[:10], epochs=3, tick=ticks.append))
    assert [e.number for e in epochs] == [1, 2, 3]
    assert [e.images for e in epochs] == [8, 8, 8]  # two full batches of four; two slices are left over
    assert ticks == [4] * 6
    assert all(e.seconds > 0 for e in epochs)


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps():
    (epoch,) = loop(Offset(), loss=mean, optimizer="sgd", momentum=0, lr=1, clip=None)
    assert epoch.loss == pytest.approx(np.mean([0, -1, -2, -3, -4]))


@pytest.mark.parametrize(("slices", "batch", "steps"), [(10, 4, 2), (8, 4, 2), (3, 4, 1), (1, 1, 1)])
def test_only_full_batches_are_counted_and_there_is_always_one(slices, batch, steps):
    assert steps_per_epoch(slices, batch) == steps
    ticks = []
    list(loop(Encoded(), rows=ROWS[:slices], batch_size=batch, tick=ticks.append))
    assert len(ticks) == steps
    assert sum(ticks) == steps * min(batch, slices)


def test_each_epoch_shows_every_slice_once_in_another_order():
    watch = Watcher()
    list(loop(Encoded(), epochs=2, augment=[watch]))
    first, second = ([m.numpy().tobytes() for m in part] for part in (watch.masks[:20], watch.masks[20:]))
    assert Counter(first) == Counter(second) == Counter(m.astype(np.float32).tobytes() for m in PACK.masks)
    assert first != second


def test_only_the_rows_given_are_shown():
    watch = Watcher()
    list(loop(Encoded(), rows=np.array([3, 7, 11, 19]), augment=[watch]))
    assert {m.numpy().tobytes() for m in watch.masks} == {
        PACK.masks[row].astype(np.float32).tobytes() for row in (3, 7, 11, 19)
    }


def test_stopping_early_is_a_break():
    model = Encoded()
    for _ in loop(model, epochs=100):
        before = weights(model)
        break
    assert changed(model, before) == set()


# Rates


def test_every_step_has_the_rate_of_schedule_and_warmup():
    model, after, asked = Offset(), [0.0], []

    def halving(progress, scores):
        asked.append(progress)
        return 1 - progress / 2

    epochs = loop(
        model,
        rows=ROWS[:8],
        loss=mean,
        schedule=halving,
        tick=lambda images: after.append(-model.weight.item()),
        **{"epochs": 2, "optimizer": "sgd", "momentum": 0, "lr": 0.1, "warmup_epochs": 1},
    )
    last = [epoch.lr for epoch in epochs]
    assert asked == [0, 0.25, 0.5, 0.75]
    # The first step would be at rate 0; it is at one hundredth of an epoch.
    expected = [0.1 * 0.01 * 1, 0.1 * 0.51 * 0.875, 0.1 * 1 * 0.75, 0.1 * 1 * 0.625]
    assert np.diff(after) == pytest.approx(expected, rel=1e-5)
    assert last == pytest.approx(expected[1::2])


def test_a_schedule_reads_the_scores_that_the_caller_has_given_so_far():
    scores, read = [], []
    for epoch in loop(
        Offset(),
        rows=ROWS[:4],
        loss=mean,
        epochs=3,
        scores=scores,
        schedule=lambda p, s: read.append(list(s)) or 1,
    ):
        scores += [epoch.number / 10]  # between two epochs, in the list that the schedule reads
    assert read == [[], [0.1], [0.1, 0.2]]


def test_clipping_bounds_the_step():
    model, after = Offset(), [0.0]
    sgd = {"optimizer": "sgd", "momentum": 0, "lr": 0.1}
    tick = lambda images: after.append(-model.weight.item())  # noqa: E731
    list(loop(model, loss=lambda logits, masks: 1000 * logits.mean(), clip=0.5, tick=tick, **sgd))
    assert np.diff(after) == pytest.approx([0.05] * 5, rel=1e-4)
    free = Offset()
    list(loop(free, rows=ROWS[:4], loss=lambda logits, masks: 1000 * logits.mean(), clip=None, **sgd))
    assert free.weight.item() == pytest.approx(-100)


# Freezing


def test_a_frozen_encoder_keeps_its_weights_and_batch_statistics_until_it_thaws():
    model, seen = Encoded(), []
    before = weights(model)
    for epoch in loop(model, epochs=3, freeze_epochs=1, freeze_lr=0.3):
        seen.append(changed(model, before))
        assert model.encoder.training is (epoch.number > 1)
    inside = {name for name in before if name.startswith("encoder.")}
    assert seen[0] == {"head.weight", "head.bias"}
    assert inside - {"encoder.0.bias"} <= seen[1]  # batch norm takes the bias away again


def test_each_stage_has_its_own_rate_schedule_and_scores():
    scores, asked = [], []

    def schedule(progress, seen):
        asked.append((progress, list(seen)))
        return 1.0

    rates = []
    for epoch in loop(
        Encoded(),
        rows=ROWS[:4],
        schedule=schedule,
        scores=scores,
        **{"epochs": 4, "freeze_epochs": 2, "freeze_lr": 0.3, "lr": 0.1},
    ):
        rates.append(epoch.lr)
        scores.append(epoch.number)
    assert rates == [0.3, 0.3, 0.1, 0.1]
    assert asked == [(0, []), (0.5, [1]), (0, []), (0.5, [3])]


def test_freezing_needs_an_encoder():
    with pytest.raises(BadSetting, match="freeze_epochs needs a model with an encoder"):
        next(loop(Offset(), epochs=2, freeze_epochs=1))


# Which slices


@pytest.mark.parametrize(("fraction", "positive"), [(0.5, 10), (0.1, 2), (0.9, 18), (None, 16)])
def test_slices_with_tumour_have_the_share_asked_for(fraction, positive):
    """16 of the 20 slices have tumour; an epoch is as long as without the setting."""
    watch = Watcher()
    list(loop(Encoded(), positive_fraction=fraction, augment=[watch]))
    assert len(watch.masks) == 20
    assert sum(bool(m.any()) for m in watch.masks) == positive


def test_no_slice_is_shown_again_before_all_of_its_kind_were():
    watch = Watcher()
    list(loop(Encoded(), positive_fraction=0.9, augment=[watch]))
    times = Counter(m.numpy().tobytes() for m in watch.masks if m.any())
    assert len(times) == 16
    assert max(times.values()) == 2
    assert len(set(watch.drawn)) == 20


def test_a_share_of_tumour_is_ignored_where_all_slices_are_alike():
    watch = Watcher()
    list(loop(Encoded(), rows=np.flatnonzero(~PACK.index["positive"]), positive_fraction=0.5, augment=[watch]))
    assert len(watch.masks) == 4


# Repeating


def trained(seed: int = 0, **given) -> dict[str, Tensor]:
    model = Encoded()

    def jitter(images, masks, draws):
        return images + 0.1 * draws.normal(*images.shape[1:]), masks

    list(loop(model, epochs=2, seed=seed, augment=[jitter], **given))
    return weights(model)


def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_gives_others():
    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in ("head.weight", "encoder.0.weight"))


def test_watching_changes_nothing():
    def busy(images):
        np.random.default_rng().random(), torch.rand(3)

    quiet, watched = trained(), trained(tick=busy)
    assert all(torch.equal(quiet[name], watched[name]) for name in quiet)


# Going on


class Dropping(Encoded):
    """Draws from torch's own generator in every step."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.dropout(self.encoder(images), 0.5, self.training))


def jitter(images: Tensor, masks: Tensor, draws: SliceRandom) -> tuple[Tensor, Tensor]:
    return images + 0.1 * draws.normal(*images.shape[1:]), masks


def reached(model: nn.Module, scores: list[float], progress: Progress, until: int, **given) -> list[tuple]:
    """Train up to epoch `until`, no score better than the last; gives number, loss and rate of each epoch."""
    told = []
    halving = lambda share, seen: plateau(share, seen, factor=0.5, patience=0)  # noqa: E731
    for epoch in loop(model, scores=scores, progress=progress, schedule=halving, augment=[jitter], **given):
        scores.append(-epoch.number)
        told.append((epoch.number, epoch.loss, epoch.lr))
        if epoch.number == until:
            break
    return told


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "adamw", "weight_decay": 0.01, "freeze_epochs": 2, "freeze_lr": 0.03},
        {"optimizer": "adam", "warmup_epochs": 2.5},
        {"optimizer": "sgd", "positive_fraction": 0.5, "freeze_epochs": 1},
        {"optimizer": "sgd", "momentum": 0},
    ],
)
def test_going_on_after_any_epoch_gives_the_weights_of_never_having_stopped(tmp_path, given):
    whole, given = Dropping(), given | {"epochs": 5}
    told = reached(whole, [], Progress(), 5, **given)
    for stop in range(1, 5):
        first, scores, progress = Dropping(), [], Progress()
        begun = reached(first, scores, progress, stop, **given)
        write_state(tmp_path / "state", {"model": first.state_dict(), "train": progress.state()})
        kept = read_state(tmp_path / "state")
        second = Dropping()
        second.load_state_dict(kept["model"])
        torch.rand(stop)  # another process stands elsewhere
        assert begun + reached(second, scores, Progress(kept["train"]), 5, **given) == told
        assert changed(second, weights(whole)) == set()


def test_going_on_from_the_end_trains_nothing():
    model, progress = Encoded(), Progress()
    list(loop(model, epochs=2, progress=progress))
    assert list(loop(model, epochs=2, progress=Progress(progress.state()))) == []


def test_a_batch_that_had_to_be_cut_stays_cut():
    class Small(Encoded):
        """Fits two slices."""

        def forward(self, images: Tensor) -> Tensor:
            if self.training and len(images) > 2:
                raise torch.OutOfMemoryError("no more")
            return super().forward(images)

    model, progress = Small(), Progress()
    assert [epoch.parts for epoch in loop(model, epochs=1, progress=progress)] == [2]
    again = loop(Encoded(), epochs=2, progress=Progress(progress.state()))  # which would fit whole
    assert [(epoch.number, epoch.parts) for epoch in again] == [(2, 2)]


# Precision and breakdown


@pytest.mark.parametrize(("precision", "on"), [("auto", False), ("bfloat16", True)])
def test_on_a_cpu_a_model_computes_in_float32_unless_told_otherwise(precision, on):
    model, seen = Encoded(), []
    model.head.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    (epoch,) = loop(model, precision=precision)
    assert set(seen) == {torch.bfloat16 if on else torch.float32}
    assert np.isfinite(epoch.loss)


def test_a_loss_that_is_not_a_number_names_the_slices_of_its_batch():
    """Slice 3 of P2 is all tumour, and the loss cannot stand it."""
    masks = PACK.masks.copy()
    masks[12] = 1
    loader = SliceLoader(pack_of(PACK.images, masks, PACK.index["case"].tolist()), Input(), torch.device("cpu"))
    batches = []

    def fragile(logits, masks):
        batches.append([m.numpy().tobytes() for m in masks[:, 0]])
        return logits.mean() + torch.where(masks.mean((1, 2, 3)) == 1, torch.nan, 0).sum()

    with pytest.raises(TrainingError, match="the loss is not a number in epoch 1, step ") as caught:
        list(loop(Offset(), loader=loader, loss=fragile))
    full = np.ones((32, 32), np.float32).tobytes()
    broken = next(i for i, batch in enumerate(batches) if full in batch)
    assert f"step {broken + 1}, on " in str(caught.value)
    named = re.findall(r"P(\d) slice (\d)", str(caught.value))
    assert ("2", "3") in named
    assert sorted(masks[int(c) * 5 + int(s) - 1].astype(np.float32).tobytes() for c, s in named) == sorted(
        batches[broken]
    )
