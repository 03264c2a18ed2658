"""A configuration with everything in it found, bound and checked: whatever can be wrong is said here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import nn

from bench import registry
from bench.config import RunConfig
from bench.data.loader import SliceLoader, channel_numbers, random_patch
from bench.data.pack import Pack, Tick, load_or_pack, one_case_per_slice
from bench.data.preprocessed import preprocess_pack
from bench.data.source import Source
from bench.data.splits import split_hash
from bench.device import find_device
from bench.errors import BadSetting, UnknownName
from bench.inference.predict import Predictor
from bench.models.io import build_model
from bench.overrides import override
from bench.training.checks import check_batch, check_folds, check_settings, try_input, try_model
from bench.training.loop import Augment, Recipe, steps_per_epoch
from bench.training.step import Loss, mean_over_structures
from bench.training.tasks import Task
from bench.training.tasks.presence import Presence
from bench.training.tasks.segmentation import Segmentation
from bench.types import SILENT, Fold, Watch


@dataclass(frozen=True)
class Experiment(Recipe):
    """What a run is made of."""

    raw: Pack  # before preprocessing
    pack: Pack
    folds: tuple[Fold, ...]
    device: torch.device
    task: Task
    parameters: int
    leaky: bool  # slices of one patient are on two sides of the split: to show the leak, never to be ranked

    @property
    def split_hash(self) -> str:
        return split_hash(self.folds)

    @property
    def channels(self) -> int:
        """Of a model's input: those of a slice and of its neighbours."""
        given = self.config.input
        return len(channel_numbers(self.pack.manifest.channels, given.channels)) * (2 * given.neighbours + 1)

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of what the model segments; a slice classifier has one answer for all."""
        return self.pack.structures.names if self.task.segments else ("any",)

    @property
    def activation(self) -> str:
        """The key in `bench.inference.predict.ACTIVATIONS` of what the loss was made for."""
        return str(registry.loss[self.config.loss.name].facts.get("activation", "sigmoid"))

    def model(self, seed: int) -> nn.Module:
        """A fresh model on the device, initialised from `seed`."""
        return (
            _build(self.config, self.channels, len(self.structures), seed)
            .to(self.device)
            .to(memory_format=torch.channels_last)
        )

    def predictor(self, models: Sequence[nn.Module], loader: SliceLoader) -> Predictor:
        """Return what averages these models' probabilities on the loader's slices."""
        config = self.config
        return Predictor(models, loader, config.evaluate.batch_size, config.train.precision, self.activation)

    def images_per_fold(self, fold: Fold) -> int:
        """Training images of one fold at full length."""
        settings = self.config.train
        slices = len(self.pack.rows(fold.train))
        return settings.epochs * steps_per_epoch(slices, settings.batch_size) * min(settings.batch_size, slices)


def resolve(config: RunConfig, *, only: int | None = None, watch: Watch = SILENT) -> Experiment:
    """Look up, load and check everything that a run needs. Raises `BenchError` for whatever the user must fix.

    `only` is the number of a fold that must exist.
    """
    for plugin in config.plugins:
        registry.load_plugin(Path(plugin))
    config = config.completed()
    task, device, split = task_of(config), find_device(config.device), registry.split[config.split.name]
    leaky = bool(split.facts.get("leaky"))
    raw = raw_pack(config, tick=watch.packing)
    pack = preprocess_pack(raw, config.input.preprocess, tick=watch.packing)
    if leaky:
        pack = one_case_per_slice(pack)
    folds = find_folds(config, pack)
    check_folds(pack, folds, leaky=leaky)
    if only is not None and only not in [f.number for f in folds]:
        raise UnknownName(f"there is no fold {only}; they are numbered 0 to {len(folds) - 1}.")
    experiment = Experiment(
        config=config,
        raw=raw,
        pack=pack,
        folds=tuple(folds),
        device=device,
        loss=_loss(config),
        augment=_augmentations(config),
        schedule=registry.schedule[config.train.schedule.name].bind(config.train.schedule.params),
        target=task.target,
        task=task,
        parameters=0,
        leaky=leaky,
    )
    check_settings(experiment)
    images, masks = try_input(experiment)
    model = _build(config, experiment.channels, len(experiment.structures), config.seed)
    if config.train.freeze_epochs and not hasattr(model, "encoder"):
        raise BadSetting(
            f"train.freeze_epochs needs an encoder, and this {config.model.name} has none. Give --encoder."
        )
    smallest = try_model(experiment, model, images, masks, watch)
    parameters = sum(p.numel() for p in model.parameters())
    experiment = replace(experiment, smallest_batch=smallest, parameters=parameters)
    check_batch(experiment)
    return experiment


def raw_pack(config: RunConfig, *, tick: Tick = lambda done, of: None) -> Pack:
    """The data set of a configuration, packed, before any preprocessing. Raises `BenchError`."""
    return load_or_pack(source_of(config), tick=tick)


def find_folds(config: RunConfig, pack: Pack) -> list[Fold]:
    """The folds of a configuration, unchecked. Raises `BenchError`."""
    folds: list[Fold] = registry.split[config.split.name].bind(config.split.params)(pack.index)
    return folds


def source_of(config: RunConfig) -> Source:
    """The data set of a configuration as its loader finds it, before a pixel is read. Raises `BenchError`."""
    source: Source = registry.dataset[config.dataset.name].bind(config.dataset.params)()
    return source


def source_like(config: RunConfig, folder: Path, changes: Mapping[str, Any] | None = None) -> Source:
    """Other patients, found and read as those of a configuration; as LGG's, where these came from no folder.

    `changes` are settings of the data set, such as {"dataset.images": "scans"}. Raises `BenchError`.
    """
    if wrong := [key for key in changes or {} if not key.startswith("dataset.")]:
        raise BadSetting(f"{wrong[0]} cannot be set here: only settings of the data set, such as dataset.images.")
    config = override(config, changes or {})
    chosen, how = registry.dataset[config.dataset.name], config.dataset.params
    if "folder" not in chosen.schema.model_fields:
        chosen, how = registry.dataset["lgg"], {}
    source: Source = chosen.bind({**how, "folder": folder})()
    return source


def task_of(config: RunConfig) -> Task:
    """What the model of a configuration is asked for. Raises `BenchError`."""
    name = registry.model[config.model.name].facts.get("task", Segmentation.name)
    kinds: dict[str, type[Task]] = {kind.name: kind for kind in (Segmentation, Presence)}
    return kinds[name](config.evaluate)


def _augmentations(config: RunConfig) -> tuple[Augment, ...]:
    """The augmentations in their order; a patch is cut out of what they give."""
    given = [registry.augmentation[n].bind(p) for n, p in config.augment.items()]
    if (patch := config.input.patch) is not None:
        given.append(partial(random_patch, size=patch.size, tumour_share=patch.tumour_share))
    return tuple(given)


def _loss(config: RunConfig) -> Loss:
    """Return the loss of all structures. One that was made for a softmax takes them together."""
    entry = registry.loss[config.loss.name]
    loss: Loss = entry.bind(config.loss.params)
    return loss if "activation" in entry.facts else mean_over_structures(loss)


def _build(config: RunConfig, channels: int, structures: int, seed: int) -> nn.Module:
    with _building:
        torch.manual_seed(seed)
        return build_model(config.model.name, config.model.params, channels, structures)


_building = Lock()  # folds that run at once share torch's generator
