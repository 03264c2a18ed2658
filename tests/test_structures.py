"""Structures: bits of a pixel, label maps, overlaps, columns of tables, and names that are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.errors import BadSetting, UnknownName
from bench.structures import (
    COLOURS,
    MOST,
    Structures,
    call_structures,
    join_bits,
    make_structures,
    per_structure,
    resolve_overlaps,
    select_structure,
    split_bits,
    structures_in,
)


def numbered(count: int) -> Structures:
    return Structures(tuple(f"s{k}" for k in range(count)), tuple((k + 1,) for k in range(count)))


# Bits


@pytest.mark.parametrize(
    ("count", "dtype"), [(1, np.uint8), (8, np.uint8), (9, np.uint16), (17, np.uint32), (MOST, np.uint32)]
)
def test_masks_come_back_from_the_smallest_numbers_that_hold_them(count, dtype):
    masks = np.random.default_rng(count).random((2, count, 5, 7)) < 0.5
    masks[:, -1, 0, 0] = True  # the highest bit
    bits = join_bits(masks, numbered(count))
    assert bits.dtype == numbered(count).bits == dtype
    assert bits.shape == (2, 5, 7)
    np.testing.assert_array_equal(split_bits(bits, count), masks)


def test_the_bits_of_one_structure_are_0_and_1_and_those_of_two_0_to_3():
    first, second = np.array([[[0, 1, 1, 0]], [[0, 0, 1, 1]]], bool)
    assert join_bits(first[None], numbered(1)).tolist() == [[0, 1, 1, 0]]
    assert join_bits(np.stack((first, second)), numbered(2)).tolist() == [[0, 1, 3, 2]]


# Label maps


def test_exclusive_structures_share_a_map_of_their_own_values():
    masks = np.array([[[[1, 0, 0]], [[0, 1, 0]]]], bool)  # one slice of 1 x 3
    [(end, labels)] = Structures(("a", "b"), ((300, 301), (2,))).label_maps(masks).items()
    assert end == ""
    assert labels.tolist() == [[[300, 2, 0]]]
    assert labels.dtype == np.uint16


def test_the_map_of_a_mask_without_values_is_0_and_1():
    [labels] = Structures().label_maps(np.array([[[[True, False]]]])).values()
    assert labels.tolist() == [[[1, 0]]]
    assert labels.dtype == np.uint8


def test_structures_that_may_overlap_have_a_map_of_0_and_1_each():
    masks = np.array([[[[1, 1, 0]], [[0, 1, 0]]]], bool)
    maps = Structures(("whole", "core"), ((1, 4), (4,)), exclusive=False).label_maps(masks)
    assert {end: labels.tolist() for end, labels in maps.items()} == {
        "_whole": [[[1, 1, 0]]],
        "_core": [[[0, 1, 0]]],
    }


# Overlaps

# Six pixels: only the first is called, only the second, both and the second is surer, both alike, none, and one
# where the surer one is not called.
CALLED = np.array([[[[1, 0, 1, 1, 0, 1]], [[0, 1, 1, 1, 0, 0]]]], bool)
PROBABILITY = np.array([[[[0.9, 0.2, 0.6, 0.7, 0.3, 0.5]], [[0.1, 0.8, 0.9, 0.7, 0.4, 0.6]]]], np.float32)
LEFT = [[[[1, 0, 0, 1, 0, 1]], [[0, 1, 1, 0, 0, 0]]]]


@pytest.mark.parametrize("scale", [1, 100])
def test_of_the_structures_called_at_a_pixel_the_most_probable_is_left(scale):
    values = PROBABILITY if scale == 1 else np.uint8(np.round(PROBABILITY * scale))
    found = resolve_overlaps(CALLED, values)
    assert found.dtype == bool
    assert found.astype(int).tolist() == LEFT


def test_two_structures_a_hair_apart_are_told_apart():
    near = np.float32(0.7)
    values = np.array([near, np.nextafter(near, np.float32(1))], np.float32).reshape(1, 2, 1, 1)
    assert resolve_overlaps(np.ones((1, 2, 1, 1), bool), values).ravel().tolist() == [False, True]


def test_a_single_structure_is_never_changed_by_another():
    np.testing.assert_array_equal(resolve_overlaps(CALLED[:, :1], PROBABILITY[:, :1]), CALLED[:, :1])


def test_each_structure_is_called_at_its_own_threshold():
    """0.5 for the first and 0.65 for the second: the last pixel is left to the first, which is less probable."""
    exclusive = call_structures(PROBABILITY, (0.5, 0.65), exclusive=True)
    assert exclusive.astype(int).tolist() == LEFT
    overlapping = call_structures(PROBABILITY, (0.5, 0.65), exclusive=False)
    assert overlapping.tolist() == CALLED.tolist()


# Names and values


def test_structures_have_names_in_lower_case_and_are_exclusive_unless_they_share_a_value():
    assert make_structures({"Anterior Horn": [1], " posterior": [2, 3]}) == Structures(
        ("anterior_horn", "posterior"), ((1,), (2, 3))
    )
    assert not make_structures({"whole": [1, 4], "core": [4]}).exclusive
    assert not make_structures({"a": [1], "b": [2]}, exclusive=False).exclusive


@pytest.mark.parametrize(
    ("values", "exclusive", "message"),
    [
        ({}, None, "dataset.structures names nothing"),
        ({"?": [1]}, None, r"names '\?'\. Give 1 to 32 names that differ in letters or digits"),
        ({"a b": [1], "A-b": [2], "a_b": [3]}, None, "names 'a b', 'A-b', 'a_b'"),
        ({f"s{k}": [k + 1] for k in range(MOST + 1)}, None, "Give 1 to 32 names"),
        ({"a": []}, None, r"dataset\.structures\.a needs values above 0"),
        ({"a": [1], "b": [0, 2]}, None, r"dataset\.structures\.b needs values above 0.* 0 is the background"),
        ({"a": [1, 2], "b": [2]}, True, r"share a value, so dataset\.exclusive=true cannot be"),
    ],
)
def test_structures_that_cannot_be_are_refused_with_what_was_typed(values, exclusive, message):
    with pytest.raises(BadSetting, match=message):
        make_structures(values, exclusive)


def test_a_sentence_names_a_single_structure_and_none_of_several():
    assert (Structures().noun, numbered(2).noun) == ("tumour", "a structure")


def test_colours_of_structures_differ():
    assert len(set(COLOURS)) == len(COLOURS) >= 7


# Columns

TABLE = pd.DataFrame(
    {
        "case": ["P1"],
        "dice": [0.7],
        "tp": [5],
        "dice[a]": [0.6],
        "tp[a]": [2],
        "threshold[a]": [0.4],
        "dice[b]": [0.8],
        "tp[b]": [3],
        "threshold[b]": [0.6],
    }
)


def test_a_single_structure_has_a_plain_column_and_several_have_names_in_brackets():
    assert per_structure("threshold", ["tumour"], [0.5]) == {"threshold": 0.5}
    assert per_structure("threshold", ["a", "b"], [0.4, 0.6]) == {"threshold[a]": 0.4, "threshold[b]": 0.6}
    assert structures_in(TABLE.columns) == ("a", "b")
    assert structures_in(["case", "dice"]) == ()


def test_the_table_of_one_structure_is_as_if_there_were_no_other():
    expected = pd.DataFrame({"case": ["P1"], "dice": [0.8], "tp": [3], "threshold": [0.6]})
    pd.testing.assert_frame_equal(select_structure(TABLE, "b"), expected)
    with pytest.raises(UnknownName, match="no structure 'c'; there is a, b"):
        select_structure(TABLE, "c")
    with pytest.raises(UnknownName, match="no structure 'a'; the data have only one"):
        select_structure(TABLE[["case", "dice"]], "a")
