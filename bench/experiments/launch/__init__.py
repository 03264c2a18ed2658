"""Work spread over processes and machines: a small protocol, its engines, and the one loop that drives them.

An engine starts tasks in processes of their own and says when and how each has ended. Workers may die, join and
leave: a task whose worker was lost is started again, so what it does must be safe to do twice.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bench.errors import BadSetting, UnknownName


@dataclass(frozen=True)
class WorkItem:
    """A function and what it is given, all of which can be pickled."""

    name: str
    work: Callable[..., None]
    given: tuple[Any, ...] = ()

    def __call__(self) -> None:
        self.work(*self.given)


def attempt(task: WorkItem) -> str:
    """Run a task in its worker: '' or what went wrong, as text, for an error may not be known elsewhere."""
    try:
        task()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class StartedWork(Protocol):
    """A task that was started."""

    def ended(self) -> str | None:
        """None while it is at work, '' when its work is over, else how its worker was lost."""

    def stop(self) -> None:
        """Interrupt it, and come back at once."""

    def join(self) -> None:
        """Wait for it to end after it was interrupted."""


class Launcher(Protocol):
    """An engine that runs tasks in processes of their own."""

    @property
    def workers(self) -> int:
        """How many tasks it can have at once, at least one. This may change as workers join and leave."""

    def start(self, task: WorkItem) -> StartedWork: ...


class InProcess:
    """One task after another in this process, which is lost with the first that dies."""

    workers = 1

    def start(self, task: WorkItem) -> StartedWork:
        task()
        return _Over()


class _Over:
    def ended(self) -> str:
        return ""

    def stop(self) -> None:
        """It has ended."""

    def join(self) -> None:
        """It has ended."""


@dataclass(frozen=True)
class Event:
    """What has become of a task; `said` is how its worker was lost."""

    task: WorkItem
    what: Literal["lost", "given up", "over"]
    said: str = ""


def spread(
    tasks: Iterable[WorkItem], launcher: Launcher, *, retries: int = 2, pause: float = 0.2
) -> Generator[Event]:
    """Run tasks and tell of each as it ends; a lost one is told of and starts again up to `retries` times.

    `tasks` are taken one by one as workers are free, so that a generator can decide at the last moment. Close the
    iterator to stop the tasks that are at work.
    """
    waiting, again, lost = iter(tasks), deque[WorkItem](), Counter[str]()
    jobs: dict[str, tuple[WorkItem, StartedWork]] = {}
    try:
        while True:
            while len(jobs) < launcher.workers and (task := again.popleft() if again else next(waiting, None)):
                jobs[task.name] = task, launcher.start(task)
            if not jobs:
                return
            ended = [(t, said) for t, job in jobs.values() if (said := job.ended()) is not None]
            if not ended:
                time.sleep(pause)
            for task, said in ended:
                del jobs[task.name]
                lost[task.name] += bool(said)
                if said and lost[task.name] <= retries:
                    again.append(task)
                    yield Event(task, "lost", said)
                else:
                    yield Event(task, "given up" if said else "over", said)
    finally:
        for _, job in jobs.values():  # all at once: each may need a while to say goodbye
            job.stop()
        for _, job in jobs.values():
            job.join()


def engine(name: str, workers: int | None, options: Mapping[str, Any]) -> Launcher:
    """The engine of this name: local, ray or slurm. Raises `BadSetting` for what it cannot take."""
    from bench.experiments.launch.local import LocalLauncher
    from bench.experiments.launch.on_ray import RayLauncher
    from bench.experiments.launch.on_slurm import SlurmLauncher

    engines: dict[str, Callable[..., Launcher]] = {
        "local": LocalLauncher,
        "ray": RayLauncher,
        "slurm": SlurmLauncher,
    }
    if name not in engines:
        raise UnknownName(f"there is no launcher '{name}'; there are {', '.join(engines)}.")
    try:
        return engines[name](workers, **options)
    except TypeError as error:
        raise BadSetting(f"--launch: {error}. It takes the options of --launcher {name}.") from None


def carried() -> dict[str, str]:
    """The part of this process's environment that a worker elsewhere needs."""
    return {k: v for k, v in os.environ.items() if k.startswith(("BENCH_", "HF_", "MLFLOW_"))}
