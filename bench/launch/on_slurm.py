"""Slurm, through submitit: every task is a job of its own, and Slurm decides when it runs."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from bench.errors import BadSetting
from bench.launch import Job, Task


class Slurm:
    """Submits to the queue; `parameters` are submitit's, such as timeout_min, slurm_partition or gpus_per_node.

    `folder` must be seen by all machines: it holds what jobs are given and what they print. `cluster` "local" runs
    them as processes of this machine instead.
    """

    def __init__(
        self, workers: int | None = None, *, folder: str = "slurm", cluster: str = "slurm", **parameters: Any
    ) -> None:
        try:
            submitit: Any = import_module("submitit")
        except ImportError:
            raise BadSetting("--launcher slurm needs submitit: pip install 'medseg-bench[slurm]'.") from None
        self.workers = workers or sys.maxsize
        try:
            self._queue = submitit.AutoExecutor(folder, cluster=cluster)
            self._queue.update_parameters(**{"name": "bench", "timeout_min": 24 * 60} | parameters)
        except (RuntimeError, NameError) as error:  # no Slurm here, or a parameter that is unknown
            raise BadSetting(f"--launcher slurm: {' '.join(str(error).split())}") from None

    def start(self, task: Task) -> Job:
        return _Queued(self._queue.submit(task))


class _Queued:
    def __init__(self, job: Any) -> None:
        self.job = job

    def ended(self) -> str | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        return "" if error is None else " ".join(str(error).split())[:300]

    def stop(self) -> None:
        self.job.cancel()
