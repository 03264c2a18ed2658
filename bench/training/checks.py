"""What is refused before anything is trained: leaking folds, settings that contradict the data, broken plugins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from bench import registry
from bench.data.fingerprints import shared_images
from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting, LeakageError
from bench.types import Fold

if TYPE_CHECKING:
    from bench.training.experiment import Experiment


def check_folds(pack: Pack, folds: Sequence[Fold], *, leaky: bool) -> None:
    """Check what a split scheme returned. Raises `BadSetting`, and `LeakageError` for images on two sides.

    Every patient must be in the data and tested at most once. With a `leaky` split, whose point is the leak,
    images may be shared.
    """
    known = set(pack.cases)
    for fold in folds:
        if unknown := sorted((fold.train | fold.val | fold.test) - known):
            raise BadSetting(
                f"fold {fold.number} has {len(unknown)} patient(s) not in the data, such as {unknown[0]}. "
                "A split must name patients as the column 'case' of the index does."
            )
    for one, other in combinations(folds, 2):
        if repeated := sorted(one.test & other.test):
            raise BadSetting(
                f"{repeated[0]} is tested in fold {one.number} and in fold {other.number}. "
                "A split must test every patient at most once; use seeds to repeat a run."
            )
    if not leaky:
        _refuse_shared_images(pack, folds)


def _refuse_shared_images(pack: Pack, folds: Sequence[Fold]) -> None:
    """Raise `LeakageError` if two patients on different sides of a fold have the same image."""
    groups = shared_images(pack)
    cases, slices = pack.index["case"].to_numpy(), pack.index["slice"].to_numpy()
    for fold, rows in product(folds, groups):
        parts = {fold.part(cases[row]): f"slice {slices[row]} of {cases[row]}" for row in rows}
        parts.pop(None, None)
        if len(parts) > 1:
            where = " and ".join(f"{what} ({part})" for part, what in parts.items())
            raise LeakageError(
                f"fold {fold.number} has one image on two sides: {where} are equal, pixel for pixel; "
                f"{len(groups)} image(s) belong to more than one patient. Remove the copies, or merge those "
                "patients into one. `bench data check` names the files."
            )


def check_settings(experiment: Experiment) -> None:
    """Check that the settings fit each other, the model and the data. Raises `BadSetting`."""
    config, task, pack = experiment.config, experiment.task, experiment.pack
    facts = registry.model[config.model.name].facts
    side = config.input.image_size or min(pack.masks.shape[1:])
    if config.folds_at_once > 1 and config.train.deterministic:
        raise BadSetting(
            "train.deterministic needs folds one after another, as parallel folds share one random generator. "
            "Leave folds_at_once at 1."
        )
    if config.train.freeze_epochs >= config.train.epochs:
        raise BadSetting("train.freeze_epochs must be smaller than train.epochs, or nothing trains the encoder.")
    slices = min(len(pack.rows(fold.train)) for fold in experiment.folds)
    if min(config.train.batch_size, slices) < experiment.smallest_batch:
        raise BadSetting(
            f"{config.model.name} needs a batch of {experiment.smallest_batch} or more. Give --batch-size."
        )
    if (patch := config.input.patch) is not None:
        if not task.segments:
            raise BadSetting(f"a {task.name} model judges whole slices. Leave out input.patch.")
        if patch.size > side:
            raise BadSetting(
                f"input.patch.size = {patch.size} is larger than the {side} pixels of a slice. Give a smaller one."
            )
        side = patch.size
    if experiment.leaky and not task.segments:
        raise BadSetting(
            f"split={config.split.name} demonstrates a leak of segmentation scores only. Use split=patients."
        )
    if side < facts.get("smallest_image", 1):
        raise BadSetting(
            f"{config.model.name} needs slices of {facts['smallest_image']} pixels a side. Give --image-size."
        )


def try_input(experiment: Experiment) -> tuple[Tensor, Tensor]:
    """Load and augment the first slice, so that wrong channels and broken augmentations show before training.

    Returns its image (1, C, H, W) and mask (1, 1, H, W) as the model would see them. Raises `BenchError`.
    """
    loader = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))
    images, masks = loader.load(np.array([0]))
    for change in experiment.augment:
        images, masks = change(images, masks, SliceRandom(0, 0, [0], channels=loader.channel_names))
    return images, masks


def try_model(experiment: Experiment, model: nn.Module, images: Tensor, masks: Tensor) -> None:
    """Run one slice through model and loss of a plugin. Raises `BadSetting` for outputs of a wrong shape."""
    name, target = experiment.config.model.name, experiment.task.target(masks)
    with torch.no_grad():
        logits = model.eval()(images)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != tuple(target.shape):
        raise BadSetting(
            f"the model '{name}' returns {shape} for images of {tuple(images.shape)}. It must return a logit per "
            f"{'pixel' if experiment.task.segments else 'slice'}, {tuple(target.shape)}."
        )
    value = experiment.loss(logits, target)
    if value.ndim:
        raise BadSetting(
            f"the loss '{experiment.config.loss.name}' returns {tuple(value.shape)}. It must return one number: "
            "the mean over the batch."
        )
