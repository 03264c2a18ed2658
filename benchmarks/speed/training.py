"""Training steps, switch by switch, and against their roof.

Steps are timed on one batch that lies on the device already: what it costs to get it there is in `epoch`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import registry
from bench.config import Input, Train
from bench.data.loader import SliceLoader
from bench.device import configure_torch, keep_memory, return_memory
from bench.inference.padding import logits_of
from bench.training.step import EAGER_STEPS, Execution, Stepper
from benchmarks.speed.figure import Side, SpeedFigure, one_thread, race
from benchmarks.speed.problem import BATCH, SpeedProblem
from benchmarks.speed.roof import ceilings, cost, roof

LR = 1e-4
Build = Callable[[], Side]


@dataclass(frozen=True)
class TrainingJob:
    """A model to train, at a size and a batch."""

    name: str
    model: str
    settings: Mapping[str, Any]
    batch: int
    size: int
    steps: int  # a turn

    def build(self, channels: int) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = registry.model[self.model].bind(self.settings)(channels)
        return model.train()

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch} of {self.size}x{self.size}"


def jobs(given: SpeedProblem) -> list[TrainingJob]:
    """What is trained: three models at two batch sizes on a GPU, a small one on a CPU, a tiny one if quick."""
    if given.quick:
        return [TrainingJob("U-Net 4", "unet", {"base": 4, "depth": 2}, 2, 32, 1)]
    if given.device.type == "cpu":
        small = TrainingJob("U-Net 16", "unet", {"base": 16}, BATCH, 96, 4)
        return [small, replace(small, size=256, steps=1)]
    models: dict[str, Mapping[str, Any]] = {
        "U-Net 32": {"base": 32},
        "U-Net ResNet50": {"encoder": "resnet50"},
        "U-Net EfficientNet-B0": {"encoder": "efficientnet-b0"},
    }
    sizes = {BATCH: 40, 4 * BATCH: 12}
    side = given.pack.masks.shape[1]
    return [
        TrainingJob(n, "unet", s, batch, side, steps) for n, s in models.items() for batch, steps in sizes.items()
    ]


def batch_of(given: SpeedProblem, job: TrainingJob) -> tuple[Tensor, Tensor]:
    """Images, normalised and channels last, and masks on the device."""
    loader = SliceLoader(given.pack, Input(image_size=job.size), given.device)
    rows = given.rows(job.batch, seed=0)
    images, masks = loader.unit(rows)
    return loader.standard(images, rows), masks


def fastest(given: SpeedProblem) -> Execution:
    return "graph" if given.device.type == "cuda" else "eager"


def stepping(
    given: SpeedProblem,
    job: TrainingJob,
    *,
    execution: Execution | None = None,
    precision: str = "auto",
    layout: torch.memory_format = torch.channels_last,
    fused: bool = True,
    waits: bool = False,
) -> Side:
    """Our steps, each switch on unless it is turned off here: a turn trains `job.steps` batches."""
    images, masks = batch_of(given, job)
    model = job.build(images.shape[1]).to(given.device).to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    settings = Train.model_validate({"precision": precision})
    loss = registry.loss["bce_dice"].bind({})
    step = Stepper(
        model, loss, settings, LR, given.device, execution=execution or fastest(given), say=partial(_aside, job)
    )
    if not fused:
        step.optimizer = torch.optim.AdamW(
            step.parameters, lr=step.optimizer.param_groups[0]["lr"], capturable=given.device.type == "cuda"
        )

    def turn() -> int:
        for _ in range(job.steps):
            value = step(images, masks, LR)
            if waits:
                value.item()
        value.item()
        return job.steps * job.batch

    for _ in range(EAGER_STEPS if given.device.type == "cuda" else 0):
        step(images, masks, LR)
    return turn


def _aside(job: TrainingJob, text: str) -> None:
    print(f"{job}: {text}", file=sys.stderr)


def notebook_step(given: SpeedProblem, job: TrainingJob, *, amp: bool = False) -> Side:
    """The same model as tutorials train it: NCHW, the optimizer's defaults, `.item()` after every step."""
    images, masks = (t.contiguous() for t in batch_of(given, job))
    model = job.build(images.shape[1]).to(given.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    loss = registry.loss["bce_dice"].bind({})

    def turn() -> int:
        total = 0.0
        for _ in range(job.steps):
            optimizer.zero_grad()
            with torch.autocast(given.device.type, torch.bfloat16, enabled=amp):
                value = loss(logits_of(model, images), masks)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += value.item()
        return job.steps * job.batch

    return turn


def figures(given: SpeedProblem) -> list[SpeedFigure]:
    """Images a second of a training step: ours, against float32 and (on a GPU) autocast as notebooks write it."""
    found = []
    gate = 1.5 if given.device.type == "cuda" else None
    for job in jobs(given):
        plain = partial(notebook_step, given, job)
        peers: dict[str, Build] = {"eager float32, NCHW": partial(within, plain, memory_given_back)}
        if given.device.type == "cuda":
            peers["eager autocast, NCHW"] = partial(plain, amp=True)
        rates = _raced(given, [partial(stepping, given, job), *peers.values()])
        found += [
            SpeedFigure(
                "step", peer, "images/s", rates[0], theirs, gate if job.batch == BATCH else None, note=str(job)
            )
            for peer, theirs in zip(peers, rates[1:], strict=True)
        ]
    return found


def ablation(given: SpeedProblem) -> list[SpeedFigure]:
    """Every switch of the step turned by itself: as a run is set up, against all the same but one."""
    found = []
    for job in jobs(given):
        without = _switches(given, job)
        rates = _raced(given, [partial(stepping, given, job), *without.values()])
        found += [
            SpeedFigure("ablation", switch, "images/s", rates[0], theirs, note=str(job))
            for switch, theirs in zip(without, rates[1:], strict=True)
        ]
    return found


def roofs(given: SpeedProblem) -> list[SpeedFigure]:
    """Images a second of our step over the fused roof, under ceilings measured here and now."""
    on_gpu = given.device.type == "cuda"
    flops, bandwidth = ceilings(given.device)
    found = []
    for job in jobs(given):
        channels = given.pack.images.shape[-1]
        shape = (job.batch, channels, job.size, job.size)
        limit = roof(
            cost(job.build(channels), shape, torch.bfloat16 if on_gpu else torch.float32), flops, bandwidth
        )
        (rates,) = _raced(given, [partial(stepping, given, job)])
        note = f"{job}; {flops / 1e12:.3g} TFLOP/s, {bandwidth / 1e9:.3g} GB/s; eager roof {limit.eager_rate:.4g}"
        gate = 0.5 if on_gpu else None
        found.append(
            SpeedFigure("roof", "the fused roof", "images/s", rates, (limit.fused_rate,), gate, note=note)
        )
    return found


def _switches(given: SpeedProblem, job: TrainingJob) -> dict[str, Build]:
    side = partial(stepping, given, job)
    both: dict[str, Build] = {
        "without channels_last": partial(side, layout=torch.contiguous_format),
        "without the fused optimizer": partial(side, fused=False),
        "waiting for every loss": partial(side, waits=True),
    }
    if given.device.type == "cuda":
        both["without the CUDA graph"] = partial(side, execution="eager")
        both["without bfloat16"] = partial(side, precision="float32")
        if job == jobs(given)[0]:  # a minute or two each
            both["compiled as well"] = partial(side, execution="compile")
        return both
    return both | {
        "with bfloat16": partial(side, precision="bfloat16"),
        "giving memory back": partial(within, side, memory_given_back),
        "on one thread": partial(within, side, one_thread),
    }


def _raced(given: SpeedProblem, sides: Sequence[Build]) -> tuple[tuple[float, ...], ...]:
    """Build the sides and let them take turns, the first as a run is set up, others as PyTorch comes."""
    configure_torch(given.device, deterministic=False)
    return race(*(side() for side in sides), repeats=given.repeats)


def within(side: Build, setting: Callable[[], AbstractContextManager[None]]) -> Side:
    """The same work, every turn of it in such a setting."""
    turn = side()

    def inside() -> int:
        with setting():
            return turn()

    return inside


@contextmanager
def memory_given_back() -> Iterator[None]:
    """A CPU's memory goes back to the system when it is freed, as it does without the suite."""
    return_memory()
    try:
        yield
    finally:
        keep_memory()
