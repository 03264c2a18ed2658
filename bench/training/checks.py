"""What is refused before anything is trained: leaking folds, settings that contradict the data, broken plugins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench import registry
from bench.data.fingerprints import shared_images
from bench.data.loader import SliceLoader
from bench.data.pack import Pack
from bench.data.slice_random import SliceRandom
from bench.errors import BadSetting, LeakageError
from bench.inference.sliding_window import pad_to_stride
from bench.training.step import Loss
from bench.training.tasks.segmentation import needs_spacing
from bench.types import Fold, Stack, Watch

if TYPE_CHECKING:
    from bench.training.experiment import Experiment


def check_folds(pack: Pack, folds: Sequence[Fold], *, leaky: bool) -> None:
    """Check what a split scheme returned. Raises `BadSetting`, and `LeakageError` for images on two sides.

    Every patient must be in the data and tested at most once. With a `leaky` split, whose point is the leak,
    images may be shared.
    """
    if not (isinstance(folds, Sequence) and folds and all(isinstance(fold, Fold) for fold in folds)):
        raise BadSetting("the split must return a list of `bench.types.Fold`, one or more.")
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
    if experiment.activation == "softmax" and task.segments and not pack.structures.exclusive:
        raise BadSetting(
            f"the loss {config.loss.name} is for structures that exclude each other, but "
            f"{', '.join(pack.structures.names)} may overlap. Use another loss, such as bce_dice."
        )
    asked = (*config.evaluate.metrics, config.evaluate.primary) if task.segments else ()
    if "row_mm" not in pack.index and (unknown := [name for name in asked if needs_spacing(name)]):
        raise BadSetting(
            f"the metric '{unknown[0]}' needs the size of a pixel, which this data set does not state. Use one in "
            "pixels, such as hd95."
        )
    if config.input.crop and config.input.image_size is None:
        raise BadSetting(
            f"input.crop={config.input.crop} resizes every crop to input.image_size. Give one, such as "
            "--image-size 128."
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

    Returns its image (1, C, H, W) and mask (1, K, H, W) as the model would see them. Raises `BenchError`.
    """
    loader = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))
    images, masks = loader.load(np.array([0]))
    for name, change in zip((*experiment.config.augment, "input.patch"), experiment.augment, strict=False):
        changed = change(images, masks, SliceRandom(0, 0, [0], channels=loader.channel_names))
        if not (isinstance(changed, tuple) and len(changed) == 2 and all(isinstance(t, Tensor) for t in changed)):
            raise BadSetting(f"{registry.augmentation[name].label} must return two tensors, images and masks.")
        images, masks = changed
    return images, masks


def try_model(experiment: Experiment, model: nn.Module, images: Tensor, masks: Tensor, watch: Watch) -> int:
    """Try what will be trained on one slice (1, C, H, W); return the fewest slices that the model can train on.

    What others wrote is tried wholly: model, loss, backward pass, schedule and metrics. Ours are not, as their
    tests do that. Raises `BadSetting` for whatever they raise, and for results of a wrong type or shape. The model
    must be a throwaway one, as its batch statistics change.
    """
    config, task = experiment.config, experiment.task
    model_entry, loss_entry = registry.model[config.model.name], registry.loss[config.loss.name]
    for entry in (model_entry, loss_entry):
        if entry.fixed and not entry.built_in:
            watch.say(
                f"note: {', '.join(entry.fixed)} of {entry.label} is no setting, because it can be passed by "
                "position. Write `*` before it"
            )
    for name in (*(config.evaluate.metrics or registry.metric), config.evaluate.primary) if task.segments else ():
        if not registry.metric[name].built_in:
            _try_metric(registry.metric[name])
    with registry.errors_named(f"train.schedule={config.train.schedule.name} fails", "It must return a number."):
        float(experiment.schedule(0.0, ()))
    padded = pad_to_stride(images)
    smallest = _find_smallest_batch(model_entry, model, padded)
    if not (model_entry.built_in and loss_entry.built_in):
        side = task.output_shape or padded.shape[-2:]
        target = task.target(masks.repeat(2, 1, 1, 1))
        logits = _try_forward(model_entry, model, padded.repeat(2, 1, 1, 1), (*target.shape[:2], *side), watch)
        _try_loss(loss_entry, experiment.loss, logits[..., : target.shape[-2], : target.shape[-1]], target)
    return smallest


def check_batch(experiment: Experiment) -> None:
    """Raise `BadSetting` if a batch is smaller than the model can be trained on."""
    slices = min(len(experiment.pack.rows(fold.train)) for fold in experiment.folds)
    if min(experiment.config.train.batch_size, slices) < experiment.smallest_batch:
        raise BadSetting(
            f"{experiment.config.model.name} needs a batch of {experiment.smallest_batch} or more. "
            "Give --batch-size."
        )


def _find_smallest_batch(entry: registry.Entry, model: nn.Module, image: Tensor) -> int:
    """Return what the model's facts say, or else 2 if a batch norm in training mode refuses a single image.

    It does so behind global pooling, where a channel of one image has a single value. For a model of ours, a part
    of the image is enough: two pixels a side remain at 1/32 of the resolution.
    """
    stated = int(entry.facts.get("smallest_batch", 1))
    if entry.built_in:
        side = max(64, entry.facts.get("smallest_image", 1))
        image = image[..., :side, :side]
    if stated == 1 and isinstance(model, nn.Module) and any(isinstance(m, _BatchNorm) for m in model.modules()):
        with registry.errors_named(f"{entry.label} fails on an image of {tuple(image.shape)}", _model_must(image)):
            try:
                with torch.no_grad():
                    model.train()(image)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                return 2
    return stated


def _model_must(images: Tensor) -> str:
    return f"It must take images of {images.shape[1]} channels and return a logit per pixel, or per slice."


def _try_forward(
    entry: registry.Entry, model: nn.Module, images: Tensor, shape: tuple[int, ...], watch: Watch
) -> Tensor:
    """Return the logits of a model, which must have this shape. Raises `BadSetting`."""
    if not isinstance(model, nn.Module):
        raise BadSetting(f"{entry.label} returns {type(model).__name__}. It must return a `torch.nn.Module`.")
    with registry.errors_named(f"{entry.label} fails on images of {tuple(images.shape)}", _model_must(images)):
        logits = model.train()(images)
    returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if returned != shape:
        raise BadSetting(
            f"{entry.label} returns {returned} for images of {tuple(images.shape)}. It must return a logit per "
            f"{'pixel' if shape[-2:] == images.shape[-2:] else 'slice'}, {shape}."
        )
    if not logits.requires_grad:
        raise BadSetting(
            f"the output of {entry.label} depends on no parameter. Do not detach it, or give it some."
        )
    if logits.min() >= 0 and 0 < logits.max() <= 1:
        watch.say(
            f"warning: all outputs of {entry.label} are between 0 and 1. It must return logits: a sigmoid at its "
            "end must be removed, or everything is predicted as tumour"
        )
    assert isinstance(logits, Tensor)
    return logits


def _try_loss(entry: registry.Entry, loss: Loss, logits: Tensor, target: Tensor) -> None:
    """Compute a loss and its gradients. Raises `BadSetting`."""
    value = loss(logits, target)
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad or not value.isfinite():
        what = type(value).__name__
        if isinstance(value, Tensor):
            gradient = "with" if value.requires_grad else "without"
            what = str(tuple(value.shape)) if value.ndim else f"{value.item()} {gradient} a gradient"
        raise BadSetting(f"{entry.label} returns {what}. {registry.MUST['loss']} Do not detach it.")
    with registry.errors_named(f"the backward pass of {entry.label} fails", registry.MUST["loss"]):
        value.backward()  # type: ignore[no-untyped-call]


def _try_metric(entry: registry.Entry) -> None:
    """Compute a metric of a small tumour that is found in part, and of empty masks. Raises `BadSetting`."""
    truth = np.zeros((2, 8, 8), bool)
    truth[0, 2:5, 2:5] = True
    metric = entry.bind({})
    for mask in (truth, np.zeros_like(truth)):
        value = metric(Stack(mask, np.roll(mask, 1, axis=1).astype(np.float32), spacing=np.ones((2, 2))))
        with registry.errors_named(f"{entry.label} fails", registry.MUST["metric"]):
            if isinstance(value, str):
                raise TypeError("it returns text")
            float(value)
