"""Processes of this machine: one a GPU where there are any, else as many as wanted with the cores divided."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import psutil

from bench.experiments.launch import StartedWork, WorkItem

GRACE = 60  # seconds in which an interrupted worker can say goodbye to the store


class LocalLauncher:
    """Each task has a fresh process and one of the `gpus`, which are named as CUDA_VISIBLE_DEVICES does."""

    def __init__(self, workers: int | None = None, *, gpus: Sequence[str | int] | str | int | None = None) -> None:
        named = str(gpus).split(",") if isinstance(gpus, str | int) else gpus
        self.gpus = visible_gpus() if named is None else [str(gpu) for gpu in named]
        self.workers = workers or len(self.gpus) or 1
        self._places: dict[int, _Process] = {}

    def start(self, task: WorkItem) -> StartedWork:
        place = next(
            n for n in range(self.workers) if n not in self._places or self._places[n].ended() is not None
        )
        own = {"OMP_NUM_THREADS": str(share(self.workers))}
        if self.gpus:
            own["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        self._places[place] = _Process(task, own)
        return self._places[place]


class _Process:
    """A worker. It is in a session of its own, or an interrupt from the keyboard would reach it twice."""

    def __init__(self, task: WorkItem, environment: dict[str, str]) -> None:
        self._end: str | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `_told`
        with tempfile.TemporaryFile() as order:
            pickle.dump(task, order)
            order.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.experiments.launch.worker"],
                stdin=order,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=os.environ | environment,
                start_new_session=True,
            )

    def ended(self) -> str | None:
        if self._end is None and (code := self.process.poll()) is not None:
            self._end = self._told(code)
        return self._end

    def stop(self) -> None:
        self.process.terminate()

    def join(self) -> None:
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.ended()

    def _told(self, code: int) -> str:
        with self._errors as errors:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}: {lines[-1] if lines else 'nothing was said'}" if code else ""


def share(workers: int) -> int:
    """Threads of one worker, when so many divide the cores of this machine."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(given) if given.isdecimal() else cores))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(n) for n in range(count)]
