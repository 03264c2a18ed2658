"""Published runs rank elsewhere as they did at home, are done there, and must not contradict themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from bench.analysis.board import Board
from bench.analysis.leaderboard import build_boards
from bench.cli import app
from bench.data.splits import patients, split_hash, split_table
from bench.derived.publish import import_runs, publish_runs
from bench.derived.published_files import read_published
from bench.derived.rescore import rescore
from bench.errors import BadSetting, DataError, StoreError
from bench.experiments.suite import DONE, MISSING, run_suite, states
from bench.experiments.suite_file import read_suite
from bench.overrides import configure, read_yaml
from bench.reports.comparison import compare
from bench.tracking import (
    Store,
    connect,
    download_models,
    find_run,
    open_run,
    read_masks,
    read_probabilities,
    read_records,
)

pytestmark = pytest.mark.slow

SUITE = {
    "title": "tiny",
    "base": {
        "dataset": {"name": "phantom", "patients": 6, "size": 32, "slices": 6, "institutions": 2},
        "split": {"name": "patients", "folds": 3},
        "model": {"name": "unet", "base": 4, "depth": 2},
        "train": {"epochs": 1, "batch_size": 4, "lr": 0.01},
    },
    "entries": {
        "small": {"seeds": [0, 1]},
        "gate": {"model": {"name": "classifier", "encoder": "mobilenetv3_small_050"}},
        "both": {"cascade": {"presence": "gate", "segmentation": "small"}},
    },
}
OTHERS = "run_id", "runs", "imported"  # what a row in another store has of its own


@pytest.fixture(scope="module")
def published(template: Path, tmp_path_factory: pytest.TempPathFactory):
    """A suite that was run, in a store of its own, and published: its store and folder."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(template, folder / "mlruns")
    uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(folder)
        found = run_suite(read_suite(folder / "tiny.yaml"), uri=uri, quiet=True)
        assert {s.state for s in found} == {DONE}
        publish_runs(folder / "out", uri=uri)
        yield connect(uri), folder / "out"


def shown(board: Board) -> tuple[Any, ...]:
    """All that a board says, but for what tells one store from another."""
    rows = [{k: v for k, v in row.flat().items() if k not in OTHERS} for row in board.rows]
    return board.title, board.primary, [{k: _digits(v) for k, v in row.items()} for row in rows]


def _digits(value: object) -> object:
    """Twelve digits of a number: some versions of pandas read a CSV file to fifteen."""
    return f"{value:.12g}" if isinstance(value, float) else value


def test_boards_are_the_same_in_another_store(published, store: Store) -> None:
    source, folder = published
    import_runs(folder, uri=store.uri)
    there, here = (build_boards(read_records(s)) for s in (source, store))
    assert [board.task for board in there] == ["segmentation", "presence"]
    assert [shown(board) for board in here] == [shown(board) for board in there]
    assert [row.name for row in here[0].rows if row.seeds == 2] == ["small"]
    assert not any(row.imported for board in there for row in board.rows)
    assert all(row.imported for board in here for row in board.rows)
    assert any(note.startswith("Imported, not scored in this store: ") for note in here[0].notes)
    for board in here:  # ranked in MLflow's UI as well
        for row in board.rows:
            assert [store.client.get_run(run).data.metrics["rank"] for run in row.runs] == [row.rank] * len(
                row.runs
            )


def test_imported_runs_name_their_source_and_their_data_set_in_the_ui(published, store: Store) -> None:
    _, folder = published
    import_runs(folder, uri=store.uri)
    for record in read_records(store):
        run = store.client.get_run(record.run_id)
        (data,) = (entry.dataset for entry in run.inputs.dataset_inputs)
        assert run.data.tags["mlflow.source.name"] == "bench import"
        assert (data.name, data.digest) == ("phantom", record.tags["bench.data"])
        assert json.loads(data.profile) == {"patients": 6, "synthetic": True, "licence": "CC0-1.0 (synthetic)"}


def test_a_suite_finds_imported_cells_done_and_runs_the_rest(published, store: Store, tmp_path: Path) -> None:
    _, folder = published
    import_runs(folder, uri=store.uri)
    entries = SUITE["entries"] | {"other": {"loss": "dice"}}
    (tmp_path / "grown.yaml").write_text(yaml.safe_dump(SUITE | {"entries": entries}, sort_keys=False))
    suite = read_suite(tmp_path / "grown.yaml")
    assert [s.state for s in states(suite, store)] == [DONE, DONE, DONE, MISSING, DONE]
    run_suite(suite, uri=store.uri, quiet=True)
    assert {s.state for s in states(suite, store)} == {DONE}
    board = build_boards(read_records(store))[0]
    assert {row.name: row.imported for row in board.rows} == {"small": True, "both": True, "other": False}
    assert find_run(store, "other").data.metrics["rank"] == next(r.rank for r in board.rows if r.name == "other")


def test_imported_runs_are_found_under_both_ids_and_compared_but_hold_no_masks(published, store, tmp_path) -> None:
    source, folder = published
    import_runs(folder, uri=store.uri)
    run = find_run(source, "both")
    assert find_run(store, run.info.run_id[:8]).info.run_name == "both"
    here, there = (compare("small", "both", uri=s.uri) for s in (store, source))
    assert (here.paired, here.claim) == (there.paired, there.claim)
    assert len(read_masks(source, find_run(source, "small"))) == 6
    for read in (read_masks, read_probabilities):
        with pytest.raises(StoreError, match=r"holds no (masks|probabilities)\. It was imported: only its scores"):
            read(store, find_run(store, "small"))
    with pytest.raises(StoreError, match=r"holds no model\. It was imported: only its scores are here"):
        download_models(store, find_run(store, "small"), tmp_path)
    with pytest.raises(StoreError, match="holds no masks"):
        rescore("small", uri=store.uri)


def test_what_is_there_is_not_imported_twice_and_keeps_its_id_when_published_again(
    published, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = published
    import_runs(folder, uri=store.uri)
    capsys.readouterr()
    for target in (store, source):
        count = len(read_records(target))
        import_runs(folder, uri=target.uri)
        assert capsys.readouterr().out.startswith("0 runs are imported into ")
        assert len(read_records(target)) == count == 4
    publish_runs(tmp_path / "again", uri=store.uri)
    for file in sorted(folder.iterdir()):
        assert (tmp_path / "again" / file.name).read_text() == file.read_text(), file.name


def test_an_import_that_was_broken_off_is_made_up_for(published, store: Store) -> None:
    _, folder = published
    first = read_published(folder).runs[0]
    tags = {**first.tags, "bench.imported": first.run_id}
    with pytest.raises(KeyboardInterrupt), open_run(store, first.name, "phantom", tags):
        raise KeyboardInterrupt
    import_runs(folder, uri=store.uri)
    assert len(read_records(store)) == 4


def test_a_folder_of_published_runs_grows_and_loses_none(published, store: Store, tmp_path: Path) -> None:
    source, _ = published
    publish_runs(tmp_path / "out", where=["name=small", "run.seed=1"], uri=source.uri)
    publish_runs(tmp_path / "out", where=["name=small"], uri=source.uri)
    publish_runs(tmp_path / "out", where=["name=both"], uri=source.uri)
    assert [run.name for run in read_published(tmp_path / "out").runs] == ["small", "small", "both"]
    assert not (tmp_path / "out" / "slices.csv").exists()
    with pytest.raises(BadSetting, match=r"no finished run in .* matches"):
        publish_runs(tmp_path / "none", where=["name=nobody"], uri=source.uri)
    assert not (tmp_path / "none").exists()


def test_runs_are_not_published_over_the_files_of_someone_else(logged: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "cases.csv").write_text("theirs")
    with pytest.raises(BadSetting, match=r"cases\.csv exists, and bench did not write it"):
        publish_runs(tmp_path / "theirs", uri=store.uri)
    assert [(p.name, p.read_text()) for p in (tmp_path / "theirs").iterdir()] == [("cases.csv", "theirs")]


def test_no_place_of_the_machine_nor_its_user_is_published(published) -> None:
    _, folder = published
    content = "".join(file.read_text() for file in folder.iterdir())
    assert str(folder.parent) not in content
    assert "mlflow.user" not in content
    assert "dataset.folder" not in content
    assert all(
        "system/" not in name and "rank" not in name for r in read_published(folder).runs for name in r.metrics
    )


# What contradicts itself


@pytest.fixture
def logged(store: Store, tmp_path: Path) -> Path:
    """One run of eight patients, whose numbers are made by hand, published."""
    index = pd.DataFrame({"case": [f"P{n}" for n in range(8) for _ in range(4)], "slice": [1, 2, 3, 4] * 8})
    index = index.assign(institution="DU", positive=[False, True, True, False] * 8)
    folds = patients(index, folds=2)
    fold = {case: f.number for f in folds for case in f.test}
    cases = pd.DataFrame({"case": sorted(fold), "tp": [6, 5, 4, 3, 6, 5, 4, 3], "fp": 2, "fn": 4, "tn": 100})
    cases = cases.assign(fold=cases["case"].map(fold), dice=2 * cases["tp"] / (2 * cases["tp"] + 6), hd95=3.5)
    tags = {"bench.data": "d", "bench.split": split_hash(folds), "bench.convention": "1", "bench.dataset": "made"}
    tags |= {"bench.fingerprint": "f", "bench.task": "segmentation"}
    dice = float(np.mean([12 / 18, 10 / 16, 8 / 14, 6 / 12] * 2))
    with open_run(store, "mine", "made", tags) as run:
        run.settings({"model.name": "unet", "train.epochs": "3"})
        run.metrics({"dice": dice, "hd95": 3.5, "dice_global": 2 * 36 / (2 * 36 + 48), "cost/flops": 1e9})
        run.table("cases", cases)
        run.table("split", split_table(index, folds))
    publish_runs(tmp_path / "mine", uri=store.uri)
    return tmp_path / "mine"


def _runs_file(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = json.loads((folder / "runs.json").read_text())
        change(content)
        (folder / "runs.json").write_text(json.dumps(content))

    return tamper


def _table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        (path,) = folder.glob(name)
        change(pd.read_csv(path)).to_csv(path, index=False)

    return tamper


def _first(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(**{column: [value, *table[column][1:]]})


def _other_fold(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(fold=1 - table["fold"])


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (
            _runs_file(lambda content: content["runs"][0]["metrics"].update(dice=0.7)),
            "dice is 0.7 in runs.json, but 0.5907",
        ),
        (_runs_file(lambda content: content["runs"][0]["metrics"].update(dice_global=0.7)), "dice_global is 0.7"),
        (_runs_file(lambda content: content["runs"][0]["tags"].pop("bench.data")), "has no bench.data"),
        (_runs_file(lambda content: content["runs"][0].update(run_id="someone")), "has no cases.csv"),
        (
            _runs_file(lambda content: content["runs"][0]["tags"].update({"bench.split": "0"})),
            "split-0.csv does not hold",
        ),
        (
            _runs_file(lambda content: content["runs"][0]["tags"].update({"bench.dataset": "../up"})),
            "data set '../up', which is not allowed",
        ),
        (
            _runs_file(lambda content: content.update(format=2)),
            "runs.json does not have format 1: format: Input should be 1",
        ),
        (
            _runs_file(lambda content: content["runs"][0].pop("tags")),
            r"does not have format 1: runs\.0\.tags: Field required",
        ),
        (
            _table("cases.csv", _first("dice", 0.9)),
            "Dice of some patients in cases.csv does not match their pixel counts",
        ),
        (_table("cases.csv", _first("tp", 60)), "does not match their pixel counts"),
        (_table("cases.csv", _first("hd95", 1.0)), "hd95 is 3.5 in runs.json, but 3.1875 by its patients"),
        (_table("cases.csv", _other_fold), "its patients are not the test patients of split"),
        (_table("cases.csv", _first("case", "P9")), "its patients are not the test patients of split"),
        (_table("cases.csv", lambda table: table.drop(columns="run_id")), "cases.csv cannot be read"),
        (_table("cases.csv", lambda table: table.drop(columns="tp")), r"rows in cases\.csv have no tp"),
        (_table("cases.csv", lambda table: table.drop(columns="case")), r"rows in cases\.csv have no case"),
        (_table("cases.csv", _first("fp", "many")), "values that are not numbers"),
        (
            _table("cases.csv", lambda table: pd.concat([table, table[:1]])),
            "a patient appears twice",
        ),
        (_runs_file(lambda content: content["runs"].append(content["runs"][0])), r"run .* appears twice\."),
        (
            _runs_file(lambda content: content["runs"][0]["tags"].update({"bench.task": "presence"})),
            r"has no slices\.csv",
        ),
        (_table("split-*.csv", _other_fold), "holds the folds of split"),
        (_table("split-*.csv", _first("part", "test")), "holds the folds of split|shares patients"),
        (lambda folder: (folder / "runs.json").unlink(), r"runs\.json cannot be read"),
        (lambda folder: (folder / "runs.json").write_text("{"), "format 1: the whole file: Invalid JSON"),
        (lambda folder: (folder / "cases.csv").unlink(), "has no cases.csv"),
    ],
)
def test_what_contradicts_itself_is_refused_and_nothing_is_imported(
    logged: Path, tmp_path: Path, template: Path, tamper: Callable[[Path], None], problem: str
) -> None:
    shutil.copytree(template, tmp_path / "other")
    uri = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    tamper(logged)
    with pytest.raises(DataError, match=problem):
        import_runs(logged, uri=uri)
    assert read_records(connect(uri)) == []


def test_six_digits_are_enough(logged: Path, tmp_path: Path) -> None:
    """As `bench leaderboard --cases` writes them."""
    table = pd.read_csv(logged / "cases.csv")
    table.to_csv(logged / "cases.csv", index=False, float_format="%.6g")
    (run,) = read_published(logged).runs
    assert run.cases["dice"].tolist() == pytest.approx([12 / 18, 10 / 16, 8 / 14, 6 / 12] * 2, abs=1e-6)


def test_the_commands_say_what_they_did(logged: Path, store: Store, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["publish", "out", "--where", "model=unet"], catch_exceptions=False)
    assert "1 run is in out, and the tables name 8 patients" in done.output
    again = runner.invoke(app, ["import", "out"], catch_exceptions=False)
    assert again.output.startswith("0 runs are imported into ")
    assert again.output.endswith("; 1 run is already there\n")


# What the repository holds

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(("name", "found"), [("evening", 6), ("networks", 5), ("losses", 5)])
def test_published_runs_are_still_those_of_the_benchmark_files(name: str, found: int) -> None:
    """By fingerprint: a setting that gets another default, or a new one, must not hide what was run before."""
    there = {run.tags["bench.fingerprint"] for run in read_published(BENCHMARKS / "results" / "lgg" / "runs").runs}
    file, folder = read_yaml(BENCHMARKS / "lgg" / f"{name}.yaml", "benchmark"), {"dataset.folder": "anywhere"}
    asked = [
        configure(
            file["base"], {k: v for k, v in entry.items() if k != "seeds"}, {"seed": seed, **folder}
        ).fingerprint()
        for entry in file["entries"].values()
        for seed in entry.get("seeds", [0])
    ]
    assert len(there & set(asked)) == found


def test_published_rows_are_those_of_the_page() -> None:
    published = read_published(BENCHMARKS / "results" / "lgg" / "runs")
    (board,) = build_boards(published.runs[::-1], where=["bench.suite=lgg-networks"])
    page = (BENCHMARKS / "results" / "lgg" / "networks.md").read_text()
    for row in board.rows:
        score = f"{row.score:.3f} | {row.low:.3f} to {row.high:.3f} | {row.difference:+.3f}"
        assert f"| {row.rank} | {row.name} | {score} |" in page
