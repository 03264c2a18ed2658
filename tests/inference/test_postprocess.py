"""Cleaning a mask: what is filled, what is removed, what is kept, drawn by hand and found by slow searches."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError

from bench.inference.postprocess import Postprocess, clean, fill_holes, keep_largest, remove_small

ALL = Postprocess(fill_holes=True, min_size=4, largest=True)


def drawn(*slices: str) -> np.ndarray:
    """A stack from pictures: rows apart by spaces, # is tumour."""
    return np.array([[[pixel == "#" for pixel in row] for row in picture.split()] for picture in slices])


def cleaned(mask: np.ndarray, rules: Postprocess) -> np.ndarray:
    """The stack of a single structure after these rules."""
    return clean(mask[:, None], rules)[:, 0]


def noise(seed: int, shape: tuple[int, int, int] = (4, 9, 11), share: float = 0.35) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def bodies(mask: np.ndarray, steps: list[tuple[int, int, int]]) -> list[set[tuple[int, ...]]]:
    """Connected components as sets of places, by flooding from one pixel after another."""
    left, found = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        body, front = set(), [min(left)]
        while front:
            place = front.pop()
            if place in left:
                left.remove(place)
                body.add(place)
                front += [tuple(p + s for p, s in zip(place, step, strict=True)) for step in steps]
        found.append(body)
    return found


FACES = [s for s in product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1]
EDGES = [s for s in FACES if s[0] == 0]


def painted(shape: tuple[int, ...], wanted: list[set[tuple[int, ...]]]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in set().union(*wanted):
        mask[place] = True
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_the_largest_is_that_of_a_search_over_faces(seed):
    mask = noise(seed)
    assert np.array_equal(
        keep_largest(mask), painted(mask.shape, [max(bodies(mask, FACES), key=len)])
    )  # the first of equals


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_small_ones_are_those_of_a_search_within_slices(seed, size):
    mask = noise(seed)
    kept = [body for body in bodies(mask, EDGES) if len(body) >= size]
    assert np.array_equal(remove_small(mask, size), painted(mask.shape, kept))


@pytest.mark.parametrize("seed", range(3))
def test_holes_are_the_background_that_a_search_does_not_reach_from_the_border(seed):
    mask = noise(seed, share=0.55)
    ends = [{0, size - 1} for size in mask.shape[1:]]
    holes = [b for b in bodies(~mask, EDGES) if not any(y in ends[0] or x in ends[1] for _, y, x in b)]
    assert holes
    assert np.array_equal(fill_holes(mask), mask | painted(mask.shape, holes))


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_is_that_of_medpy_which_the_authors_of_the_data_use(seed):
    filters = pytest.importorskip("medpy.filter.binary", reason="pip install 'medseg-bench[peers]'")
    mask = noise(seed, (6, 40, 40), 0.3)
    assert np.array_equal(keep_largest(mask), filters.largest_connected_component(mask))


def test_the_largest_is_one_body_through_the_slices():
    """Three pixels on top of one another are more than two side by side, and corners join nothing."""
    mask = drawn("#...# .....", "#...# ...#.", "#.... .....")
    assert np.array_equal(keep_largest(mask), drawn("#.... .....", "#.... .....", "#.... ....."))


def test_of_equals_the_first_in_the_stack_is_kept():
    assert np.array_equal(keep_largest(drawn("....", "..##", "##..")), drawn("....", "..##", "...."))
    assert np.array_equal(keep_largest(drawn("##.##")), drawn("##..."))


def test_a_component_of_just_the_size_is_kept():
    mask = drawn("##..# ....#", "#.... .....")
    assert np.array_equal(remove_small(mask, 2), drawn("##..# ....#", "..... ....."))
    assert not remove_small(mask, 3).any()  # the three on top of one another are in two slices


def test_a_hole_is_closed_within_its_slice_and_one_that_is_open_to_the_border_is_not():
    ring, open_ring = ".###. .#.#. .###.", ".###. .#.#. .#.#."
    assert np.array_equal(fill_holes(drawn(ring, open_ring)), drawn(".###. .###. .###.", open_ring))


def test_the_order_is_holes_then_small_ones_then_the_largest():
    ring = drawn("### #.# ###")
    assert cleaned(ring, Postprocess(fill_holes=True, min_size=9)).sum() == 9  # eight, before it is filled
    pile = drawn("#.... .....", "#..## .....", "#.... .....")  # its body is the largest, its slices are small
    assert np.array_equal(
        cleaned(pile, Postprocess(min_size=2, largest=True)), drawn("..... .....", "...## .....", "..... .....")
    )


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (Postprocess(), "###... #.#... ###..# ......"),
        (Postprocess(fill_holes=True), "###... ###... ###..# ......"),
        (Postprocess(min_size=2), "###... #.#... ###... ......"),
        (Postprocess(largest=True), "###... #.#... ###... ......"),
        (ALL, "###... ###... ###... ......"),
    ],
)
def test_each_rule_does_its_own_and_leaves_the_given_mask_alone(rules, wanted):
    mask = drawn("###... #.#... ###..# ......")
    before = mask.copy()
    found = cleaned(mask, rules)
    assert found.dtype == bool
    assert np.array_equal(found, drawn(wanted))
    assert np.array_equal(mask, before)


def test_each_structure_is_cleaned_by_itself_and_takes_no_pixel_from_another():
    """Of two rings, the hole of the first is the second structure, and the hole of the other is empty."""
    rings, core = drawn("###.### #.#.#.# ###.###"), drawn("....... .#..... .......")
    mask = np.stack((rings, core), 1)
    filled = clean(mask, Postprocess(fill_holes=True))
    assert np.array_equal(filled[:, 0], drawn("###.### #.#.### ###.###"))
    assert np.array_equal(filled[:, 1], mask[:, 1])
    largest = clean(mask, Postprocess(largest=True))
    assert largest.sum((0, 2, 3)).tolist() == [8, 1]


def test_an_empty_mask_stays_empty():
    assert not clean(np.zeros((3, 2, 5, 5), bool), ALL).any()


def test_descriptions_name_the_steps_taken():
    assert ALL.descriptions == ["holes filled", "no component under 4 pixels", "largest component"]
    assert Postprocess().descriptions == []
    assert Postprocess(min_size=1).descriptions == []  # which removes nothing


def test_a_negative_size_is_refused():
    with pytest.raises(ValidationError, match="min_size"):
        Postprocess(min_size=-1)
