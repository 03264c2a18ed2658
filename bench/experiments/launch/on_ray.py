"""A Ray cluster: the one at an address (or in RAY_ADDRESS), else one of this machine, started for the occasion."""

from __future__ import annotations

import os
import signal
import socket
from importlib import import_module
from typing import Any

from bench.errors import BadSetting
from bench.experiments.launch import StartedWork, WorkItem, attempt, carried


class RayLauncher:
    """Each task has a process, `cpus` cores (and threads) and `gpus` GPUs: by default one where there are any.

    `address` is HOST:PORT of the head, or auto for the cluster that this machine is a node of.
    """

    def __init__(
        self, workers: int | None = None, *, address: str | None = None, cpus: int = 1, gpus: float | None = None
    ) -> None:
        try:
            self.ray: Any = import_module("ray")
        except ImportError:
            raise BadSetting("--launcher ray needs Ray: pip install 'medseg-bench[ray]'.") from None
        self.most, ray = workers, self.ray
        if not ray.is_initialized():
            join(ray, address)
        there = ray.cluster_resources()
        self.cpus, self.gpus = cpus, gpus if gpus is not None else min(1.0, there.get("GPU", 0.0))
        self._run = ray.remote(  # retries are ours, so that every engine does the same
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_calls=1,
            max_retries=0,
            runtime_env={"env_vars": carried() | {"OMP_NUM_THREADS": str(cpus)}},
        )(attempt)

    @property
    def workers(self) -> int:
        there = self.ray.cluster_resources()
        room = there.get("CPU", 0) // self.cpus
        if self.gpus:
            room = min(room, there.get("GPU", 0) // self.gpus)
        return max(1, int(room if self.most is None else min(room, self.most)))

    def start(self, task: WorkItem) -> StartedWork:
        return _Remote(self.ray, self._run.remote(task))


class _Remote:
    def __init__(self, ray: Any, result: Any) -> None:
        self.ray, self.result = ray, result

    def ended(self) -> str | None:
        done, _ = self.ray.wait([self.result], timeout=0)
        if not done:
            return None
        try:
            return str(self.ray.get(self.result))
        except self.ray.exceptions.RayTaskError as error:  # the task could not be read there
            return str(error).strip().splitlines()[-1]
        except self.ray.exceptions.RayError as error:
            return _first(error)

    def stop(self) -> None:
        self.ray.cancel(self.result)

    def join(self) -> None:
        """Ray sees to it."""


def join(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one. Raises `BadSetting` for what keeps Ray from it."""
    where = address or os.environ.get("RAY_ADDRESS") or "local"  # else Ray goes where `ray start` has last been
    try:
        if where != "local":
            _knock(where)
        at_end = signal.getsignal(signal.SIGTERM)
        ray.init(address=where, log_to_driver=False, logging_level="ERROR")
        signal.signal(signal.SIGTERM, at_end)  # not that of Ray, which lets nobody say goodbye
        ray._private.worker._worker_logs_enabled = False  # the pages that it prints of a node that is lost
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise BadSetting(
            f"--launcher ray: {_first(error)}. Give --launch address=HOST:PORT of the head, on a machine that is "
            "a node of the cluster. If it wants a token, set RAY_AUTH_MODE=token and, in RAY_AUTH_TOKEN or "
            "~/.ray/auth_token, what `ray get-auth-token` says on the head."
        ) from None


def _knock(address: str) -> None:
    """Raise `ConnectionError` where nobody answers: Ray itself would try for a quarter of an hour."""
    services = import_module("ray._private.services")  # it knows where `ray start` notes the address
    there = address.partition("://")[2] or services.canonicalize_bootstrap_address(address)
    host, _, port = there.rpartition(":")
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {there} ({error.strerror or error})") from None


def _first(error: Exception) -> str:
    """The first sentence of what Ray says, which is pages."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
