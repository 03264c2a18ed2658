"""Slurm, through submitit: every task is a job of its own, and Slurm decides when it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

from bench.errors import BadSetting
from bench.experiments.launch import StartedWork, WorkItem, attempt

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "FORGOTTEN", "NODE_FAIL", "OUT_OF_MEMORY"}


ENDED |= {"PREEMPTED", "REVOKED", "TIMEOUT"}


CORES = (  # what a job was given it uses; since Slurm 22.05 srun has to be told of --cpus-per-task again
    "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_ON_NODE",
    "export OMP_NUM_THREADS=$SLURM_CPUS_ON_NODE",
)


class SlurmLauncher:
    """Submits to the queue; `parameters` are submitit's, such as timeout_min, slurm_partition or gpus_per_node.

    `folder` must be seen by all machines: it holds what jobs are given and what they print. Slurm is asked for the
    states of all jobs at once, each `ask_every` seconds. `cluster` "local" runs them as processes of this machine.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        folder: str = "slurm",
        ask_every: float = 10,
        cluster: str = "slurm",
        **parameters: Any,
    ) -> None:
        try:
            submitit: Any = import_module("submitit")
        except ImportError:
            raise BadSetting("--launcher slurm needs submitit: pip install 'medseg-bench[slurm]'.") from None
        self.workers = workers or sys.maxsize
        self._states = _States(ask_every) if cluster == "slurm" else None
        given: dict[str, Any] = {"name": "bench", "timeout_min": 24 * 60} | parameters
        given["slurm_setup"] = [*CORES, *given.get("slurm_setup", ())]
        try:
            self._queue = submitit.AutoExecutor(folder, cluster=cluster)
            self._queue.update_parameters(**given)
        except (RuntimeError, NameError, AssertionError) as error:  # no Slurm here, or a parameter that it has not
            raise _refused(error) from None

    def start(self, task: WorkItem) -> StartedWork:
        try:
            return _Queued(self._queue.submit(attempt, task), self._states)
        except RuntimeError as error:  # a partition that is not there, say
            raise _refused(error) from None


class _Queued:
    def __init__(self, job: Any, states: _States | None) -> None:
        self.job, self.states, self.since = job, states, time.monotonic()

    def ended(self) -> str | None:
        state = "" if self.states is None else self.states.of(self.job.job_id, self.since)
        if self.job.paths.result_pickle.exists() or (self.states is None and self.job.done()):
            error = self.job.exception()
            return str(self.job.result()) if error is None else _last(error)
        return f"job {self.job.job_id}: {state}, see {self.job.paths.stderr}" if state in ENDED else None

    def stop(self) -> None:
        self.job.cancel(check=False)

    def join(self) -> None:
        """Slurm sees to it."""


class _States:
    """What Slurm says of this user's jobs. submitit asks sacct, which many clusters lack, and seldom."""

    def __init__(self, ask_every: float) -> None:
        self.ask_every = ask_every
        self._said: dict[str, str] = {}
        self._asked = self._answered = float("-inf")

    def of(self, job: str, since: float) -> str:
        """RUNNING, CANCELLED and so on; FORGOTTEN some time after its end, '' before it was asked for."""
        if time.monotonic() - self._asked > self.ask_every:
            self._asked = time.monotonic()
            command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A %T"]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode == 0:  # else it is busy, or restarts
                self._said = dict(line.split() for line in answer.stdout.splitlines())
                self._answered = self._asked
        return self._said.get(job, "FORGOTTEN") if self._answered > since else ""


def _refused(error: Exception) -> BadSetting:
    return BadSetting(f"--launcher slurm: {' '.join(str(error).split())}")


def _last(error: Exception) -> str:
    """The last line of the trace in an error of submitit's, which says what went wrong."""
    text = str(error)
    return (text.rpartition(f"\n{'-' * 22}\n")[0] or text).strip().splitlines()[-1]
