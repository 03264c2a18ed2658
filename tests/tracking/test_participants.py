"""Patients of a run are recognised by name and by image, and an export does not reveal them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.data.fingerprints import fingerprints, image_table
from bench.data.pack import Pack, compute_histograms
from bench.errors import DataError, StoreError
from bench.tracking import Store, open_run
from bench.tracking.participants import Participants, read_exported_participants, read_participants
from tests.fakes import pack_of, tiny_pack

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


def log_and_read(store: Store, pack: Pack, *, images: bool = True) -> Participants:
    """Log a run on this pack, and read its participants."""
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"fold": 0, "part": "train", "case": pack.cases}))
        if images:
            run.table("images", image_table(pack))
    return read_participants(store, store.client.get_run(run.run_id))


def renamed(pack: Pack, images: np.ndarray | None = None) -> Pack:
    """Return the pack with other patient names, and other images if given."""
    images = np.array(pack.images) if images is None else images
    return pack_of(images, np.array(pack.masks), [f"other-{case}" for case in pack.index["case"]])


def test_patients_of_all_parts_are_recognised_by_name(store: Store) -> None:
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"fold": [0, 0], "part": ["train", "val"], "case": ["P1", "P3"]}))
    known = read_participants(store, store.client.get_run(run.run_id))
    assert known == Participants(frozenset({"P1", "P3"}), None)
    assert known.find_in(tiny_pack(cases=4, seed=1)) == ["P1", "P3"]


@pytest.mark.parametrize("anonymised", [False, True])
def test_renamed_patients_are_recognised_by_their_images(store: Store, anonymised: bool) -> None:
    pack, strangers = tiny_pack(cases=2), tiny_pack(cases=2, seed=1)
    known = log_and_read(store, pack)
    if anonymised:
        known = read_exported_participants(json.loads(json.dumps({"patients": known.anonymise()})))
    assert known.find_in(pack) == ["P0", "P1"]
    assert known.find_in(renamed(pack)) == ["other-P0", "other-P1"]
    assert known.find_in(renamed(strangers)) == []
    mixed = np.array(strangers.images)
    mixed[7] = pack.images[2, ::-1, ::-1]  # one rotated slice among those of another patient
    assert known.find_in(renamed(strangers, mixed)) == ["other-P1"]


def test_blank_images_identify_nobody(store: Store) -> None:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1] = np.arange(16, dtype=np.uint8)[:, None, None]  # 16 levels, as at the end of a stack
    blank = pack_of(images, images[..., 0], ["a", "b"])
    assert fingerprints(blank.histograms) == ["", ""]
    assert log_and_read(store, blank).find_in(renamed(blank)) == []


def test_only_equal_images_have_equal_fingerprints() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    another = image.copy()
    another[0, 0, 0] += 1
    prints = fingerprints(compute_histograms([image, image.transpose(1, 0, 2), another, image[..., ::-1]]))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_fingerprints_of_digits_are_read_as_text(store: Store) -> None:
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"fold": [0], "part": ["train"], "case": ["7"]}))
        run.table("images", pd.DataFrame({"case": ["7", "7"], "image": ["012345678901", "12345678e123"]}))
    known = read_participants(store, store.client.get_run(run.run_id))
    assert known == Participants(frozenset({"7"}), frozenset({"012345678901", "12345678e123"}))


def test_anonymised_patients_have_other_hashes_each_time(store: Store) -> None:
    known = log_and_read(store, tiny_pack(cases=2))
    first, second = known.anonymise(), known.anonymise()
    first_images, second_images = (set(made["images"].split()) for made in (first, second))
    assert len(first_images) == len(known.images or ())
    assert not {*first["hashes"], *first_images} & {*known.names, *(known.images or ())}
    assert not set(first["hashes"]) & set(second["hashes"])
    assert not first_images & second_images


def test_a_run_without_logged_images_exports_none(store: Store) -> None:
    known = read_exported_participants(
        {"patients": log_and_read(store, tiny_pack(cases=2), images=False).anonymise()}
    )
    assert known.images is None
    assert known.find_in(tiny_pack(cases=3, seed=1)) == ["P0", "P1"]


def test_a_model_without_patients_in_its_description_is_refused() -> None:
    with pytest.raises(DataError, match="does not say which patients its model has seen"):
        read_exported_participants({})


def test_a_patient_with_blank_images_is_recognised_by_name(store: Store) -> None:
    pack = tiny_pack(cases=2)
    blank = replace(pack, histograms=np.zeros_like(pack.histograms))
    assert log_and_read(store, pack).find_in(blank) == ["P0", "P1"]


def test_a_damaged_table_of_images_is_no_run_without_images(store: Store) -> None:
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"fold": 0, "part": "train", "case": ["P0"]}))
        run.client.log_text(run.run_id, "", "images.csv")
    with pytest.raises(StoreError, match=r"images\.csv of run mine"):
        read_participants(store, store.client.get_run(run.run_id))
