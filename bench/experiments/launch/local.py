"""Workers on this machine: one process per GPU, or several processes that share the CPU cores."""

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
from bench.signals import interrupt_on_signals

GRACE_SECONDS = 60  # for an interrupted worker to end its runs in the store


class LocalLauncher:
    """Starts each item in a new process with one of the `gpus`, named as in CUDA_VISIBLE_DEVICES."""

    def __init__(self, workers: int | None = None, *, gpus: Sequence[str | int] | str | int | None = None) -> None:
        names = str(gpus).split(",") if isinstance(gpus, str | int) else gpus
        self.gpus = visible_gpus() if names is None else [str(gpu) for gpu in names]
        self.workers = workers or len(self.gpus) or 1
        self._slots: dict[int, _WorkerProcess] = {}

    def start(self, item: WorkItem) -> StartedWork:
        slot = next(n for n in range(self.workers) if n not in self._slots or self._slots[n].poll() is not None)
        environment = {"OMP_NUM_THREADS": str(threads_per_worker(self.workers))}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        self._slots[slot] = _WorkerProcess(item, environment)
        return self._slots[slot]


class _WorkerProcess:
    """A worker process, in its own process group: Ctrl-C would otherwise interrupt it twice."""

    def __init__(self, item: WorkItem, environment: dict[str, str]) -> None:
        self._result: str | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, closed by `_describe_end`
        with tempfile.TemporaryFile() as stdin:
            pickle.dump(item, stdin)
            stdin.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.experiments.launch.local"],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=os.environ | environment,
                start_new_session=True,
            )

    def poll(self) -> str | None:
        if self._result is None and (code := self.process.poll()) is not None:
            self._result = self._describe_end(code)
        return self._result

    def stop(self) -> None:
        self.process.terminate()

    def join(self) -> None:
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.poll()

    def _describe_end(self, code: int) -> str:
        with self._stderr as stderr:
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}: {lines[-1] if lines else 'no error output'}" if code else ""


def threads_per_worker(workers: int) -> int:
    """Return the number of threads of each worker when they share the cores of this machine."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(limit) if limit.isdecimal() else cores))


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return names.split(",")[:count] if names else [str(n) for n in range(count)]


if __name__ == "__main__":  # a worker: run one work item, pickled on standard input
    interrupt_on_signals()
    pickle.load(sys.stdin.buffer)()
