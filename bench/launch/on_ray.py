"""A Ray cluster: the one at an address (or in RAY_ADDRESS), else one of this machine, started for the occasion."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bench.errors import BadSetting
from bench.launch import Job, Task, carried


class Ray:
    """Each task has a process, `cpus` cores (and threads) and `gpus` GPUs: by default one where there are any."""

    def __init__(
        self, workers: int | None = None, *, address: str | None = None, cpus: int = 1, gpus: float | None = None
    ) -> None:
        try:
            self.ray: Any = import_module("ray")
        except ImportError:
            raise BadSetting("--launcher ray needs Ray: pip install 'medseg-bench[ray]'.") from None
        self.most, ray = workers, self.ray
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        there = ray.cluster_resources()
        self.cpus, self.gpus = cpus, gpus if gpus is not None else min(1.0, there.get("GPU", 0.0))
        self._run = ray.remote(  # retries are ours, so that every engine does the same
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_calls=1,
            max_retries=0,
            runtime_env={"env_vars": carried()},
        )(_run)

    @property
    def workers(self) -> int:
        there = self.ray.cluster_resources()
        room = there.get("CPU", 0) // self.cpus
        if self.gpus:
            room = min(room, there.get("GPU", 0) // self.gpus)
        return max(1, int(room if self.most is None else min(room, self.most)))

    def start(self, task: Task) -> Job:
        return _Remote(self.ray, self._run.remote(task))


class _Remote:
    def __init__(self, ray: Any, result: Any) -> None:
        self.ray, self.result = ray, result

    def ended(self) -> str | None:
        done, _ = self.ray.wait([self.result], timeout=0)
        if not done:
            return None
        try:
            self.ray.get(self.result)
        except self.ray.exceptions.RayError as error:
            return str(error).strip().partition("\n")[0]
        return ""

    def stop(self) -> None:
        self.ray.cancel(self.result)


def _run(task: Task) -> None:
    task()
