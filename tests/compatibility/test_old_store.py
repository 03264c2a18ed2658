"""What the version before wrote is read: the store, pack, export and published runs of store.tar.xz."""

from __future__ import annotations

import re
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.data.pack import open_pack
from bench.demo.logged_models import LoggedModels
from bench.errors import BadSetting
from bench.tracking import Store, Tag, connect, read_records, search_runs

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
DATA = [
    f"--set=dataset{setting}"
    for setting in ("=phantom", ".patients=6", ".size=32", ".slices=6", ".institutions=2")
]
SMALL = [*DATA, "--folds=3", "--batch-size=4", "--quiet", "--set=model.base=4", "--set=model.depth=2", "--lr=0.01"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old store, unpacked in the current folder, with its paths set to this folder."""
    with tarfile.open(HERE / "store.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # new in Python 3.11.4
        archive.extractall(tmp_path)
    database = sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")
    for table, column in (
        ("runs", "artifact_uri"),
        ("experiments", "artifact_location"),
        ("logged_models", "artifact_location"),
    ):
        database.execute(f"UPDATE {table} SET {column} = replace({column}, 'STORE_FOLDER', ?)", (str(tmp_path),))
    database.commit()
    database.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def old_store(old: Path) -> Store:
    return connect(f"sqlite:///{old / 'mlruns' / 'mlflow.db'}")


def bench(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_leaderboard_is_the_one_that_the_old_code_printed(old: Path) -> None:
    (old / "new.csv").write_text(bench("leaderboard", "--format", "csv"))
    before, now = pd.read_csv(old / "leaderboard.csv"), pd.read_csv(old / "new.csv")
    assert set(now) - set(before) == {"verdict", "letters", "guest"}  # columns that are new
    before = before.drop(columns=["difference_low", "difference_high", "group"])  # by another rule since
    pd.testing.assert_frame_equal(now[before.columns], before)


def test_two_old_runs_are_compared_with_the_numbers_of_the_old_code(old: Path) -> None:
    def numbers(text: str) -> list[str]:
        return re.findall(r"[-+]?\d+\.\d+", text)

    assert numbers(bench("compare", "first", "tversky")) == numbers((old / "compare.txt").read_text()) != []


def test_rescoring_with_the_same_changes_gives_the_same_scores(old: Path, old_store: Store) -> None:
    bench("rescore", "tversky", "--threshold", 0.3, "--largest", "--name", "again")
    runs = {run.name: run for run in read_records(old_store)}
    columns = ["case", "dice", "hd95"]
    pd.testing.assert_frame_equal(runs["again"].cases[columns], runs["cleaned"].cases[columns])


def test_a_logged_and_an_exported_old_model_predict_the_same_masks(old: Path) -> None:
    scan = next(file for file in sorted((old / "others").rglob("*.tif")) if "mask" not in file.name)
    for source, out in (("tversky", "a"), ("exported", "b")):
        bench("predict", source, scan, "--out", old / out)
    a, b = (sorted((old / out).rglob("*.tif")) for out in ("a", "b"))
    assert [file.name for file in a] == [file.name for file in b] != []
    for one, other in zip(a, b, strict=True):
        assert np.array_equal(tifffile.imread(one), tifffile.imread(other))


def test_an_old_run_is_evaluated_again_with_the_same_scores(old: Path, old_store: Store) -> None:
    bench("evaluate", "tversky", "--data", old / "others")
    again, before = search_runs(old_store, {Tag.KIND: "evaluation"})
    scores = {name: value for name, value in before.data.metrics.items() if name in registry.metric}
    assert {name: again.data.metrics[name] for name in scores} == pytest.approx(scores, abs=1e-6, nan_ok=True)
    assert "dice" in scores


def test_old_published_runs_are_imported_into_an_empty_store(old: Path) -> None:
    uri = f"sqlite:///{old / 'empty' / 'mlflow.db'}"
    bench("import", old / "published", "--tracking-uri", uri)
    assert {run.name for run in read_records(connect(uri))} >= {"first", "tversky", "both"}


def test_old_runs_are_published_as_before(old: Path) -> None:
    bench("publish", old / "again")
    pd.testing.assert_frame_equal(
        pd.read_csv(old / "again" / "cases.csv"), pd.read_csv(old / "published" / "cases.csv")
    )


def test_the_demo_shows_the_old_models(old_store: Store) -> None:
    models = LoggedModels(old_store, None)
    assert {run.name for run in models.list_runs()} >= {"first", "tversky"}
    assert len(models.load(models.find("tversky")).models.models) == 3


def test_an_old_pack_is_opened_and_is_what_the_present_code_writes(old: Path) -> None:
    (folder,) = (file.parent for file in (old / "cache").rglob("manifest.json"))
    before = {file.name: file.read_bytes() for file in folder.glob("*.npy")}
    assert len(open_pack(folder).index) == len(np.load(folder / "images.npy"))
    bench(
        "run", *SMALL, "--epochs", 1, "--fold", 0, "--name", "new"
    )  # the paths differ, so the pack is written again
    assert {file.name: file.read_bytes() for file in folder.glob("*.npy")} == before != {}


def test_a_run_that_the_old_code_did_not_finish_is_refused_with_the_reason(old: Path) -> None:
    with pytest.raises(
        BadSetting, match=r"run interrupted .* was interrupted, and code has changed since: .*--fresh"
    ):
        bench("run", *SMALL, "--epochs", 4000, "--name", "interrupted")
