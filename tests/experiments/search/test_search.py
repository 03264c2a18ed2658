"""`bench search` from the command to the tracked runs: studies, helpers, nested search, the held-out test."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml
from typer.testing import CliRunner

from bench.analysis.board_rows import search_trials
from bench.cli import app
from bench.errors import BadSetting
from bench.experiments.search import command as searching
from bench.experiments.search.command import OUTER
from bench.experiments.search.objective import EpochScore
from bench.experiments.search.storage import load_study, open_storage
from bench.experiments.search.study_run import STUDY, TRIAL
from bench.overrides import configure, load_settings
from bench.tracking import PARENT, Tag, connect, find_run, read_table, search_runs
from bench.tracking.participants import read_participants
from tests.experiments.search.fakes import BASE, SPACE, FakeEvaluator, points, small_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def searched(template: Path, tmp_path_factory: pytest.TempPathFactory):
    """A study of three trials with a fake evaluator; its best and the default are really trained and tested."""
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(template, folder / "mlruns")
    uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        evaluator, out = FakeEvaluator(), folder / "best.yaml"
        options = {"machine": {}, "uri": uri, "quiet": True, "evaluator": evaluator}
        run = searching.search(small_plan(), name="one", against_default=True, out=out, **options)
        yield SimpleNamespace(
            folder=folder,
            uri=uri,
            storage=f"sqlite:///{folder / 'mlruns' / 'optuna.db'}",
            evaluator=evaluator,
            run=run,
            out=out,
            store=connect(uri),
        )


@pytest.fixture
def options(searched, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The arguments of another command in the same folder, with an evaluator of its own."""
    monkeypatch.chdir(searched.folder)
    return {"machine": {}, "uri": searched.uri, "quiet": True, "evaluator": FakeEvaluator()}


def children_of(searched: SimpleNamespace, **tags: str):
    return search_runs(searched.store, {"mlflow.parentRunId": searched.run, **tags})


def test_no_test_patient_reaches_an_objective(searched, experiment) -> None:
    outer = experiment.folds[0]
    assert searched.evaluator.calls == 6  # three trials with two inner folds
    assert searched.evaluator.patients == outer.train | outer.val


def test_trials_are_child_runs_and_plots_are_logged(searched) -> None:
    run = find_run(searched.store, "one")
    assert (run.data.tags["bench.kind"], run.info.status) == ("study", "FINISHED")
    children = children_of(searched)
    assert sorted(r.data.tags["bench.kind"] for r in children) == [OUTER] * 2 + [TRIAL] * 3
    trial = next(r for r in children if r.info.run_name == "trial 1")
    expected = 1 - abs(math.log10(float(trial.data.params["train.lr"])) + 3)
    assert trial.data.metrics["dice"] == pytest.approx(expected)
    plots = {f.path for f in searched.store.client.list_artifacts(searched.run, "plots")}
    assert plots == {f"plots/{n}.png" for n in ("history", "importance", "slices", "parallel")}


def test_stored_attributes_keep_their_names_so_old_studies_can_be_resumed(searched) -> None:
    with open_storage(searched.storage) as storage:
        study, _ = load_study(storage, "one")
        assert set(study.user_attrs) == {"plan", "trials", "key", "data", "split", "code", "here"}
        assert all({"queued", "worker", "folds"} == set(t.user_attrs) for t in study.trials)
    tags = find_run(searched.store, "one").data.tags
    assert {"bench.study", "bench.study_key", "bench.best_trial", "bench.trials"} <= set(tags)
    trial = children_of(searched, **{Tag.KIND: TRIAL})[0].data.tags
    assert {"bench.trial", "bench.state"} <= set(trial)


def test_only_the_held_out_patients_test_the_best_and_the_default(searched, experiment) -> None:
    children = children_of(searched, **{Tag.KIND: OUTER})
    assert len(children) == 2
    for child in children:
        assert set(read_table(searched.store, child, "cases")["case"]) == experiment.folds[0].test


def test_bench_run_takes_the_file_of_the_best_settings(searched, options) -> None:
    best = max(children_of(searched, **{Tag.KIND: TRIAL}), key=lambda r: r.data.metrics["dice"]).data.params
    config = configure(load_settings(searched.out))
    assert config.train.lr == float(best["train.lr"])
    expected = configure(BASE, {"train.lr": float(best["train.lr"]), "loss": best["loss"]})
    assert config.fingerprint() == expected.fingerprint()
    assert "3 trials (3 complete, 0 pruned)" in searched.out.read_text()
    result = CliRunner().invoke(app, ["run", "--config", str(searched.out), "--dry-run", "--quiet"])
    assert result.exit_code == 0, result.output
    assert config.fingerprint() in result.output


def test_the_same_command_again_trains_and_tests_nothing(searched, options) -> None:
    before = {r.info.run_id for r in children_of(searched)}
    file = searched.folder / "one.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, "space": {"train.lr": "1..2", "loss": SPACE["loss"]}}))
    words = ["search", file, "--space", f"train.lr={SPACE['train.lr']}", "--trials", 3, "--inner", 2]
    words += ["--sampler", "random", "--against-default", "--quiet", "--tracking-uri", searched.uri]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "one: 3 trials (3 complete, 0 pruned)" in result.output
    assert "on 3 held-out patients of fold 0, scored once" in result.output
    assert f"optuna-dashboard {searched.storage}" in result.output
    assert "the default:" in result.output
    assert {r.info.run_id for r in children_of(searched)} == before


def test_a_command_killed_while_opening_its_run_resumes_that_run(searched, options) -> None:
    with open_storage(searched.storage) as storage:
        study = optuna.create_study(study_name="cut", storage=storage, direction="maximize")
        study.set_user_attr("key", "its own")
    opened = searched.store.client.create_run(
        searched.store.experiment("phantom"), tags={Tag.KIND: STUDY, Tag.STUDY_KEY: "its own"}
    )
    assert searching.search(small_plan(trials=1), name="cut", **options) == opened.info.run_id


def test_a_helper_joins_a_study_by_its_name_alone(searched, options, experiment, capsys) -> None:
    evaluator = options["evaluator"]
    searching.join_study("one", **options)
    assert evaluator.calls == 0  # the budget is used up
    assert "no trial was left for this worker" in capsys.readouterr().out
    with open_storage(searched.storage) as storage:
        load_study(storage, "one")[0].set_user_attr("trials", 4)
    searching.join_study("one", **options)
    assert evaluator.calls == 2
    assert "1 of them since this worker joined" in capsys.readouterr().out
    assert evaluator.patients == experiment.folds[0].train | experiment.folds[0].val
    with open_storage(searched.storage) as storage:
        study, plan = load_study(storage, "one")
        assert len(points(study)) == plan.trials == 4
        assert len({t.params["train.lr"] for t in study.trials}) == 4
    with pytest.raises(BadSetting, match="started with a different data"):
        searching.join_study("one", **options | {"machine": {"dataset.patients": 10}})


class EvaluatorByStudy(FakeEvaluator):
    """An evaluator that remembers the patients of each study, in the order of the studies."""

    def __init__(self) -> None:
        super().__init__()
        self.by_study: list[set[str]] = []

    def __call__(self, experiment, fold, loader, **more) -> Iterator[EpochScore]:
        if self.calls % 2 == 0:
            self.patients = set()
            self.by_study.append(self.patients)
        return super().__call__(experiment, fold, loader, **more)


def test_nested_search_tests_each_patient_by_settings_chosen_without_it(searched, options, experiment) -> None:
    evaluator = EvaluatorByStudy()
    run_id = searching.search_nested(small_plan(trials=1), name="deep", **options | {"evaluator": evaluator})
    run = find_run(searched.store, run_id)
    assert (run.data.tags[Tag.KIND], run.data.params["search.nested"]) == (PARENT, "True")
    assert search_trials(run.data.params) == 1, "its row shows how many trials chose it"
    assert run.data.params["search.trials"] == "1"
    cases = read_table(searched.store, run, "cases")
    assert sorted(cases["case"]) == sorted(experiment.pack.cases)
    renamed = replace(experiment.raw, index=experiment.raw.index.assign(case="who", patient="who"))
    assert read_participants(searched.store, run).find_in(renamed) == ["who"]
    costs = run.data.metrics
    assert costs["cost/device_seconds"] == pytest.approx(costs["cost/train_seconds"] * torch.get_num_threads())
    assert run.data.tags["env.device"] == "cpu"
    assert len(evaluator.by_study) == 3
    for fold, patients in zip(experiment.folds, evaluator.by_study, strict=True):
        assert set(cases.loc[cases["fold"] == fold.number, "case"]) == fold.test
        assert patients == fold.train | fold.val
