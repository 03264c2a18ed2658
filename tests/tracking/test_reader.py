"""Finding runs and reading back what they logged."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from bench.errors import BadSetting, StoreError, UnknownName
from bench.tracking import find_run, open_run, read_records, search_runs

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


def test_a_run_and_its_folds_are_read_back(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.settings({"model.name": "unet"})
        with run.child("fold 0", {"bench.fold": "0"}) as fold:
            fold.metrics({"train/loss": 0.5}, 1)
        run.table("cases", pd.DataFrame({"case": ["007", "b"], "dice": [0.5, math.nan]}))
        run.metrics({"dice": 0.5})
    (record,) = read_records(store)
    assert (record.name, record.settings["model.name"], record.metrics["dice"]) == ("mine", "unet", 0.5)
    assert record.cases["case"].tolist() == ["007", "b"]
    assert math.isnan(record.cases["dice"][1])
    child = store.client.search_runs([run.experiment_id], "tags.`bench.kind` = 'fold'")[0]
    assert child.data.tags["mlflow.parentRunId"] == run.run_id
    assert [m.step for m in store.client.get_metric_history(child.info.run_id, "train/loss")] == [1]


def test_slices_are_read_with_presence_runs_only(store):
    slices = pd.DataFrame(
        {"case": ["007", "007"], "slice": [1, 2], "truth": [False, True], "called": [True, True]}
    )
    for name, task in (("outlines", "segmentation"), ("calls", "presence")):
        with open_run(store, name, "lgg", TAGS | {"bench.task": task}) as run:
            run.table("cases", pd.DataFrame({"case": ["007"]}))
            run.table("slices", slices)
    read = {record.name: record.slices for record in read_records(store)}
    assert read["outlines"] is None
    pd.testing.assert_frame_equal(read["calls"], slices)


def test_a_run_is_found_by_name_by_id_and_by_the_start_of_its_id(store):
    with open_run(store, "first", "lgg", TAGS) as run:
        pass
    for wanted in ("first", run.run_id, run.run_id[:8]):
        assert find_run(store, wanted).info.run_id == run.run_id
    with pytest.raises(UnknownName, match="Did you mean 'first'"):
        find_run(store, "frist")


@pytest.mark.parametrize("name", ["Anna's unet", 'a 5" disc'])
def test_a_run_name_may_contain_one_kind_of_quotes(store, name):
    with open_run(store, name, "lgg", TAGS) as run, run.child(f"{name} fold"):
        pass
    assert find_run(store, name).info.run_id == run.run_id
    assert [named.info.run_id for named in search_runs(store, {"mlflow.runName": name})] == [run.run_id]


def test_a_name_with_both_kinds_of_quotes_is_refused(store):
    with pytest.raises(BadSetting, match="contains both ' and \""):
        find_run(store, "Anna's 5\" disc")


def test_the_newest_of_runs_with_one_name_is_found(store):
    for _ in range(2):
        with open_run(store, "same", "lgg", TAGS) as run:
            pass
    assert find_run(store, "same").info.run_id == run.run_id


def test_a_lost_table_is_named(store):
    with open_run(store, "mine", "lgg", TAGS):
        pass
    with pytest.raises(StoreError, match=r"mine .* has lost its table cases.csv"):
        read_records(store)
