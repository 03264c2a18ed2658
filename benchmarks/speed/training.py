"""Training steps: against notebooks, with single switches off, and against the roof of the device.

Steps are timed on one batch that is already on the device; the figure `epoch` includes loading.
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
from bench.inference.sliding_window import logits_of
from bench.training.step import EAGER_STEPS, Execution, Stepper
from benchmarks.speed.figure import Side, SpeedFigure, one_thread, race
from benchmarks.speed.problem import BATCH, SpeedProblem
from benchmarks.speed.roof import compute_roof, measure_ceilings
from benchmarks.speed.work import count_work

LR = 1e-4
Build = Callable[[], Side]


@dataclass(frozen=True)
class TrainingJob:
    """A model to train, its image size and its batch size."""

    name: str
    model: str
    settings: Mapping[str, Any]
    batch: int
    size: int
    steps: int  # per turn

    def build(self, channels: int) -> nn.Module:
        """Return the model, initialised from seed 0 and in training mode."""
        torch.manual_seed(0)
        model: nn.Module = registry.model[self.model].bind(self.settings)(channels)
        return model.train()

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch} of {self.size}x{self.size}"


def training_jobs(problem: SpeedProblem) -> list[TrainingJob]:
    """Return three models at two batch sizes on a GPU, a small model on a CPU, a tiny one if quick."""
    if problem.quick:
        return [TrainingJob("U-Net 4", "unet", {"base": 4, "depth": 2}, 2, 32, 1)]
    if problem.device.type == "cpu":
        small = TrainingJob("U-Net 16", "unet", {"base": 16}, BATCH, 96, 4)
        return [small, replace(small, size=256, steps=1)]
    models: dict[str, Mapping[str, Any]] = {
        "U-Net 32": {"base": 32},
        "U-Net ResNet50": {"encoder": "resnet50"},
        "U-Net EfficientNet-B0": {"encoder": "efficientnet-b0"},
    }
    sizes = {BATCH: 40, 4 * BATCH: 12}
    side = problem.pack.masks.shape[1]
    return [
        TrainingJob(n, "unet", s, batch, side, steps) for n, s in models.items() for batch, steps in sizes.items()
    ]


def load_batch(problem: SpeedProblem, job: TrainingJob) -> tuple[Tensor, Tensor]:
    """Return normalised images in channels_last layout, and masks, on the device."""
    loader = SliceLoader(problem.pack, Input(image_size=job.size), problem.device)
    rows = problem.rows(job.batch, seed=0)
    images, masks = loader.load(rows)
    return loader.normalise(images, rows), masks


def fastest_execution(problem: SpeedProblem) -> Execution:
    return "graph" if problem.device.type == "cuda" else "eager"


def build_our_step(
    problem: SpeedProblem,
    job: TrainingJob,
    *,
    execution: Execution | None = None,
    precision: str = "auto",
    layout: torch.memory_format = torch.channels_last,
    fused: bool = True,
    waits: bool = False,
) -> Side:
    """Return a side that trains `job.steps` batches per turn as `bench run` does, but for switches set here."""
    images, masks = load_batch(problem, job)
    model = job.build(images.shape[1]).to(problem.device).to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    settings = Train.model_validate({"precision": precision})
    loss = registry.loss["bce_dice"].bind({})
    step = Stepper(
        model,
        loss,
        settings,
        LR,
        problem.device,
        execution=execution or fastest_execution(problem),
        say=partial(_print_message, job),
    )
    if not fused:
        step.optimizer = torch.optim.AdamW(
            step.parameters, lr=step.optimizer.param_groups[0]["lr"], capturable=problem.device.type == "cuda"
        )

    def turn() -> int:
        for _ in range(job.steps):
            value = step(images, masks, LR)
            if waits:
                value.item()
        value.item()
        return job.steps * job.batch

    for _ in range(EAGER_STEPS if problem.device.type == "cuda" else 0):
        step(images, masks, LR)
    return turn


def _print_message(job: TrainingJob, text: str) -> None:
    print(f"{job}: {text}", file=sys.stderr)


def build_notebook_step(problem: SpeedProblem, job: TrainingJob, *, amp: bool = False) -> Side:
    """Return a side that trains as tutorials do: NCHW, the optimizer's defaults, `.item()` after every step."""
    images, masks = (t.contiguous() for t in load_batch(problem, job))
    model = job.build(images.shape[1]).to(problem.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    loss = registry.loss["bce_dice"].bind({})

    def turn() -> int:
        total = 0.0
        for _ in range(job.steps):
            optimizer.zero_grad()
            with torch.autocast(problem.device.type, torch.bfloat16, enabled=amp):
                value = loss(logits_of(model, images), masks)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += value.item()
        return job.steps * job.batch

    return turn


def measure_steps(problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure images per second of our step, against a notebook's in float32 and, on a GPU, in autocast."""
    figures = []
    gate = 1.5 if problem.device.type == "cuda" else None
    for job in training_jobs(problem):
        notebook = partial(build_notebook_step, problem, job)
        peers: dict[str, Build] = {"eager float32, NCHW": partial(build_inside, notebook, memory_returned)}
        if problem.device.type == "cuda":
            peers["eager autocast, NCHW"] = partial(notebook, amp=True)
        ours, *others = _build_and_race(problem, [partial(build_our_step, problem, job), *peers.values()])
        figures += [
            SpeedFigure(
                "step", peer, "images/s", ours, theirs, gate if job.batch == BATCH else None, note=str(job)
            )
            for peer, theirs in zip(peers, others, strict=True)
        ]
    return figures


def measure_ablation(problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure our step against the same step with one switch changed, for every switch."""
    figures = []
    for job in training_jobs(problem):
        variants = _variants(problem, job)
        ours, *others = _build_and_race(problem, [partial(build_our_step, problem, job), *variants.values()])
        figures += [
            SpeedFigure("ablation", variant, "images/s", ours, theirs, note=str(job))
            for variant, theirs in zip(variants, others, strict=True)
        ]
    return figures


def measure_roofs(problem: SpeedProblem) -> list[SpeedFigure]:
    """Measure images per second of our step against the fused roof, with this machine's measured ceilings."""
    on_gpu = problem.device.type == "cuda"
    flops, bandwidth = measure_ceilings(problem.device)
    gate = 0.5 if on_gpu else None
    figures = []
    for job in training_jobs(problem):
        channels = problem.pack.images.shape[-1]
        shape = (job.batch, channels, job.size, job.size)
        work = count_work(job.build(channels), shape, torch.bfloat16 if on_gpu else torch.float32)
        roof = compute_roof(work, flops, bandwidth)
        (rates,) = _build_and_race(problem, [partial(build_our_step, problem, job)])
        note = f"{job}; {flops / 1e12:.3g} TFLOP/s, {bandwidth / 1e9:.3g} GB/s; eager roof {roof.eager_rate:.4g}"
        figures.append(
            SpeedFigure("roof", "the fused roof", "images/s", rates, (roof.fused_rate,), gate, note=note)
        )
    return figures


def _variants(problem: SpeedProblem, job: TrainingJob) -> dict[str, Build]:
    """Return our step with one switch changed, by the name of the change."""
    step = partial(build_our_step, problem, job)
    variants: dict[str, Build] = {
        "without channels_last": partial(step, layout=torch.contiguous_format),
        "without the fused optimizer": partial(step, fused=False),
        "waiting for every loss": partial(step, waits=True),
    }
    if problem.device.type == "cuda":
        variants["without the CUDA graph"] = partial(step, execution="eager")
        variants["without bfloat16"] = partial(step, precision="float32")
        if job == training_jobs(problem)[0]:  # compiling takes a minute or two per job
            variants["compiled as well"] = partial(step, execution="compile")
        return variants
    return variants | {
        "with bfloat16": partial(step, precision="bfloat16"),
        "giving memory back": partial(build_inside, step, memory_returned),
        "on one thread": partial(build_inside, step, one_thread),
    }


def _build_and_race(problem: SpeedProblem, sides: Sequence[Build]) -> tuple[tuple[float, ...], ...]:
    """Build the sides with PyTorch configured as in a run, and let them take turns."""
    configure_torch(problem.device, deterministic=False)
    return race(*(build() for build in sides), repeats=problem.repeats)


def build_inside(build: Build, setting: Callable[[], AbstractContextManager[None]]) -> Side:
    """Build a side and run every turn of it inside this context."""
    turn = build()

    def inside() -> int:
        with setting():
            return turn()

    return inside


@contextmanager
def memory_returned() -> Iterator[None]:
    """Return freed memory to the system, as a CPU process does by default."""
    return_memory()
    try:
        yield
    finally:
        keep_memory()
