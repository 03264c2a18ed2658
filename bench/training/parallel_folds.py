"""Train several folds in parallel: one thread each, on one device and one copy of the data.

Each thread has a CUDA stream of its own, or its share of the CPU threads. When one fold stops, all stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import torch

from bench.types import Watch

T = TypeVar("T")
R = TypeVar("R")


def run_in_parallel(
    work: Callable[[T, Watch], R], items: Sequence[T], at_once: int, device: torch.device, watch: Watch
) -> list[R]:
    """Call `work(item, watch)` for every item, `at_once` at a time; return the results in the order of the items.

    If one raises, or the user interrupts, the others end with a KeyboardInterrupt at their next step, and the
    first exception is raised.
    """
    if at_once == 1 or len(items) == 1:
        return [work(item, watch) for item in items]
    stop = Event()
    threads = torch.get_num_threads()
    stoppable = _Stoppable(watch, stop)

    def run_one(item: T) -> R:
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.default_stream(device))  # models may still be copied there
            with torch.cuda.stream(stream):
                return work(item, stoppable)
        torch.set_num_threads(max(1, threads // at_once))
        return work(item, stoppable)

    with ThreadPoolExecutor(at_once, "bench-fold") as pool:
        futures = [pool.submit(run_one, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in futures if f in done and f.exception() is not None]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    return [future.result() for future in failed or futures]


class _Stoppable(Watch):
    """Passes everything on until `stop` is set, then interrupts its thread."""

    def __init__(self, watch: Watch, stop: Event) -> None:
        self.watch, self.stop = watch, stop
        for name in ("say", "fold", "epoch", "scored"):
            setattr(self, name, getattr(watch, name))

    def images(self, count: int) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.watch.images(count)
