"""A search whose study is on a PostgreSQL server that restarts, stays away or loses connections."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from threading import Timer

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from bench.errors import StoreError
from bench.experiments.search.storage import COUNTED, open_storage, open_study
from bench.experiments.search.workers import run_trials
from bench.tracking import databases
from tests.experiments.search.fakes import draw_x, small_plan
from tests.servers import Postgres, losing_proxy

pytestmark = pytest.mark.slow

TRIALS = 6


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.create(f"study_{uuid.uuid4().hex}")


def search(url: str, at_third: Callable[[optuna.storages.RDBStorage], object], *, anew: bool = False) -> None:
    """Start or resume a study, and check its trials. The third calls `at_third`; `anew` reconnects after each."""
    plan = small_plan(trials=TRIALS).model_copy(update={"objectives": ("dice",)})
    with open_storage(url) as storage:
        study = open_study(storage, "s", plan, {"data": "d"}, maximize=True)

        def objective(trial: optuna.Trial) -> tuple[float, ...]:
            if trial.number == 2:
                at_third(storage)
            return draw_x(trial)

        after = storage.engine.dispose if anew else lambda: None
        run_trials(study, plan, objective, owner=True, after_trial=after)
        states = [trial.state for trial in study.trials]
        assert sum(state in COUNTED for state in states) == TRIALS
        assert set(states) <= {*COUNTED, TrialState.FAIL}


@pytest.mark.parametrize("moment", ["between two transactions", "in a transaction"])
def test_a_server_that_restarts_costs_a_search_no_trial(moment: str, url: str, postgres: Postgres) -> None:
    stopped: list[bool] = []

    def restart(*_: object) -> None:
        if not stopped:
            stopped.append(True)
            postgres.stop()
            Timer(3, postgres.start).start()

    def at_third(storage: optuna.storages.RDBStorage) -> None:
        if moment == "in a transaction":
            event.listen(storage.engine, "before_cursor_execute", restart)
        else:
            restart()

    search(url, at_third)
    assert stopped


def test_a_server_that_stays_away_ends_a_search_which_the_command_resumes(
    url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "WAIT", 0)
    try:
        with pytest.raises(StoreError, match=r"no longer answers.* repeat the command"):
            search(url, lambda storage: postgres.stop())
    finally:
        postgres.start()
    search(url, lambda storage: None)


def test_a_search_survives_the_loss_of_every_third_connection(url: str, postgres: Postgres) -> None:
    with losing_proxy(postgres.port) as port:
        search(url.replace(str(postgres.port), str(port)), lambda storage: None, anew=True)
