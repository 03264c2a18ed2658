"""The worker loop: run trials until the study has exactly as many as planned, and repeat interrupted ones.

The process that started a study owns it. Other processes may join as helpers, which run trials and nothing else.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

from optuna import Study, Trial
from optuna.exceptions import StorageInternalError
from optuna.storages import _CachedStorage, fail_stale_trials
from optuna.trial import TrialState, create_trial

from bench.errors import BadSetting, BenchError
from bench.experiments.search.plan import RETRY_HISTORY, SearchPlan, ignore_experimental_warnings
from bench.experiments.search.space import Space
from bench.experiments.search.storage import COUNTED, GRACE, PROBLEM, failed_trials, trials_of
from bench.training.fold import derive_seed

MAX_RETRIES = 2  # of a trial whose worker was lost
MAX_LOSSES = 5  # of the storage's connection, each in the middle of a transaction
POLL = 5.0  # seconds between two looks at the trials of other workers
MACHINE = platform.node()
ObjectiveFunction = Callable[[Trial], tuple[float, ...]]
# Attributes of a trial. Stored studies have them: they must keep their names.
WORKER = "worker"  # the machine of the owner that runs it; None if a helper does
QUEUED = "queued"  # the machine of the owner that queued it
SPARED = "spared"  # why it was stopped without a fault of its own: surplus or interrupted


class SurplusTrial(Exception):
    """A trial beyond the budget, because other workers started theirs first; it is never trained."""


def run_trials(
    study: Study,
    plan: SearchPlan,
    objective: ObjectiveFunction,
    *,
    owner: bool,
    after_trial: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Run trials until exactly `plan.trials` are complete or pruned, counting those of all workers.

    `after_trial` is called whenever a trial has ended. The owner also repeats interrupted trials and waits for its
    helpers. If the storage loses its connection, the trial at work is repeated like one of a lost worker. Raises
    `BadSetting` if more trials fail than finish, `StorageInternalError` if the storage does not come back.
    """
    for losses in range(MAX_LOSSES):
        try:
            _run_trials(study, plan, objective, owner=owner, after_trial=after_trial, say=say)
            return
        # Optuna raises an UnboundLocalError if it cannot read the trial whose result it could not store.
        except (StorageInternalError, UnboundLocalError) as error:
            lost = error if isinstance(error, StorageInternalError) else error.__context__
            if not isinstance(lost, StorageInternalError):
                raise
            if losses == MAX_LOSSES - 1:
                raise lost from lost.__cause__
            say("the storage lost its connection: the trial at work is repeated")


def _run_trials(
    study: Study,
    plan: SearchPlan,
    objective: ObjectiveFunction,
    *,
    owner: bool,
    after_trial: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    first_seen: dict[int, float] = {}
    announced = False
    with ignore_experimental_warnings():
        if owner:  # an earlier owner on this machine has left these: if it still ran, it would hold the lock
            for trial in trials_of(study, TrialState.RUNNING):
                if trial.user_attrs.get(WORKER, trial.user_attrs.get(QUEUED)) == MACHINE:
                    study.tell(trial.number, state=TrialState.FAIL)
        fail_stale_trials(study)
        # Optuna's MaxTrialsCallback looks only after a trial: n workers would run up to n - 1 trials too many.
        while True:
            states = [t.state for t in trials_of(study, *COUNTED, TrialState.RUNNING)]  # read at one moment
            running = states.count(TrialState.RUNNING)
            finished = len(states) - running
            if finished >= plan.trials:
                break
            _check_failures(study, finished)
            has_room = finished + running < plan.trials
            if has_room and owner:
                _queue_trials(study, new=plan.sampler != "grid")
            if has_room and (plan.sampler != "grid" or trials_of(study, TrialState.WAITING)):
                # The traceback of a pruned or failed trial holds its model on the device until it is collected.
                study.optimize(
                    lambda trial: _run_trial(study, plan, objective, trial, owner=owner),
                    n_trials=1,
                    catch=(BenchError, SurplusTrial),
                    gc_after_trial=True,
                )
            elif owner and running:
                if not announced:
                    say(f"waiting for {running} trials of other workers")
                announced = True
                time.sleep(POLL)
                fail_stale_trials(study)  # of workers that were lost
                fail_unclaimed(study, first_seen)
            else:
                break
            after_trial()
        after_trial()  # other workers may have ended trials since


def _run_trial(
    study: Study, plan: SearchPlan, objective: ObjectiveFunction, trial: Trial, *, owner: bool
) -> tuple[float, ...]:
    """Run one trial, and store which worker has it and why it ended without a score."""
    if isinstance(study._storage, _CachedStorage):  # a database
        study._storage.record_heartbeat(trial._trial_id)  # Optuna's thread sends its first one a moment later
    trial.set_user_attr(WORKER, MACHINE if owner else None)
    # Trial numbers only grow, so all workers agree on which trials are beyond the budget.
    others = trials_of(study, *COUNTED, TrialState.RUNNING, TrialState.WAITING)
    if sum(t.number < trial.number for t in others) >= plan.trials:
        trial.set_user_attr(SPARED, "surplus")
        raise SurplusTrial
    try:
        return objective(trial)
    except KeyboardInterrupt:
        trial.set_user_attr(SPARED, "interrupted")
        raise
    except BenchError as error:
        trial.set_user_attr(PROBLEM, str(error))
        raise


def fail_unclaimed(study: Study, first_seen: dict[int, float]) -> None:
    """Fail trials whose worker was lost before its first heartbeat: Optuna would leave them running forever.

    `first_seen` remembers when each one was first met, in seconds, between calls.
    """
    now = time.monotonic()
    for trial in trials_of(study, TrialState.RUNNING):
        if WORKER not in trial.user_attrs and now - first_seen.setdefault(trial.number, now) > GRACE:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _check_failures(study: Study, finished: int) -> None:
    """Raise `BadSetting` if at least three trials failed, and more than have finished."""
    problems = [t.user_attrs[PROBLEM] for t in failed_trials(study)]
    if len(problems) >= 3 and len(problems) > finished:
        raise BadSetting(
            f"{len(problems)} trials failed and {finished} finished; the last error was: {problems[-1]} "
            "Change the space, and give another --name."
        )


# Optuna's RetryHeartbeatStaleTrialCallback is not used: it misses trials stopped by Ctrl-C or before their first
# heartbeat, and loses a trial if the process that failed it is killed before it has queued the next attempt.
def _queue_trials(study: Study, *, new: bool) -> None:
    """Queue interrupted trials again. If then none is waiting and `new` is set, queue a new one.

    Only the owner does so, or two workers would repeat the same trial.
    """
    trials = study.get_trials(deepcopy=False)
    repeated = {number for t in trials for number in t.system_attrs.get(RETRY_HISTORY, ())}
    waiting = any(t.state == TrialState.WAITING for t in trials)
    for trial in trials:
        surplus = trial.user_attrs.get(SPARED) == "surplus" and "fixed_params" not in trial.system_attrs
        settled = surplus or PROBLEM in trial.user_attrs  # otherwise its values are still to be tried
        if trial.number in repeated or trial.state != TrialState.FAIL or settled:
            continue
        history = [*trial.system_attrs.get(RETRY_HISTORY, ()), trial.number]
        if sum(SPARED not in trials[number].user_attrs for number in history) <= MAX_RETRIES:
            _queue_trial(study, {**trial.system_attrs, RETRY_HISTORY: history})
            waiting = True
    if new and not waiting:
        _queue_trial(study, {})


def _queue_trial(study: Study, system_attrs: dict[str, Any]) -> None:
    trial = create_trial(state=TrialState.WAITING, user_attrs={QUEUED: MACHINE}, system_attrs=system_attrs)
    study.add_trial(trial)


# Optuna's GridSampler is not used: it has no conditional settings, and it skips points whose trial was interrupted
# and lets two workers try the same point.
def queue_grid(study: Study, plan: SearchPlan, space: Space) -> int:
    """Queue every point of the grid once, in an order that depends on the plan's seed. Return their number."""
    points = space.grid()
    if not study.user_attrs.get("queued"):
        with ignore_experimental_warnings():
            for index in sorted(range(len(points)), key=lambda index: derive_seed(plan.seed, index)):
                study.enqueue_trial(points[index], user_attrs={QUEUED: MACHINE}, skip_if_exists=True)
        study.set_user_attr("queued", True)
    return len(points)
