"""Which cell a free worker takes next, and what that comes to, played through on a virtual clock.

The longest expected goes first (LPT): where durations are known, nothing is started or loaded and no worker is
lost, m workers take at most 4/3 - 1/(3m) times as long as in the best schedule there is, and some job lists take
them that long (Graham 1969). A launcher asks the same `next_job` that `simulate` does. Times are seconds.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from operator import attrgetter


@dataclass(frozen=True)
class Job:
    """A cell that waits: `seconds` it is expected to take as a whole; `done` of them its checkpoint holds.

    A worker that last had another data set than `data` loads this one first.
    """

    name: str
    seconds: float
    data: str = ""
    done: float = 0.0

    @property
    def left(self) -> float:
        return self.seconds - self.done


@dataclass(frozen=True)
class Turn:
    """A worker on a job: starting, loading, work. Unless `finished`, the worker was lost at `end`."""

    worker: int
    job: str
    start: float
    end: float
    finished: bool


@dataclass(frozen=True)
class Outcome:
    """How a simulation went: all of a worker's busy time is work that stays, `overhead` or `lost`."""

    makespan: float  # until the last job is done
    busy: tuple[float, ...]  # share of the makespan, a worker
    lost: float  # work done twice, all workers
    overhead: float  # starting and loading, all workers
    turns: tuple[Turn, ...]  # in the order of their start

    @property
    def order(self) -> tuple[str, ...]:
        """Names of jobs as workers took them; again after a loss."""
        return tuple(turn.job for turn in self.turns)


Policy = Callable[[Sequence[Job], str | None, float], int]


def next_job(waiting: Sequence[Job], held: str | None, load: float = 0.0) -> int:
    """The place in `waiting`, shortest first, of the job for a free worker that holds the data set `held`.

    It is the last, the longest; but one of the held data set goes before it that is at most `load` shorter. The
    order then gives way by no more than the time that is saved, and the worker is free again no later.
    """
    longest = len(waiting) - 1
    near = bisect_left(waiting, waiting[longest].left - load, key=_left)
    return next((at for at in range(longest, near - 1, -1) if waiting[at].data == held), longest)


def queue(jobs: Iterable[Job]) -> list[Job]:
    """Jobs as `next_job` wants them: by what is left of them, shortest first."""
    return sorted(jobs, key=_left)


def simulate(
    jobs: Iterable[Job],
    workers: int,
    *,
    startup: float = 0.0,
    load: float = 0.0,
    loss_rate: float = 0.0,
    checkpoint: float = 1.0,
    seed: int = 0,
    choose: Policy = next_job,
) -> Outcome:
    """Play `jobs` through on equal workers, each of which takes exactly as long as expected.

    `startup` is paid by a worker before its first job and after each of its deaths, `load` whenever the data set
    changes. `loss_rate` is deaths an hour of each worker that is busy, at random (exponential lifetimes). Its job
    waits again from its last checkpoint; `checkpoint` is the share of a job between two of them: 1/30 saves each
    epoch of 30, 1 saves nothing, 0 everything.
    """
    rng = random.Random(seed)
    waiting, free = queue(jobs), list(range(workers))
    holds: dict[int, str] = {}  # workers that are up, and their data set
    running: list[tuple[float, int, Job | None]] = []  # when it ends, the worker, what will be left of the job
    turns: list[Turn] = []
    busy = [0.0] * workers
    now = lost = overhead = 0.0
    while waiting or running:
        while waiting and free:
            worker = min(free, key=lambda w: (w not in holds, w))  # one that is up, if there is one
            free.remove(worker)
            held = holds.get(worker)
            job = waiting.pop(choose(waiting, held, load))
            before = startup * (held is None) + load * (held != job.data)
            life = rng.expovariate(loss_rate / 3600) if loss_rate else inf
            rest, spent = None, before + job.left
            holds[worker] = job.data
            if life < spent:
                worked, step = max(0.0, life - before), checkpoint * job.seconds
                kept = worked // step * step if step else worked
                lost += worked - kept
                rest, spent = replace(job, done=job.done + kept), life
                del holds[worker]
            overhead += min(before, spent)
            busy[worker] += spent
            turns.append(Turn(worker, job.name, now, now + spent, rest is None))
            heappush(running, (now + spent, worker, rest))
        now, worker, rest = heappop(running)
        free.append(worker)
        if rest is not None:
            insort(waiting, rest, key=_left)
    return Outcome(now, tuple(b / now if now else 0.0 for b in busy), lost, overhead, tuple(turns))


_left = attrgetter("left")
