"""Fixtures of the search tests: an Optuna storage, a study in it, and a tiny experiment."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest

from bench.experiments.search.plan import SearchPlan, make_pruner, make_sampler
from bench.experiments.search.storage import open_storage, open_study
from bench.overrides import configure
from bench.training.experiment import Experiment, resolve
from tests.experiments.search.fakes import BASE


@pytest.fixture(scope="module", autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    """Garbage is collected after every trial: do not look through all imported modules each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def empty_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Optuna storage without a study: creating one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    with open_storage(f"sqlite:///{path}"):
        pass
    return path


@pytest.fixture
def url(empty_storage: Path, tmp_path: Path) -> str:
    shutil.copy(empty_storage, tmp_path / "optuna.db")
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[SearchPlan], optuna.Study]]:
    """Open the study 's' through a storage of its own, as another process would."""
    with ExitStack() as stack:

        def open_s(plan: SearchPlan) -> optuna.Study:
            storage = stack.enter_context(open_storage(url))
            named = plan.model_copy(update={"objectives": plan.objectives or ("dice",)})
            study = open_study(storage, "s", named, {"data": "d"}, maximize=True)
            study.sampler, study.pruner = make_sampler(plan), make_pruner(plan, 9)
            return study

        yield open_s


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent)
        return resolve(configure(BASE, {"train.epochs": 2}))
