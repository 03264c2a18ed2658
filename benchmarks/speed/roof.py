"""The roof of a training step: the shortest time that it can take on a device (Williams et al. 2009).

An operator takes at least the longer of FLOP / (peak FLOP per second) and bytes / bandwidth. Operators run one
after another, so their times add up. The eager and the fused roof differ in what counts as one operator, which
`benchmarks.speed.work` defines. Both are lower bounds on time: the loss, the casts of autocast and the optimizer
are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.speed.work import Pass, Work


@dataclass(frozen=True)
class Roof:
    """The shortest time of a batch in seconds, and the highest rates that follow from it in images per second."""

    images: int
    eager: float
    fused: float

    @property
    def eager_rate(self) -> float:
        return self.images / self.eager

    @property
    def fused_rate(self) -> float:
        return self.images / self.fused


def compute_roof(work: Work, flops_per_second: float, bytes_per_second: float) -> Roof:
    """Return the roof of `work` under these ceilings."""

    def seconds(passes: Iterable[Pass]) -> float:
        return sum(max(each.flops / flops_per_second, each.bytes / bytes_per_second) for each in passes)

    return Roof(work.images, seconds(work.eager), seconds(work.fused))


def measure_ceilings(device: torch.device) -> tuple[float, float]:
    """Return FLOP/s of a large matrix product (bfloat16 on a GPU, else float32) and bytes/s moved by a copy."""
    side, floats, dtype = (8192, 2**28, torch.bfloat16) if device.type == "cuda" else (2048, 2**25, torch.float32)
    generator = torch.Generator(device).manual_seed(0)  # zeros would draw less power and raise the clock
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    source = torch.rand(floats, device=device, generator=generator)  # larger than any cache
    product, copy = torch.empty_like(a), torch.empty_like(source)
    multiply_seconds = _time(lambda: torch.mm(a, b, out=product), device)
    copy_seconds = _time(lambda: copy.copy_(source), device)
    return 2 * side**3 / multiply_seconds, 2 * source.nbytes / copy_seconds


def _time(work: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of five turns after a warm-up turn.

    A turn on a GPU is twenty runs, so that the cost of launching does not show.
    """
    runs, turns = 20 if device.type == "cuda" else 1, []
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(runs):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        turns.append((time.perf_counter() - started) / runs)
    return median(turns[1:])
