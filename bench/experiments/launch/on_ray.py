"""Workers on a Ray cluster: the one at an address (or in RAY_ADDRESS), else a new one on this machine."""

from __future__ import annotations

import os
import signal
import socket
from importlib import import_module
from typing import Any

from bench.errors import BadSetting
from bench.experiments.launch import StartedWork, WorkItem, run_item


class RayLauncher:
    """Starts each item in a process with `cpus` cores (and threads) and `gpus` GPUs, by default one if any.

    `address` is HOST:PORT of the head node, or auto for the cluster that this machine is a node of.
    """

    def __init__(
        self, workers: int | None = None, *, address: str | None = None, cpus: int = 1, gpus: float | None = None
    ) -> None:
        try:
            self.ray: Any = import_module("ray")
        except ImportError:
            raise BadSetting("--launcher ray needs Ray: pip install 'medseg-bench[ray]'.") from None
        self.max_workers = workers
        if not self.ray.is_initialized():
            connect(self.ray, address)
        resources = self.ray.cluster_resources()
        self.cpus, self.gpus = cpus, gpus if gpus is not None else min(1.0, resources.get("GPU", 0.0))
        ours = {k: v for k, v in os.environ.items() if k.startswith(("BENCH_", "HF_", "MLFLOW_"))}
        self._run = self.ray.remote(  # `run_items` retries, so that all launchers do the same
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_calls=1,
            max_retries=0,
            runtime_env={"env_vars": ours | {"OMP_NUM_THREADS": str(cpus)}},
        )(run_item)

    @property
    def workers(self) -> int:
        resources = self.ray.cluster_resources()
        room = resources.get("CPU", 0) // self.cpus
        if self.gpus:
            room = min(room, resources.get("GPU", 0) // self.gpus)
        return max(1, int(room if self.max_workers is None else min(room, self.max_workers)))

    def start(self, item: WorkItem) -> StartedWork:
        return _RayTask(self.ray, self._run.remote(item))


class _RayTask:
    def __init__(self, ray: Any, result: Any) -> None:
        self.ray, self.result = ray, result

    def poll(self) -> str | None:
        done, _ = self.ray.wait([self.result], timeout=0)
        if not done:
            return None
        try:
            return str(self.ray.get(self.result))
        except self.ray.exceptions.RayTaskError as error:  # the worker could not unpickle the item
            return str(error).strip().splitlines()[-1]
        except self.ray.exceptions.RayError as error:
            return _first_sentence(error)

    def stop(self) -> None:
        self.ray.cancel(self.result)

    def join(self) -> None:
        """Ray waits for the worker."""


def connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one. Raises `BadSetting` if Ray cannot."""
    target = address or os.environ.get("RAY_ADDRESS") or "local"  # Ray's default is the last `ray start`
    try:
        if target != "local":
            _check_reachable(target)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        ray.init(address=target, log_to_driver=False, logging_level="ERROR")
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler exits before our runs have ended
        ray._private.worker._worker_logs_enabled = False  # Ray would print pages about a lost node
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise BadSetting(
            f"--launcher ray: {_first_sentence(error)}. Give --launch address=HOST:PORT of the head, on a machine "
            "that is a node of the cluster. If the cluster needs a token, set RAY_AUTH_MODE=token and put the "
            "output of `ray get-auth-token` on the head into RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from None


def _check_reachable(address: str) -> None:
    """Raise `ConnectionError` if no cluster answers: Ray itself would try for a quarter of an hour."""
    services = import_module("ray._private.services")  # it knows where `ray start` stores the address
    location = address.partition("://")[2] or services.canonicalize_bootstrap_address(address)
    host, _, port = location.rpartition(":")
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {location} ({error.strerror or error})") from None


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of Ray's error, which can be pages long."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
