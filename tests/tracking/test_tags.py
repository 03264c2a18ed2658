"""What the tags of a run say about it."""

from __future__ import annotations

import pytest

from bench.tracking.tags import Tag, is_derived, scored_by_slice


@pytest.mark.parametrize(
    ("tags", "settings", "derived"),
    [
        ({}, {"train.epochs": "30"}, False),
        ({"bench.imported": "1" * 32}, {"train.epochs": "30"}, False),  # settings of an imported run are complete
        ({"bench.derived": "rescore"}, {"model.name": "unet"}, True),
        ({"bench.source": "1" * 32}, {"model.name": "cascade"}, True),  # a version that did not tag derived runs
    ],
)
def test_a_run_is_derived_if_tagged_so_or_without_epochs(tags, settings, derived):
    assert is_derived(tags, settings) == derived


def test_only_presence_runs_are_scored_by_slice():
    assert scored_by_slice({"bench.task": "presence"})
    assert not scored_by_slice({"bench.task": "segmentation"})
    assert not scored_by_slice({})  # the first runs had no task


def test_no_two_tags_share_a_name():
    names = [value for name, value in vars(Tag).items() if name.isupper()]
    assert len(names) == len(set(names))
