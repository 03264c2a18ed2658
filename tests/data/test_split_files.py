"""Splits survive being written for other tools and read again, and what is wrong with a file is said."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bench.data.split_files import read_split, split_text
from bench.data.splits import file, patients, split_hash
from bench.errors import DataError, LeakageError


def index_of(*cases: str) -> pd.DataFrame:
    """Two slices a patient, one of them positive."""
    rows = [(case, number, "A", number == 1, number == 1) for case in cases for number in (1, 2)]
    return pd.DataFrame(rows, columns=["case", "slice", "institution", "positive", "pixels"])


NAMES = [f"P {number}" for number in range(12)]  # a blank, which file names of other tools avoid
INDEX = index_of(*NAMES)
IMAGES = {name: [name.replace(" ", "_")] for name in NAMES}


@pytest.mark.parametrize("how", ["csv", "json", "nnunet"])
def test_a_split_is_the_same_after_it_was_written_and_read(how, tmp_path: Path):
    folds = patients(INDEX, folds=4)
    path = tmp_path / "folds"
    path.write_text(split_text(INDEX, folds, how, IMAGES))
    assert split_hash(file(INDEX, path=path)) == split_hash(folds)


def test_the_validation_patients_of_nnunet_are_those_that_are_tested():
    folds = patients(INDEX, folds=4)
    written = json.loads(split_text(INDEX, folds, "nnunet", IMAGES))
    for fold, sides in zip(folds, written, strict=True):
        assert sides["val"] == sorted(name.replace(" ", "_") for name in fold.test)
        assert sides["train"] == sorted(name.replace(" ", "_") for name in fold.train | fold.val)


def test_columns_that_others_add_are_ignored(tmp_path: Path):
    rows = [(0, "train", "a", "x"), (0, "val", "b", "y"), (0, "test", "c", "z")]
    path = tmp_path / "mine.csv"
    pd.DataFrame(rows, columns=["fold", "part", "case", "scanner"]).to_csv(path, index=False)
    (fold,) = file(index_of("a", "b", "c"), path=path)
    assert (fold.train, fold.val, fold.test) == ({"a"}, {"b"}, {"c"})


WRONG = {
    "no split": ("not a split", DataError, "is no split .*it has no column fold"),
    "a part": ("fold,part,case\n0,training,a\n", DataError, "the part 'training' is none of train, val, test"),
    "unknown": ("fold,part,case\n0,train,a\n0,val,b\n0,test,Z\n", DataError, "1 patient.* in fold 0 .* such as Z"),
    "two sides": ("fold,part,case\n0,train,a\n0,val,b\n0,test,a\n", LeakageError, "fold 0 shares patients: a"),
    "empty": ("[]", DataError, "has no fold"),
    "edited": ("fold,part,case,split\n0,train,a,0\n0,val,b,0\n0,test,c,0\n", DataError, "states the split 0, but"),
    "no parts": ('{"folds": [{"fold": 0}]}', DataError, "is no split"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(what, tmp_path: Path):
    text, kind, reason = WRONG[what]
    path = tmp_path / "split"
    path.write_text(text)
    with pytest.raises(kind, match=reason):
        read_split(path, index_of("a", "b", "c"), validation=0.2, seed=0)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone.csv cannot be read \(No such file"):
        file(INDEX, path=tmp_path / "gone.csv")
