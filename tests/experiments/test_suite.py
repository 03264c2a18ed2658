"""Benchmark files: what is missing is run, what is done is left alone, and what is bad stops nobody else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import BadSetting, DataError, UnknownName
from bench.experiments.launch import WorkItem
from bench.experiments.suite import DONE, FAILED, MISSING, RUNNING, run_cell, run_suite, states
from bench.experiments.suite_file import Suite, read_suite
from bench.experiments.suite_page import (
    cell_table,
    estimates,
    live_report,
    makespan,
    page,
    plan_table,
    progress,
    published_table,
    state_counts,
    suite_boards,
)
from bench.stats import interval
from bench.tracking import Store, connect, find_run, open_run, read_masks, read_table, search_runs
from bench.tracking.resume import run_lock, workspace_folder

BASE = {
    "dataset": {"name": "phantom", "patients": 6, "size": 32, "slices": 6, "institutions": 2},
    "split": {"name": "patients", "folds": 3},
    "train": {"epochs": 3, "batch_size": 4, "lr": 0.01},
}
SMALL = {"model": {"name": "unet", "base": 4, "depth": 2}}
ENTRIES = {
    "both": {"cascade": {"presence": "gate", "segmentation": "small"}},  # before its parts: order is no matter
    "gate": {"model": {"name": "classifier", "encoder": "mobilenetv3_small_050"}},
    "small": SMALL,
    "leak": {**SMALL, "split": "leaky_slices"},
    "far": {"model": {"name": "unet", "encoder": "resnet18", "weights": "imagenet"}},  # cannot be fetched offline
}
PUBLISHED = [
    {"entry": "small", "what": "Dice", "value": 0.9, "metric": "dice_global", "where": "a table"},
    {"entry": "small", "what": "something else", "value": 0.8, "where": "a table"},
    {"entry": "far", "what": "Dice", "value": 0.95, "metric": "dice", "where": "a table"},
]


def write(path: Path, **changes: object) -> Path:
    content = {"title": "tiny", "base": BASE, "entries": ENTRIES, "published": PUBLISHED, **changes}
    content["budgets"] = {"smoke": {"train": {"epochs": 1}}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def ran(template: Path, tmp_path_factory: pytest.TempPathFactory):
    """A suite at the budget smoke in a store of its own, run once: suite, its states and the store."""
    folder = tmp_path_factory.mktemp("suite")
    shutil.copytree(template, folder / "mlruns")
    uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        suite = read_suite(write(folder / "tiny.yaml"), budget="smoke")
        before = [s.state for s in states(suite, connect(uri))]
        found = run_suite(suite, uri=uri, quiet=True)
        yield suite, before, found, connect(uri), folder


def state_of(found, name: str) -> str:
    return next(s.state for s in found if s.cell.name == name)


@pytest.mark.slow
def test_all_is_missing_before_and_done_after_but_for_the_bad_one(ran) -> None:
    suite, before, found, _, _ = ran
    assert [c.name for c in suite.cells] == list(ENTRIES)
    assert before == [MISSING] * 5
    assert {s.cell.name: s.state for s in found} == {name: DONE for name in ENTRIES} | {"far": FAILED}


@pytest.mark.slow
def test_the_budget_is_over_the_file_and_another_budget_is_another_cell(ran) -> None:
    suite, _, _, store, folder = ran
    assert suite.cells[2].what.train.epochs == 1
    full = read_suite(folder / "tiny.yaml")
    assert full.cells[2].what.train.epochs == 3
    assert {s.state for s in states(full, store)} == {MISSING}
    assert len({c.fingerprint for c in (*suite.cells, *full.cells)}) == 10


@pytest.mark.slow
def test_what_is_done_or_failed_is_not_run_again_and_a_new_entry_runs_alone(ran) -> None:
    _, _, found, store, folder = ran
    known = {s.run.info.run_id for s in found}
    entries = ENTRIES | {"other": {"model": {"name": "unet", "base": 2, "depth": 1}}}
    grown = read_suite(write(folder / "grown.yaml", entries=entries), budget="smoke")
    assert state_counts(states(grown, store)) == "4 done, 1 failed, 1 missing"
    after = run_suite(grown, uri=store.uri, quiet=True)
    assert {s.run.info.run_id for s in after} - known == {find_run(store, "other").info.run_id}


@pytest.mark.slow
def test_what_has_failed_is_tried_again_when_asked(ran) -> None:
    suite, _, found, store, _ = ran
    again = run_suite(suite, uri=store.uri, retry=True, quiet=True)
    old, new = (next(s.run.info.run_id for s in f if s.cell.name == "far") for f in (found, again))
    assert old != new
    assert state_of(again, "far") == FAILED


@pytest.mark.slow
def test_the_store_says_what_was_wrong(ran) -> None:
    _, _, found, _, _ = ran
    table = cell_table(found).set_index("entry")
    assert "cannot be fetched" in table.loc["far", "problem"]
    assert table.loc["small", "problem"] == ""


@pytest.mark.slow
def test_the_leaky_run_is_marked_and_on_no_board(ran) -> None:
    _, _, found, store, _ = ran
    assert cell_table(found).set_index("entry").loc["leak", "score"].startswith("LEAKY Dice")
    names = {board.task: {row.name for row in board.rows} for board in suite_boards(found, store)}
    assert names == {"segmentation": {"small", "both"}, "presence": {"gate"}}


@pytest.mark.slow
def test_published_figures_stand_beside_ours_by_the_same_definition(ran) -> None:
    suite, _, found, store, _ = ran
    cases = read_table(store, find_run(store, "small"), "cases")
    tp, fp, fn = (cases[c].sum() for c in ("tp", "fp", "fn"))
    ends = interval(cases["dice"])
    rows = published_table(suite, found)
    assert rows["published"].tolist() == ["0.9", "0.8", "0.95"]
    assert rows["same definition"].tolist() == [f"{2 * tp / (2 * tp + fp + fn):.4f} (dice_global)", "–", "–"]
    assert rows["per patient"][0] == f"Dice {cases['dice'].mean():.3f} [{ends.low:.3f}, {ends.high:.3f}]"
    assert rows["per patient"][2] == "–"


@pytest.mark.slow
def test_the_page_holds_cells_boards_figures_and_the_command(ran) -> None:
    suite, _, found, store, _ = ran
    text = page(suite, found, suite_boards(found, store), "bench suite tiny.yaml --budget smoke")
    assert text.startswith("# tiny\n")
    for part in ("bench suite tiny.yaml --budget smoke", "4 done, 1 failed", "presence of tumour", "a table"):
        assert part in text


@pytest.mark.slow
def test_a_cascade_keeps_the_pixels_of_called_slices_alone(ran) -> None:
    """Counted from the tables that the two parts have logged."""
    _, _, _, store, _ = ran
    gate = read_table(store, find_run(store, "gate"), "slices")
    masks = read_masks(store, find_run(store, "small"))
    both = read_table(store, find_run(store, "both"), "slices").merge(gate, on=["case", "slice"])
    assert len(both) == len(gate) == 36
    for case, slices in both.groupby("case"):
        wanted = masks[str(case)].sum((1, 2, 3)) * slices.sort_values("slice")["called"].to_numpy()
        assert (slices.sort_values("slice")["tp"] + slices.sort_values("slice")["fp"]).tolist() == wanted.tolist()
    cases = read_table(store, find_run(store, "both"), "cases")
    assert sorted(cases["case"]) == sorted(gate["case"].unique())
    assert not {"brier", "ece"} & set(cases.columns)  # a gated mask has no probabilities
    gated = read_masks(store, find_run(store, "both"))
    assert {case: int(mask.sum()) for case, mask in gated.items()} == {
        row.case: row.tp + row.fp for row in cases.itertuples()
    }


@pytest.mark.slow
def test_the_cost_of_a_cascade_is_that_of_both(ran) -> None:
    _, _, _, store, _ = ran
    both, *parts = (find_run(store, name).data.metrics for name in ("both", "gate", "small"))
    assert both["cost/parameters"] == sum(p["cost/parameters"] for p in parts)


@pytest.mark.slow
def test_a_cascade_of_the_wrong_runs_is_refused(ran) -> None:
    from bench.derived.cascade import cascade

    _, _, _, store, _ = ran
    with pytest.raises(BadSetting, match="is not a finished presence cross-validation"):
        cascade("small", "small", uri=store.uri)
    with pytest.raises(BadSetting, match="is not a finished segmentation cross-validation"):
        cascade("gate", "leak", uri=store.uri)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"entries": {"a": {"model": "unnet"}}, "published": []}, UnknownName, "Did you mean 'unet'"),
        ({"entries": {"a": {"train.epoch": 3}}, "published": []}, BadSetting, "epoch"),
        ({"entries": {"a": {"cascade": {"presence": "b"}}}, "published": []}, BadSetting, "write a cascade as"),
        (
            {"entries": {"a": {"cascade": {"presence": "b", "segmentation": "c"}}}, "published": []},
            UnknownName,
            "names an unknown entry 'b'",
        ),
        ({"published": [PUBLISHED[0] | {"entry": "smal"}]}, UnknownName, "Did you mean 'small'"),
        ({"entires": {}}, BadSetting, "entires"),
        (
            {"entries": {"a": SMALL | {"seeds": [0, 0]}}, "published": []},
            BadSetting,
            "a: seeds must be a list of different",
        ),
        (
            {"entries": {"a": SMALL | {"seeds": 2}}, "published": []},
            BadSetting,
            "a: seeds must be a list of different",
        ),
        ({"entries": {"a": SMALL | {"seeds": ["x"]}}, "published": []}, BadSetting, "seed"),
        ({"base": BASE | {"dataset": {"name": "lgg", "folder": "/nowhere"}}}, DataError, "/nowhere"),
    ],
)
def test_a_bad_file_is_refused_before_anything_runs(tmp_path, monkeypatch, changes, error, says) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(error, match=says):
        read_suite(write(tmp_path / "bad.yaml", **changes))


@pytest.mark.slow
def test_seeds_are_cells_of_their_own_and_one_row(store: Store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    entries = {"small": SMALL | {"seeds": [4, 0]}, "smaller": {"model": {"name": "unet", "base": 2, "depth": 1}}}
    suite = read_suite(write(tmp_path / "seeds.yaml", entries=entries, published=PUBLISHED[:1]), budget="smoke")
    assert [c.name for c in suite.cells] == ["small", "smaller", "small seed 0"]
    assert [c.what.seed for c in suite.cells] == [4, 0, 0]
    (board,) = suite_boards(run_suite(suite, uri=store.uri, quiet=True), store)
    assert {row.name: row.seeds for row in board.rows} == {"small": 2, "smaller": 1}
    figures = published_table(suite, states(suite, store))
    assert figures["same definition"][0].endswith("(dice_global)")  # the published ones are beside the first seed


def test_a_budget_can_shrink_entries_one_by_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "some.yaml", entries={"small": SMALL, "other": SMALL | {"seed": 1}}, published=[])
    content = yaml.safe_load(file.read_text())
    content["budgets"]["smoke"]["entries"] = {"other": {"model": {"base": 2}}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert [c.what.model.params["base"] for c in read_suite(file, budget="smoke").cells] == [4, 2]
    assert [c.what.model.params["base"] for c in read_suite(file).cells] == [4, 4]
    content["budgets"]["smoke"]["entries"] = {"othr": {}}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UnknownName, match=r"budgets: smoke: no entry 'othr'. Did you mean 'other'"):
        read_suite(file, budget="smoke")


def test_an_unknown_budget_and_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(UnknownName, match="it has full, smoke"):
        read_suite(write(tmp_path / "tiny.yaml"), budget="smok")
    with pytest.raises(DataError, match="cannot be read"):
        read_suite(tmp_path / "none.yaml")


FILES = Path(__file__).parents[2] / "benchmarks"
SUITES = *sorted(FILES.glob("published/*.yaml")), FILES / "lgg/leaderboard.yaml", FILES / "lgg/further.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_every_benchmark_file_can_be_read_at_every_budget(file: Path, lgg_folder: Path) -> None:
    for budget in ("full", *yaml.safe_load(file.read_text())["budgets"]):
        suite: Suite = read_suite(file, budget=budget, given={"dataset.folder": str(lgg_folder)})
        assert suite.cells
        assert len({c.fingerprint for c in suite.cells}) == len(suite.cells)


def test_a_run_of_one_fold_does_not_make_a_cell_done(store: Store, tmp_path: Path, monkeypatch) -> None:
    from bench.experiments.run import execute

    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    suite = read_suite(write(tmp_path / "one.yaml", entries={"small": SMALL}, published=[]), budget="smoke")
    execute(suite.cells[0].what, only=0, uri=store.uri, quiet=True)
    assert [s.state for s in states(suite, store)] == [MISSING]
    assert isinstance(cell_table(states(suite, store)), pd.DataFrame)


FAR = {"model": {"name": "unet", "encoder": "resnet18", "weights": "imagenet"}}


@pytest.fixture
def small(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Three entries, of which the first two cannot run offline, and a cascade that needs one of them."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    entries = {"far": FAR, "farther": FAR | {"seed": 1}, "small": SMALL}
    entries["both"] = {"cascade": {"presence": "far", "segmentation": "small"}}
    return read_suite(write(tmp_path / "some.yaml", entries=entries, published=[]), budget="smoke")


class Dying:
    """Every worker dies, after it has opened a run and a fold if it is given one."""

    workers = 2

    def __init__(self, leave: bool = False) -> None:
        self.leave, self.begun = leave, []

    def start(self, task: WorkItem):
        self.begun.append(task.name)
        if self.leave:
            suite, name, uri, *_ = task.arguments
            cell = next(c for c in suite.cells if c.name == name)
            store = connect(uri)
            tags = {"bench.fingerprint": cell.fingerprint, "bench.data": cell.data.key, "bench.kind": "cv"}
            run = store.client.create_run(store.experiment("phantom"), tags=tags)
            store.client.create_run("1", tags={"mlflow.parentRunId": run.info.run_id})
        return self

    def poll(self) -> str:
        return "killed by SIGKILL"

    def stop(self) -> None: ...
    def join(self) -> None: ...


@pytest.mark.parametrize("leave", [False, True])
def test_a_cell_whose_workers_all_die_has_failed_and_the_store_says_why(store, small, leave) -> None:
    workers = Dying(leave)
    found = run_suite(small, uri=store.uri, launcher=workers, retries=1)
    assert [s.state for s in found] == [FAILED, FAILED, FAILED, MISSING]
    assert sorted(workers.begun) == ["far", "far", "farther", "farther", "small", "small"]
    assert found[2].run.data.tags["bench.error"] == "its worker was lost 2 times: killed by SIGKILL"
    assert "RUNNING" not in {run.info.status for run in store.client.search_runs(["1"])}


def test_after_so_many_failures_no_other_cell_is_begun(store, small) -> None:
    told = []
    found = run_suite(small, uri=store.uri, max_failures=1, report=lambda *said: told.append(said))
    assert [s.state for s in found] == [FAILED, MISSING, MISSING, MISSING]
    heard = [(cell.name, state) for cell, state, _ in told]
    assert heard == [("far", RUNNING), ("far", FAILED), ("both", MISSING)]
    assert told[-1][2] == "both waits for far (failed) and small (missing)"


def test_a_cell_at_work_in_another_process_is_left_to_it(store, small, tmp_path) -> None:
    cell = small.cells[2]
    with FileLock(tmp_path / "mlruns" / "unfinished" / f"cell-{cell.fingerprint}-{cell.data.key}.lock"):
        run_cell(small, "small", store.uri, False, True, False)
    assert search_runs(store, {"bench.fingerprint": cell.fingerprint}) == []


def test_a_run_that_is_gone_on_with_and_then_fails_is_one_run(store, small, monkeypatch) -> None:
    def ends(error: BaseException) -> None:
        def fold(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("bench.training.cross_validation.run_fold", fold)
        run_cell(small, "small", store.uri, False, True, False)

    cell = small.cells[2]
    with pytest.raises(KeyboardInterrupt):
        ends(KeyboardInterrupt())
    (run,) = search_runs(store, {"bench.fingerprint": cell.fingerprint})
    assert run.info.status == "KILLED"
    ends(DataError("the disk is gone"))
    (again,) = search_runs(store, {"bench.fingerprint": cell.fingerprint})
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FAILED")
    assert again.data.tags["bench.error"].endswith("the disk is gone")


def test_a_run_at_work_is_running_and_says_how_far_it_is(store, small) -> None:
    cell = small.cells[2]
    own = {"bench.fingerprint": cell.fingerprint, "bench.data": cell.data.key}
    with open_run(store, "small", "phantom", own) as run, run_lock(workspace_folder(store, run.run_id)):
        with run.child("fold 0"):
            pass
        with run.child("fold 1") as fold:
            for epoch in (1, 2):
                fold.metrics({"train/loss": 0.5}, epoch)
            assert progress(cell, store) == "folds done: 1, epoch 2 of 1"
            assert states(small, store)[2].state == RUNNING
            assert not [e for e in estimates(small, store) if e.found.cell is cell and e.seconds is not None]
    assert progress(cell, store) == ""


@pytest.mark.slow
def test_the_plan_tells_time_and_what_would_fail(ran) -> None:
    _, _, _, store, folder = ran
    entries = ENTRIES | {"wide": SMALL | {"seed": 5}}
    grown = read_suite(write(folder / "plan.yaml", entries=entries), budget="smoke")
    before = len(search_runs(store, {"bench.kind": "cv"}))
    found = {e.found.cell.name: e for e in estimates(grown, store, retry=True, threads=1)}
    assert {name for name, e in found.items() if e.seconds} == {"wide"}
    assert "cannot be fetched" in found["far"].problem
    cells, said = plan_table(list(found.values()), 2)
    assert cells.set_index("entry")["state"].to_dict()["wide"] == MISSING
    assert said.startswith("1 cells to run: ")
    assert said.endswith("with 2 workers; 1 more cannot be estimated, and would fail")
    assert len(search_runs(store, {"bench.kind": "cv"})) == before


def test_cells_go_to_the_worker_that_is_free_first() -> None:
    assert makespan([3, 3, 2, 1], 1) == 9
    assert makespan([3, 3, 2, 1], 2) == 5  # 3 + 2 beside 3 + 1
    assert makespan([1, 1, 4], 8) == 4
    assert makespan([], 2) == 0


@pytest.mark.slow
def test_the_live_view_shows_all_cells_on_a_terminal_and_lines_elsewhere(ran, monkeypatch, capsys) -> None:
    suite, _, _, store, _ = ran
    with live_report(suite, store) as told:
        told(suite.cells[2], RUNNING, "[1/1] tiny: small")
    assert capsys.readouterr().out == "[1/1] tiny: small\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    with live_report(suite, store) as told:
        told(suite.cells[2], RUNNING, "[1/1] tiny: small")
    shown = capsys.readouterr().out
    for part in ("[1/1] tiny: small", "gate", "leak", "far", "failed", "running"):
        assert part in shown


def test_the_command_plans_and_refuses_an_unknown_launcher(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "one.yaml", entries={"small": SMALL}, published=[])
    words = ["suite", str(file), "--budget", "smoke", "--tracking-uri", store.uri]
    result = CliRunner().invoke(app, [*words, "--dry-run", "--workers", "2"])
    assert result.exit_code == 0, result.output
    assert "with 2 workers" in result.output
    assert isinstance(CliRunner().invoke(app, [*words, "--launcher", "rai"]).exception, UnknownName)
    unknown = CliRunner().invoke(app, [*words, "--launch", "nonsense=1"]).exception
    assert isinstance(unknown, BadSetting)
    assert "nonsense" in str(unknown)
    assert search_runs(store, {"bench.kind": "cv"}) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train.lr": -1}, "train.lr = -1 is refused"),
        ({"model": "unnet"}, "no model named 'unnet'"),
        ({"model.bse": 3}, "model 'unet' has no setting 'bse'"),
    ],
)
def test_an_error_in_a_suite_names_file_and_entry_before_data_is_packed(changes, problem, tmp_path, monkeypatch):
    monkeypatch.delattr("bench.training.experiment.raw_pack")
    file = write(tmp_path / "tiny.yaml", entries={"right": {}, "wrong": changes}, published=[])
    with pytest.raises((BadSetting, UnknownName), match=re.escape(f"{file}: entries: wrong: {problem}")):
        read_suite(file)
