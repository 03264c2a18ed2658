"""The scheduler against hand-made schedules, brute force, conservation of time and textbook expectations."""

from __future__ import annotations

import random
from itertools import pairwise, product
from math import expm1, sqrt

import pytest

from bench.scheduling import Job, Outcome, next_job, queue, simulate


def jobs_of(*seconds: float, data: str = "") -> list[Job]:
    return [Job(f"{data}{number}", s, data) for number, s in enumerate(seconds)]


def some_jobs(seed: int, count: int = 40) -> list[Job]:
    rng = random.Random(seed)
    return [Job(f"{n}", rng.lognormvariate(6, 1), rng.choice("abc")) for n in range(count)]


def best_makespan(seconds: list[float], workers: int) -> float:
    """Of every way to hand the jobs out."""
    loads = [0.0] * workers
    best = sum(seconds)
    for owners in product(range(workers), repeat=len(seconds)):
        loads = [sum(s for s, owner in zip(seconds, owners, strict=True) if owner == w) for w in range(workers)]
        best = min(best, max(loads))
    return best


# Which job is next


def test_the_longest_goes_first() -> None:
    waiting = queue(jobs_of(3, 9, 5))
    assert waiting[next_job(waiting, None)].seconds == 9


def test_what_counts_is_what_is_left() -> None:
    waiting = queue([Job("long", 100, done=95), Job("short", 10)])
    assert waiting[next_job(waiting, None)].name == "short"


@pytest.mark.parametrize(
    ("held", "load", "expected"),
    [
        (None, 5, "b9"),
        ("b", 5, "b9"),
        ("a", 0, "b9"),
        ("a", 1.9, "b9"),
        ("a", 2, "a7"),  # two seconds shorter, two saved
        ("a", 9, "a7"),  # never shorter than needed
        ("c", 0, "b9"),
        ("c", 100, "c1"),
        ("d", 100, "b9"),
    ],
)
def test_a_job_of_the_held_data_goes_first_where_that_saves_what_it_costs(
    held: str | None, load: float, expected: str
) -> None:
    waiting = queue([Job("a7", 7, "a"), Job("c1", 1, "c"), Job("b9", 9, "b"), Job("a4", 4, "a")])
    assert waiting[next_job(waiting, held, load)].name == expected


def test_of_equal_jobs_the_held_data_set_goes_first_even_where_loading_is_free() -> None:
    waiting = queue([Job("x", 5, "a"), Job("y", 5, "b"), Job("z", 5, "c")])
    assert [waiting[next_job(waiting, held)].name for held in "abc"] == ["x", "y", "z"]


# Makespans


def test_one_worker_takes_the_sum() -> None:
    done = simulate(jobs_of(3, 9, 5), 1)
    assert done.makespan == 17
    assert done.order == ("1", "2", "0")
    assert done.busy == (1.0,)


def test_nothing_to_do_takes_no_time() -> None:
    assert simulate([], 3) == Outcome(0, (0.0, 0.0, 0.0), 0, 0, ())


@pytest.mark.parametrize(
    ("seconds", "workers", "longest_first", "best"),
    [
        ((3, 3, 2, 2, 2), 2, 7, 6),
        ((5, 5, 4, 4, 3, 3, 3), 3, 11, 9),
        ((7, 7, 6, 6, 5, 5, 4, 4, 4), 4, 15, 12),
    ],
)
def test_grahams_worst_cases_reach_his_bound(
    seconds: tuple[float, ...], workers: int, longest_first: float, best: float
) -> None:
    """2m - 1, 2m - 1, 2m - 2, 2m - 2 ... m + 1, m + 1, m, m, m on m workers: 4m - 1 against 3m."""
    assert simulate(jobs_of(*seconds), workers).makespan == longest_first
    assert longest_first / best == pytest.approx(4 / 3 - 1 / (3 * workers))
    if workers < 4:  # 4 ** 9 ways are too many
        assert best_makespan(list(seconds), workers) == best


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_longest_first_stays_within_grahams_bound(workers: int, seed: int) -> None:
    rng = random.Random(seed)
    seconds = [rng.choice([rng.random(), rng.lognormvariate(0, 1)]) for _ in range(rng.randint(1, 7))]
    best = best_makespan(seconds, workers)
    found = simulate(jobs_of(*seconds), workers).makespan
    assert best * (1 - 1e-9) <= found <= best * (4 / 3 - 1 / (3 * workers)) * (1 + 1e-9)


def test_the_order_matters_where_one_job_is_long() -> None:
    """Six of 1 s and one of 6 s on two workers: the long one first, 6 s; last, 3 + 6 s."""
    jobs = jobs_of(1, 1, 1, 1, 1, 1, 6)
    assert simulate(jobs, 2).makespan == 6
    assert simulate(jobs, 2, choose=lambda waiting, held, load: 0).makespan == 9


def test_starting_is_paid_once_and_loading_at_every_change_of_data() -> None:
    """9 b, 7 a, 4 a: start 10, load b 2, work 9, load a 2, work 7 and 4."""
    done = simulate([Job("a7", 7, "a"), Job("b9", 9, "b"), Job("a4", 4, "a")], 1, startup=10, load=2)
    assert done.order == ("b9", "a7", "a4")
    assert done.makespan == 10 + 2 + 9 + 2 + 7 + 4
    assert done.overhead == 14
    assert [turn.start for turn in done.turns] == [0, 21, 30]


def test_two_workers_keep_to_their_data_sets() -> None:
    """Jobs of a and b in turn, each a second shorter than the one before: loading takes 2 s, so nobody changes."""
    jobs = [Job(f"{30 - n}", 30 - n, "ab"[n % 2]) for n in range(10)]
    assert simulate(jobs, 2, load=2).overhead == 4
    assert simulate(jobs, 2, load=2, choose=lambda waiting, held, load: len(waiting) - 1).overhead > 4


# Losses


def test_by_hand_a_death_takes_what_no_checkpoint_holds() -> None:
    """One job of 100 s saved every 10 s; the worker dies after `first` seconds, then lives long enough."""
    rate, seed = 60.0, 5  # deaths an hour
    lives = random.Random(seed)
    first, second = (lives.expovariate(rate / 3600) for _ in range(2))
    worked = first - 5
    kept = worked // 10 * 10
    assert 10 < kept < 90  # a seed that makes the story above true
    assert second > 5 + 100 - kept
    done = simulate(jobs_of(100), 1, startup=3, load=2, loss_rate=rate, checkpoint=0.1, seed=seed)
    assert done.makespan == pytest.approx(first + 5 + 100 - kept)
    assert done.lost == pytest.approx(worked - kept)
    assert done.overhead == 10
    assert [turn.finished for turn in done.turns] == [False, True]


def test_without_checkpoints_all_work_on_the_job_is_lost() -> None:
    done = simulate(jobs_of(100), 1, loss_rate=60, seed=5)
    assert done.lost == pytest.approx(sum(turn.end - turn.start for turn in done.turns if not turn.finished))
    assert done.makespan == pytest.approx(100 + done.lost)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("checkpoint", [1.0, 1 / 30])
def test_every_job_is_done_once_and_all_time_is_accounted_for(seed: int, checkpoint: float) -> None:
    jobs, workers = some_jobs(seed), 6
    options = {"startup": 20.0, "load": 5.0, "loss_rate": 2.0, "checkpoint": checkpoint}
    done = simulate(jobs, workers, seed=seed, **options)
    deaths = [turn for turn in done.turns if not turn.finished]
    assert deaths
    assert sorted(turn.job for turn in done.turns if turn.finished) == sorted(job.name for job in jobs)
    work = sum(job.seconds for job in jobs)
    assert sum(done.busy) * done.makespan == pytest.approx(work + done.overhead + done.lost)
    steps = {job.name: checkpoint * job.seconds for job in jobs}
    assert done.lost <= sum(steps[turn.job] for turn in deaths)
    idle = 0.0
    for worker in range(workers):
        turns = [turn for turn in done.turns if turn.worker == worker]
        idle += turns[0].start + done.makespan - turns[-1].end
        for before, after in pairwise(turns):
            assert before.end <= after.start
            idle += after.start - before.end
    assert idle + sum(done.busy) * done.makespan == pytest.approx(workers * done.makespan)


def test_a_job_is_never_worked_on_twice_at_once_and_never_after_it_is_done() -> None:
    done = simulate(some_jobs(1), 8, startup=30, loss_rate=4)
    assert len(done.turns) > 40
    for name in set(done.order):
        turns = [turn for turn in done.turns if turn.job == name]
        assert [turn.finished for turn in turns] == [False] * (len(turns) - 1) + [True]
        assert all(before.end <= after.start for before, after in pairwise(turns))


def test_an_idle_worker_takes_over_at_once() -> None:
    """Worker 0 dies on the long job when 1 is through with the short one: 1 is up, and only has to work."""
    done = simulate([Job("long", 100), Job("short", 1)], 2, startup=3, loss_rate=60, seed=11)
    first, short, again = done.turns
    assert (first.worker, first.finished) == (0, False)
    assert (short.worker, short.finished) == (1, True)
    assert first.end > short.end
    assert (again.job, again.worker, again.start) == ("long", 1, first.end)
    assert done.makespan == first.end + 100
    assert done.overhead == 6


def test_checkpoints_save_work() -> None:
    jobs = some_jobs(2, 200)
    costs = [simulate(jobs, 8, loss_rate=1, checkpoint=c, seed=3).lost for c in (1, 1 / 3, 1 / 30, 0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < costs[0] / 10
    assert costs[3] == 0


def test_the_expected_time_of_a_job_that_starts_over_is_the_textbook_one() -> None:
    """(exp(rate T) - 1) / rate for T s of work under deaths at `rate`; 2,000 jobs, four standard errors."""
    count, work, rate = 2000, 1000.0, 1.8
    done = simulate(jobs_of(*[work] * count), 1, loss_rate=rate, seed=1)
    each = rate / 3600
    expected = expm1(each * work) / each
    ends = [0.0, *(turn.end for turn in done.turns if turn.finished)]
    taken = [after - before for before, after in pairwise(ends)]
    deviation = sqrt(sum((t - expected) ** 2 for t in taken) / count)
    assert abs(sum(taken) / count - expected) < 4 * deviation / sqrt(count)
    assert expected > 1.2 * work


def test_deaths_are_as_frequent_as_asked_for() -> None:
    """A Poisson number with the busy hours times the rate as mean and variance; four standard deviations."""
    done = simulate(some_jobs(4, 500), 16, loss_rate=3, checkpoint=1 / 30, seed=2)
    expected = 3 * sum(done.busy) * done.makespan / 3600
    deaths = sum(not turn.finished for turn in done.turns)
    assert expected > 100
    assert abs(deaths - expected) < 4 * sqrt(expected)


def test_a_seed_decides_everything() -> None:
    options = {"startup": 20.0, "load": 5.0, "loss_rate": 2.0}
    first, again, other = (simulate(some_jobs(0), 4, seed=seed, **options) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert simulate(some_jobs(0)[::-1], 4, seed=7, **options) == first  # durations differ, so their order is given
