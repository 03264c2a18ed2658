"""A configuration with everything in it found, bound and checked: whatever can be wrong is said here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench import registry
from bench.config import RunConfig, Train
from bench.device import find_device
from bench.draws import Draws
from bench.errors import BadSetting, LeakageError, UnknownName
from bench.feed import Feed, channel_numbers
from bench.pack import Pack, Source, by_slice, packed, shared_images
from bench.patches import random_patch
from bench.prepared import Tick, prepared
from bench.records import SILENT, Epoch, Watch
from bench.splits import Fold, split_hash
from bench.step import Execution, Loss
from bench.tasks import Task
from bench.tasks.presence import Presence
from bench.tasks.segmentation import Segmentation
from bench.train import Augment, Progress, Schedule, steps_per_epoch, train


@dataclass(frozen=True)
class Recipe:
    """What a run is made of."""

    config: RunConfig
    raw: Pack  # before preprocessing
    pack: Pack
    folds: tuple[Fold, ...]
    device: torch.device
    loss: Loss
    augment: tuple[Augment, ...]
    schedule: Schedule
    task: Task
    parameters: int

    @property
    def split_hash(self) -> str:
        return split_hash(self.folds)

    @property
    def leaky(self) -> bool:
        """Whether slices of one patient are on two sides of the split: to show the leak, never to be ranked."""
        return _leaks(self.config)

    @property
    def channels(self) -> int:
        """Of a model's input: those of a slice and of its neighbours."""
        given = self.config.input
        return len(channel_numbers(self.pack.manifest.channels, given.channels)) * (2 * given.neighbours + 1)

    @property
    def smallest_batch(self) -> int:
        """The fewest slices that the model can be trained on."""
        return int(registry.model[self.config.model.name].facts.get("smallest_batch", 1))

    def model(self, seed: int) -> nn.Module:
        """A fresh model on the device, initialised from `seed`."""
        return _build(self.config, self.channels, seed).to(self.device).to(memory_format=torch.channels_last)

    def train(
        self,
        model: nn.Module,
        feed: Feed,
        rows: NDArray[np.int64],
        *,
        seed: int,
        settings: Train | None = None,
        scores: Sequence[float] = (),
        execution: Execution = "eager",
        watch: Watch = SILENT,
        progress: Progress | None = None,
    ) -> Iterator[Epoch]:
        """`bench.train.train` with all that the recipe is made of; `settings` are its own unless given."""
        return train(
            model,
            feed,
            rows,
            loss=self.loss,
            augment=self.augment,
            schedule=self.schedule,
            settings=settings or self.config.train,
            seed=seed,
            scores=scores,
            execution=execution,
            target=self.task.target,
            smallest=self.smallest_batch,
            tick=watch.images,
            say=watch.say,
            progress=progress,
        )

    def images_per_fold(self, fold: Fold) -> int:
        """Training images of one fold at full length."""
        settings = self.config.train
        slices = len(self.pack.rows(fold.train))
        return settings.epochs * steps_per_epoch(slices, settings.batch_size) * min(settings.batch_size, slices)


def resolve(config: RunConfig, *, only: int | None = None, watch: Watch = SILENT) -> Recipe:
    """Find, bind and check everything a run needs. Raises `BenchError` for whatever the user must mend."""
    for plugin in config.plugins:
        registry.load_plugin(Path(plugin))
    config = config.completed()
    task = task_of(config)
    device = find_device(config.device)
    raw = raw_pack(config, tick=watch.packing)
    pack = prepared(raw, config.input.preprocess, tick=watch.packing)
    if _leaks(config):
        pack = by_slice(pack)
    folds: list[Fold] = registry.split[config.split.name].bind(config.split.params)(pack.index)
    _check_folds(pack, folds)
    if not _leaks(config):
        _refuse_shared(pack, folds)
    if only is not None and only not in [f.number for f in folds]:
        raise UnknownName(f"there is no fold {only}; they are numbered 0 to {len(folds) - 1}.")
    recipe = Recipe(
        config=config,
        raw=raw,
        pack=pack,
        folds=tuple(folds),
        device=device,
        loss=registry.loss[config.loss.name].bind(config.loss.params),
        augment=_augmentations(config),
        schedule=registry.schedule[config.train.schedule.name].bind(config.train.schedule.params),
        task=task,
        parameters=0,
    )
    images, masks = _check_training(recipe)
    built = _build(config, recipe.channels, config.seed)
    if config.train.freeze_epochs and not hasattr(built, "encoder"):
        raise BadSetting(
            f"train.freeze_epochs needs an encoder, and this {config.model.name} has none. Give --encoder."
        )
    if config.plugins:
        _check_shapes(recipe, built, images, masks)
    return replace(recipe, parameters=sum(p.numel() for p in built.parameters()))


def raw_pack(config: RunConfig, *, tick: Tick = lambda done, of: None) -> Pack:
    """The data set of a configuration, packed, before any preprocessing. Raises `BenchError`."""
    return packed(source_of(config), tick=tick)


def source_of(config: RunConfig) -> Source:
    """The data set of a configuration as its loader finds it, before a pixel is read. Raises `BenchError`."""
    source: Source = registry.dataset[config.dataset.name].bind(config.dataset.params)()
    return source


def source_like(config: RunConfig, folder: Path) -> Source:
    """Other patients, found and read as those of a configuration; as LGG's, where these came from no folder."""
    chosen = registry.dataset[config.dataset.name]
    if "folder" not in chosen.schema.model_fields:
        chosen, how = registry.dataset["lgg"], {}
    else:
        how = config.dataset.params
    source: Source = chosen.bind({**how, "folder": folder})()
    return source


def task_of(config: RunConfig) -> Task:
    """What the model of a configuration is asked for. Raises `BenchError`."""
    name = registry.model[config.model.name].facts.get("task", Segmentation.name)
    kinds: dict[str, type[Segmentation] | type[Presence]] = {k.name: k for k in (Segmentation, Presence)}
    return kinds[name](config.evaluate, config.train.precision)


def _leaks(config: RunConfig) -> bool:
    return bool(registry.split[config.split.name].facts.get("leaky"))


def _check_folds(pack: Pack, folds: Sequence[Fold]) -> None:
    """What a split scheme of the user's may get wrong, beyond what a single `Fold` knows."""
    here = set(pack.cases)
    for fold in folds:
        if strangers := sorted((fold.train | fold.val | fold.test) - here):
            raise BadSetting(
                f"fold {fold.number} has {len(strangers)} patient(s) that the data lacks, such as {strangers[0]}. "
                "A split names patients as the column 'case' of its index does."
            )
    for one, other in combinations(folds, 2):
        if again := sorted(one.test & other.test):
            raise BadSetting(
                f"{again[0]} is tested in fold {one.number} and in fold {other.number}. "
                "Let a split test every patient once at most; seeds repeat a run."
            )


def _refuse_shared(pack: Pack, folds: Sequence[Fold]) -> None:
    """An image of two patients who play two parts in a fold is a leak, under another name."""
    groups = shared_images(pack)
    cases, slices = pack.index["case"].to_numpy(), pack.index["slice"].to_numpy()
    for fold, rows in product(folds, groups):
        parts = {fold.part(cases[row]): f"slice {slices[row]} of {cases[row]}" for row in rows}
        parts.pop(None, None)
        if len(parts) > 1:
            where = " and ".join(f"{what} ({part})" for part, what in parts.items())
            raise LeakageError(
                f"fold {fold.number} has one image on two sides: {where} are equal, pixel for pixel; "
                f"{len(groups)} image(s) in all are of more than one patient. Remove the copies, or make those "
                "patients one. `bench data check` names the files."
            )


def _augmentations(config: RunConfig) -> tuple[Augment, ...]:
    """The augmentations in their order; a patch is cut out of what they give."""
    given = [registry.augmentation[n].bind(p) for n, p in config.augment.items()]
    if (patch := config.input.patch) is not None:
        given.append(partial(random_patch, size=patch.size, tumour_share=patch.tumour_share))
    return tuple(given)


def _build(config: RunConfig, channels: int, seed: int) -> nn.Module:
    with _building:
        torch.manual_seed(seed)
        model: nn.Module = registry.model[config.model.name].bind(config.model.params)(channels)
    return model


_building = Lock()  # folds that run at once share torch's generator


def _check_training(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Gives a slice and its mask as a model would see them in training, (1, C, H, W) and (1, 1, H, W)."""
    config = recipe.config
    feed = Feed(recipe.pack, config.input, torch.device("cpu"))  # channels and normalisation fit the data
    if config.folds_at_once > 1 and config.train.deterministic:
        raise BadSetting(
            "train.deterministic needs folds one after another: at once they share one random generator. "
            "Leave folds_at_once at 1."
        )
    if config.train.freeze_epochs >= config.train.epochs:
        raise BadSetting("train.freeze_epochs must be smaller than train.epochs, or nothing trains the encoder.")
    facts, size = registry.model[config.model.name].facts, config.input.image_size
    slices = min(len(recipe.pack.rows(fold.train)) for fold in recipe.folds)
    if min(config.train.batch_size, slices) < recipe.smallest_batch:
        raise BadSetting(
            f"{config.model.name} needs a batch of {recipe.smallest_batch} or more. Give --batch-size."
        )
    side = size or min(recipe.pack.masks.shape[1:])
    if (patch := config.input.patch) is not None:
        if recipe.task.name == Presence.name:
            raise BadSetting("a presence model judges whole slices. Leave out input.patch.")
        if patch.size > side:
            raise BadSetting(
                f"input.patch.size = {patch.size} is more than the {side} pixels of a slice. Give less."
            )
        side = patch.size
    if recipe.leaky and recipe.task.name == Presence.name:
        raise BadSetting(
            f"the leak that split={config.split.name} shows is one of segmentation. Use split=patients."
        )
    if side < facts.get("smallest_image", 1):
        raise BadSetting(
            f"{config.model.name} needs slices of {facts['smallest_image']} pixels a side. Give --image-size."
        )
    images, masks = feed.unit(np.array([0]))
    for change in recipe.augment:  # tried once: what they ask of the channels must be there
        images, masks = change(images, masks, Draws(0, 0, [0], channels=feed.names))
    return images, masks


def _check_shapes(recipe: Recipe, model: nn.Module, images: Tensor, masks: Tensor) -> None:
    """What a plugin brings must keep the contract of its kind; what it raises of its own is not hidden."""
    name, target = recipe.config.model.name, recipe.task.target(masks)
    with torch.no_grad():
        logits = model.eval()(images)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != tuple(target.shape):
        raise BadSetting(
            f"the model '{name}' gives {shape} for images of {tuple(images.shape)}. Let it give a logit for each "
            f"{'slice' if recipe.task.name == Presence.name else 'pixel'}, {tuple(target.shape)}."
        )
    value = recipe.loss(logits, target)
    if value.ndim:
        raise BadSetting(
            f"the loss '{recipe.config.loss.name}' gives {tuple(value.shape)}. Let it give one number: a mean."
        )
