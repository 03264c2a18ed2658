"""Who took part in a run is known again by name and by image, and cannot be read in what is handed on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.data.fingerprints import fingerprints, image_table
from bench.data.pack import Pack, histograms_of
from bench.errors import DataError
from bench.tracking import Store, open_run
from bench.tracking.participants import Participants, participants_of_export, participants_of_run
from tests.fakes import pack_of, tiny_pack

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


def logged(store: Store, pack: Pack, *, images: bool = True) -> Participants:
    """Those of a run on this pack."""
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"fold": 0, "part": "train", "case": pack.cases}))
        if images:
            run.table("images", image_table(pack))
    return participants_of_run(store, store.client.get_run(run.run_id))


def renamed(pack: Pack, images: np.ndarray | None = None) -> Pack:
    """The pack, its patients under other names."""
    given = np.array(pack.images) if images is None else images
    return pack_of(given, np.array(pack.masks), [f"other-{case}" for case in pack.index["case"]])


def test_those_of_all_parts_are_known_by_name(store: Store) -> None:
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"fold": [0, 0], "part": ["train", "val"], "case": ["P1", "P3"]}))
    known = participants_of_run(store, store.client.get_run(run.run_id))
    assert known == Participants(frozenset({"P1", "P3"}), None)
    assert known.among(tiny_pack(cases=4, seed=1)) == ["P1", "P3"]


@pytest.mark.parametrize("sealed", [False, True])
def test_another_name_hides_nobody(store: Store, sealed: bool) -> None:
    pack, strangers = tiny_pack(cases=2), tiny_pack(cases=2, seed=1)
    known = logged(store, pack)
    if sealed:
        known = participants_of_export(json.loads(json.dumps({"patients": known.sealed()})))
    assert known.among(pack) == ["P0", "P1"]
    assert known.among(renamed(pack)) == ["other-P0", "other-P1"]
    assert known.among(renamed(strangers)) == []
    mixed = np.array(strangers.images)
    mixed[7] = pack.images[2, ::-1, ::-1]  # one slice, turned, among those of another patient
    assert known.among(renamed(strangers, mixed)) == ["other-P1"]


def test_blank_images_are_of_nobody(store: Store) -> None:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1] = np.arange(16, dtype=np.uint8)[:, None, None]  # 16 levels, as at the end of a stack
    blank = pack_of(images, images[..., 0], ["a", "b"])
    assert fingerprints(blank.histograms) == ["", ""]
    assert logged(store, blank).among(renamed(blank)) == []


def test_equal_images_have_equal_fingerprints_and_others_others() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    another = image.copy()
    another[0, 0, 0] += 1
    prints = fingerprints(histograms_of([image, image.transpose(1, 0, 2), another, image[..., ::-1]]))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_fingerprint_of_digits_alone_stays_text(store: Store) -> None:
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"fold": [0], "part": ["train"], "case": ["7"]}))
        run.table("images", pd.DataFrame({"case": ["7", "7"], "image": ["012345678901", "12345678e123"]}))
    known = participants_of_run(store, store.client.get_run(run.run_id))
    assert known == Participants(frozenset({"7"}), frozenset({"012345678901", "12345678e123"}))


def test_what_is_sealed_cannot_be_read_and_is_another_text_each_time(store: Store) -> None:
    known = logged(store, tiny_pack(cases=2))
    first, second = known.sealed(), known.sealed()
    first_images, second_images = (set(made["images"].split()) for made in (first, second))
    assert len(first_images) == len(known.images or ())
    assert not {*first["hashes"], *first_images} & {*known.names, *(known.images or ())}
    assert not set(first["hashes"]) & set(second["hashes"])
    assert not first_images & second_images


def test_a_run_that_kept_no_images_seals_none(store: Store) -> None:
    known = participants_of_export({"patients": logged(store, tiny_pack(cases=2), images=False).sealed()})
    assert known.images is None
    assert known.among(tiny_pack(cases=3, seed=1)) == ["P0", "P1"]


def test_a_model_that_says_nothing_of_its_patients_is_refused() -> None:
    with pytest.raises(DataError, match="does not say which patients its model has seen"):
        participants_of_export({})


def test_a_case_without_a_telling_image_is_known_by_its_name(store: Store) -> None:
    pack = tiny_pack(cases=2)
    blank = replace(pack, histograms=np.zeros_like(pack.histograms))
    assert logged(store, pack).among(blank) == ["P0", "P1"]
