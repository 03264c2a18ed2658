"""Finding runs and reading back what they logged."""

from __future__ import annotations

import math
import re
import sys
from contextlib import suppress

import pandas as pd
import pytest

from bench import registry
from bench.errors import BadSetting, StoreError, UnknownName
from bench.experiments.run import settings_to_resume
from bench.overrides import configure
from bench.tracking import find_run, open_run, read_config, read_records, read_table, search_runs

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


def runs_named_same(store, *statuses):
    """Log runs with one name that end with these statuses, and return their ids."""
    ids = []
    for status in statuses:
        with suppress(KeyboardInterrupt, RuntimeError), open_run(store, "same", "lgg", TAGS) as run:
            ids.append(run.run_id)
            if status != "FINISHED":
                raise {"FAILED": RuntimeError, "KILLED": KeyboardInterrupt}[status]
    return ids


@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        (("FINISHED", "FINISHED"), 1),
        (("FINISHED", "FAILED", "KILLED"), 0),
        (("FAILED", "FINISHED", "FAILED"), 1),
        (("KILLED", "FAILED"), 1),
    ],
)
def test_the_newest_finished_run_of_a_name_is_found_and_the_others_are_named(store, capsys, statuses, found):
    ids = runs_named_same(store, *statuses)
    capsys.readouterr()
    assert find_run(store, "same").info.run_id == ids[found]
    note = capsys.readouterr().err
    assert f"{len(ids)} runs are called 'same'. {ids[found][:8]} ({statuses[found]}) is used" in note
    assert all(note.count(run_id[:8]) == 1 for run_id in ids)
    assert find_run(store, ids[0]).info.run_id == ids[0]
    assert capsys.readouterr().err == ""


def test_a_cross_validation_is_found_before_a_newer_study_of_the_same_name(store):
    (first,) = runs_named_same(store, "FINISHED")
    with open_run(store, "same", "lgg", TAGS | {"bench.kind": "study"}):
        pass
    assert find_run(store, "same").info.run_id == first


def test_the_id_of_a_run_means_the_run_itself_before_its_imported_copy(store, capsys):
    (first,) = runs_named_same(store, "FINISHED")
    with open_run(store, "copy", "lgg", TAGS | {"bench.imported": first}):
        pass
    assert find_run(store, first[:8]).info.run_id == first


def test_the_newest_interrupted_run_of_a_name_is_resumed(store):
    config = configure({}).completed()
    with suppress(KeyboardInterrupt), open_run(store, "same", "lgg", TAGS) as interrupted:
        interrupted.settings(config.flat())
        interrupted.tags({"bench.fingerprint": config.fingerprint()})
        raise KeyboardInterrupt
    abandoned, _ = runs_named_same(store, "KILLED", "FINISHED")
    store.client.set_tag(abandoned, "bench.given_up", "true")
    assert settings_to_resume("same", uri=store.uri) == (config, None, interrupted.run_id)


@pytest.mark.parametrize("damage", [None, b"", b"\xff\xfe\x00", b'case\n"a', b"case\na\n", b"other\n"])
def test_a_run_whose_table_cannot_be_read_is_named_and_left_out(store, damage, capsys):
    for name in ("kept", "mine"):
        with open_run(store, name, "lgg", TAGS) as run:
            run.table("cases", pd.DataFrame({"case": ["a", "b"]}))
            run.metrics({"patients": 2})
    table = next((store.folder / "artifacts" / "lgg" / run.run_id).rglob("cases.csv"))
    table.unlink() if damage is None else table.write_bytes(damage)
    assert [record.name for record in read_records(store)] == ["kept"]
    assert re.search(r"^left out: cases\.csv of run mine .* beside its database\.$", capsys.readouterr().err)
    with pytest.raises(StoreError, match=r"cases\.csv of run mine .* cannot be read"):
        read_table(store, find_run(store, "mine"), "cases")


def test_a_store_loads_no_plugin_that_it_names_unless_the_user_has_named_the_file(store, tmp_path):
    own, theirs = tmp_path / "own" / "named_by_a_store.py", tmp_path / "named_by_a_store.py"
    theirs.write_text("raise SystemExit")
    own.parent.mkdir()
    own.write_text("from bench.registry import loss\n@loss\ndef mine(logits, target): return logits.mean()\n")
    with open_run(store, "used", "lgg", TAGS) as run:
        run.settings({"loss.name": "mine", "run.plugins": [str(theirs)]})
    recorded = find_run(store, "used")
    with pytest.raises(BadSetting, match=r"run used \(\w{8}\) used (\w+\.py), .* give --plugin \1"):
        read_config(recorded)
    try:
        registry.load_plugin(own)
        assert read_config(recorded).plugins == (str(own),)
    finally:
        registry.loss.forget(sys.modules.pop(f"bench_plugin_{own}").__name__)
