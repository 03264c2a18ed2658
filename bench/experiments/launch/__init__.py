"""Run work items in other processes and machines: the protocol of a launcher, and the loop that drives it.

A launcher starts each item in its own process and reports how it ended. Workers may die, join and leave: an item
with a lost worker is started again, so it must be safe to run an item twice.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bench.errors import BadSetting, UnknownName


@dataclass(frozen=True)
class WorkItem:
    """A function and its arguments, which must all be picklable."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> None:
        self.function(*self.arguments)


def run_item(item: WorkItem) -> str:
    """Run an item in its worker. Return '' or the error as text, because only the worker may know its class."""
    try:
        item()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class StartedWork(Protocol):
    """An item that was started."""

    def poll(self) -> str | None:
        """Return None while it runs, '' when it has finished, else how its worker was lost."""

    def stop(self) -> None:
        """Interrupt it, without waiting."""

    def join(self) -> None:
        """Wait until it has ended after an interrupt."""


class Launcher(Protocol):
    """Runs items in their own processes."""

    @property
    def workers(self) -> int:
        """How many items can run at once, at least one. It may change as workers join and leave."""

    def start(self, item: WorkItem) -> StartedWork: ...


class InProcess:
    """Runs one item after another in this process, without protection against a crash: a started one has ended."""

    workers = 1

    def start(self, item: WorkItem) -> StartedWork:
        item()
        return self

    def poll(self) -> str:
        return ""

    def stop(self) -> None: ...
    def join(self) -> None: ...


@dataclass(frozen=True)
class Event:
    """What happened to an item; `reason` says how its worker was lost."""

    item: WorkItem
    kind: Literal["lost", "given up", "finished"]
    reason: str = ""


def run_items(
    items: Iterable[WorkItem], launcher: Launcher, *, retries: int = 2, pause: float = 0.2
) -> Generator[Event]:
    """Run items and yield an event as each ends; start a lost item again up to `retries` times.

    An item is taken from `items` only when a worker is free, so a generator can decide late what to run. Close the
    generator of events to stop the running items.
    """
    waiting, again, losses = iter(items), deque[WorkItem](), Counter[str]()
    running: dict[str, tuple[WorkItem, StartedWork]] = {}
    try:
        while True:
            while len(running) < launcher.workers and (item := again.popleft() if again else next(waiting, None)):
                running[item.name] = item, launcher.start(item)
            if not running:
                return
            ended = [(item, reason) for item, work in running.values() if (reason := work.poll()) is not None]
            if not ended:
                time.sleep(pause)
            for item, reason in ended:
                del running[item.name]
                losses[item.name] += bool(reason)
                if reason and losses[item.name] <= retries:
                    again.append(item)
                    yield Event(item, "lost", reason)
                else:
                    yield Event(item, "given up" if reason else "finished", reason)
    finally:
        for _, work in running.values():  # stop all before waiting: each may need a while to end its runs
            work.stop()
        for _, work in running.values():
            work.join()


def make_launcher(name: str, workers: int | None, options: Mapping[str, Any]) -> Launcher:
    """Make the launcher local, ray or slurm. Raises `BadSetting` for options that it does not take."""
    from bench.experiments.launch.local import LocalLauncher
    from bench.experiments.launch.on_ray import RayLauncher
    from bench.experiments.launch.on_slurm import SlurmLauncher

    kinds: tuple[Callable[..., Launcher], ...] = (LocalLauncher, RayLauncher, SlurmLauncher)
    launchers = dict(zip(("local", "ray", "slurm"), kinds, strict=True))
    if name not in launchers:
        raise UnknownName(f"there is no launcher '{name}'. Choose one of {', '.join(launchers)}.")
    try:
        return launchers[name](workers, **options)
    except TypeError as error:
        raise BadSetting(f"--launch: {error}. Give only options that --launcher {name} takes.") from None
