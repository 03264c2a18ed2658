"""Workers on a Slurm cluster, through submitit: each item is a job, and Slurm decides when it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

from bench.errors import BadSetting
from bench.experiments.launch import StartedWork, WorkItem, run_item

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "FORGOTTEN", "NODE_FAIL", "OUT_OF_MEMORY"}
ENDED |= {"PREEMPTED", "REVOKED", "TIMEOUT"}
SETUP = (  # a job uses all its cores; since Slurm 22.05 srun does not inherit --cpus-per-task
    "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_ON_NODE",
    "export OMP_NUM_THREADS=$SLURM_CPUS_ON_NODE",
)


class SlurmLauncher:
    """Submits each item as a job; `parameters` are submitit's, such as timeout_min or slurm_partition.

    All machines must see `folder`, which holds the pickled items and the output of jobs. The states of all jobs
    are read at once, every `ask_every` seconds. `cluster` "local" runs the jobs as processes of this machine.
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
        self._states = _JobStates(ask_every) if cluster == "slurm" else None
        settings: dict[str, Any] = {"name": "bench", "timeout_min": 24 * 60} | parameters
        settings["slurm_setup"] = [*SETUP, *settings.get("slurm_setup", ())]
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            self._executor.update_parameters(**settings)
        except (RuntimeError, NameError, AssertionError) as error:  # no Slurm here, or an unknown parameter
            raise _bad_setting(error) from None

    def start(self, item: WorkItem) -> StartedWork:
        try:
            return _SlurmJob(self._executor.submit(run_item, item), self._states)
        except RuntimeError as error:  # for example an unknown partition
            raise _bad_setting(error) from None


class _SlurmJob:
    def __init__(self, job: Any, states: _JobStates | None) -> None:
        self.job, self.states, self.submitted = job, states, time.monotonic()

    def poll(self) -> str | None:
        state = "" if self.states is None else self.states.read(self.job.job_id, self.submitted)
        if self.job.paths.result_pickle.exists() or (self.states is None and self.job.done()):
            if (error := self.job.exception()) is None:
                return str(self.job.result())
            text = str(error)  # with a traceback by submitit, whose last line says what went wrong
            return (text.rpartition(f"\n{'-' * 22}\n")[0] or text).strip().splitlines()[-1]
        return f"job {self.job.job_id}: {state}, see {self.job.paths.stderr}" if state in ENDED else None

    def stop(self) -> None:
        self.job.cancel(check=False)

    def join(self) -> None:
        """Slurm waits for the job."""


class _JobStates:
    """The states of this user's jobs by squeue; submitit would ask sacct, which many clusters lack, and rarely."""

    def __init__(self, ask_every: float) -> None:
        self.ask_every = ask_every
        self._states: dict[str, str] = {}
        self._asked = self._answered = float("-inf")

    def read(self, job: str, submitted: float) -> str:
        """Return the state, such as RUNNING; FORGOTTEN if Slurm does not know the job; '' if not yet asked."""
        if time.monotonic() - self._asked > self.ask_every:
            self._asked = time.monotonic()
            command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A %T"]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode == 0:  # otherwise Slurm is busy or restarting
                self._states = dict(line.split() for line in answer.stdout.splitlines())
                self._answered = self._asked
        return self._states.get(job, "FORGOTTEN") if self._answered > submitted else ""


def _bad_setting(error: Exception) -> BadSetting:
    return BadSetting(f"--launcher slurm: {' '.join(str(error).split())}")
