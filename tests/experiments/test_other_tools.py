"""Folds for other tools are written and checked from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.experiments.other_tools import count_parts
from bench.overrides import configure_data
from bench.training.experiment import find_folds, raw_pack
from tests.fakes import write_case

pytestmark = pytest.mark.usefixtures("cache")
NAMES = [f"TCGA_{place}_{number:04}" for place in ("CS", "DU") for number in range(1, 4)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six patients in the layout of LGG; the current folder is empty."""
    for name in NAMES:
        write_case(tmp_path / "lgg", f"{name}_19960909")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "lgg"


def bench(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def test_written_folds_are_the_ones_that_a_run_has_and_verify(folder: Path):
    code, output = bench("split", "export", "--data", folder, "--folds", 3)
    (file,) = Path().glob("split-*.csv")
    assert (code, f"are in {file}" in output) == (0, True)
    code, output = bench("split", "verify", file, "--data", folder)
    assert (code, f"split {file.stem.removeprefix('split-')}: 3 folds, 0 errors" in output) == (0, True)
    config = configure_data(folder, "lgg", [f"split.path={file}"], None, {"split": "file"})
    pack = raw_pack(config)
    table = count_parts(pack.index, find_folds(config, pack))
    assert table["patients"].groupby("fold").sum().tolist() == [6, 6, 6]
    assert table.loc[(0, "test"), "slices"] == 3 * table.loc[(0, "test"), "patients"]


def test_the_note_of_nnunet_says_where_our_patients_are(folder: Path):
    code, _output = bench("split", "export", "--data", folder, "--folds", 3, "--format", "nnunet")
    assert code == 0
    assert "'val' has the patients of our test set" in Path("splits_final.note.txt").read_text()
    tested = [name for fold in json.loads(Path("splits_final.json").read_text()) for name in fold["val"]]
    assert sorted(tested) == NAMES
    assert bench("split", "verify", "splits_final.json", "--data", folder)[0] == 0


def test_errors_and_omissions_of_a_foreign_file_are_named(folder: Path):
    write_case(folder, "TCGA_CS_0009_19960909")
    copy, first = folder / "TCGA_CS_0009_19960909", folder / f"{NAMES[0]}_19960909"
    for source, target in zip(sorted(first.iterdir()), sorted(copy.iterdir()), strict=True):
        target.write_bytes(source.read_bytes())
    rows = [(fold, part, name) for fold in (0, 1) for part, name in zip(("train", "val"), NAMES, strict=False)]
    rows += [(0, "test", "TCGA_CS_0009"), (0, "test", NAMES[2]), (1, "test", NAMES[2])]
    pd.DataFrame(rows, columns=["fold", "part", "case"]).to_csv("theirs.csv", index=False)
    code, output = bench("split", "verify", "theirs.csv", "--data", folder)
    assert code == 1
    assert f"error: folds 0 and 1 both test {NAMES[2]}" in output
    assert f"error: fold 0 has the same image of {NAMES[0]}, TCGA_CS_0009 in test and train" in output
    assert f"warning: fold 0 does not use {', '.join(NAMES[3:])}" in output
    assert f"warning: no fold tests {NAMES[0]}, {NAMES[1]}" in output
    assert "2 folds, 2 errors" in output
