"""What was predicted is kept bit for bit, and read back whatever its size."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import BadSetting, StoreError
from bench.masks import (
    THRESHOLDS,
    Masks,
    Probabilities,
    above_threshold,
    load_masks,
    load_probabilities,
    save_masks,
    save_probabilities,
    to_hundredths,
)
from bench.training.checkpoint import read_state, write_state


def random_masks(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.4


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (1, 1), (3, 13), (16, 9)])
def test_masks_come_back_as_they_were(tmp_path, height, width):
    given = {"B": random_masks(0, 3, 1, height, width), "A": random_masks(1, 1, 1, height, width)}
    save_masks(tmp_path / "masks.npz", Masks(given.items()), {"A": [4], "B": [1, 2, 9]})
    index, masks = load_masks(tmp_path / "masks.npz")
    assert index["case"].tolist() == ["B", "B", "B", "A"]
    assert index["slice"].tolist() == [1, 2, 9, 4]
    assert masks.dtype == bool
    assert np.array_equal(masks, np.concatenate([given["B"], given["A"]]))


@pytest.mark.parametrize(("structures", "in_file"), [(1, (4, 5, 7)), (2, (4, 2, 5, 7)), (9, (4, 9, 5, 7))])
def test_files_of_one_structure_have_no_axis_for_it_and_those_of_several_do(tmp_path, structures, in_file):
    given = {"B": random_masks(0, 3, structures, 5, 7), "A": random_masks(1, 1, structures, 5, 7)}
    numbers = {"A": [4], "B": [1, 2, 9]}
    hundredths = {case: np.random.default_rng(2).integers(0, 100, m.shape, np.uint8) for case, m in given.items()}
    save_masks(tmp_path / "masks.npz", Masks(given.items()), numbers)
    save_probabilities(tmp_path / "p.npz", Probabilities(hundredths.items()), numbers)
    with np.load(tmp_path / "masks.npz") as file:
        assert tuple(file["shape"]) == in_file
    with np.load(tmp_path / "p.npz") as file:
        assert file["shapes"].tolist() == [[3, *in_file[1:]], [1, *in_file[1:]]]
    assert np.array_equal(load_masks(tmp_path / "masks.npz")[1], np.concatenate(list(given.values())))
    found = load_probabilities(tmp_path / "p.npz")[1]
    assert all(np.array_equal(found[case], values) for case, values in hundredths.items())


def test_a_threshold_leaves_exclusive_structures_the_most_probable_one():
    """In hundredths; of equal ones the first."""
    values = np.uint8([[[[60, 70, 80]], [[40, 80, 80]]]])
    exclusive, both = (above_threshold(values, 0.5, exclusive=way) for way in (True, False))
    assert both.astype(int).tolist() == [[[[1, 1, 1]], [[0, 1, 1]]]]
    assert exclusive.astype(int).tolist() == [[[[1, 0, 1]], [[0, 1, 0]]]]


def test_masks_are_held_as_bits_and_shown_as_they_were():
    given = {"B": random_masks(0, 3, 1, 9, 13), "A": random_masks(1, 2, 1, 9, 13)}
    masks = Masks.joined([Masks([(case, mask)]) for case, mask in given.items()])
    assert list(masks) == ["B", "A"]
    assert all(masks[case].dtype == bool and np.array_equal(masks[case], mask) for case, mask in given.items())
    assert sum(bits.nbytes for bits, _ in masks.bits.values()) == 5 * 15  # 117 pixels in 15 bytes


def test_eight_pixels_take_at_most_a_byte(tmp_path):
    save_masks(tmp_path / "masks.npz", Masks([("A", random_masks(0, 50, 1, 64, 64))]), {"A": list(range(50))})
    assert (tmp_path / "masks.npz").stat().st_size < 50 * 64 * 64 / 8 + 2000


def array_file(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("words"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes()[:200] + b"\0" * 60 + path.read_bytes()[260:]),
        array_file,
        lambda path: np.savez(path, bits=np.zeros((1, 1), np.uint8)),
    ],
)
def test_a_file_that_holds_no_masks_is_refused_with_a_sentence(tmp_path, damage):
    path = tmp_path / "masks.npz"
    save_masks(path, Masks([("A", random_masks(0, 4, 1, 32, 32))]), {"A": [1, 2, 3, 4]})
    damage(path)
    with pytest.raises(StoreError, match=r"masks\.npz holds no masks that can be read"):
        load_masks(path)


def test_masks_and_their_probabilities_pass_through_a_checkpoint(tmp_path):
    given = {"B": random_masks(0, 3, 1, 5, 7), "A": random_masks(1, 1, 1, 5, 7)}
    hundredths = {case: np.random.default_rng(2).integers(0, 100, m.shape, np.uint8) for case, m in given.items()}
    write_state(tmp_path / "state", Masks(given.items(), hundredths.items()).state())
    found = Masks.of_state(read_state(tmp_path / "state"))
    assert list(found) == list(found.probabilities) == ["B", "A"]
    for case, mask in given.items():
        assert np.array_equal(found[case], mask)
        assert np.array_equal(found.probabilities[case], hundredths[case])
    save_masks(tmp_path / "masks.npz", found, {"A": [4], "B": [1, 2, 9]})
    assert np.array_equal(load_masks(tmp_path / "masks.npz")[1], np.concatenate([given["B"], given["A"]]))


def test_no_masks_pass_through_a_checkpoint_as_well(tmp_path):
    write_state(tmp_path / "state", Masks(()).state())
    found = Masks.of_state(read_state(tmp_path / "state"))
    assert not found
    assert not found.probabilities


def around_every_threshold() -> np.ndarray:
    """Each threshold as float32, and its neighbours on either side; the ends; and some at random."""
    edges = THRESHOLDS.astype(np.float32)
    near = [np.nextafter(edges, np.float32(0)), edges, np.nextafter(edges, np.float32(1))]
    ends = np.array([0, 1e-30, 1 - 2**-24, 1], np.float32)
    return np.concatenate([*near, ends, np.random.default_rng(0).random(5000, np.float32)])


@pytest.mark.parametrize("threshold", THRESHOLDS.tolist())
def test_every_threshold_calls_the_pixels_that_the_probability_itself_calls(threshold):
    probability = around_every_threshold()[:, None, None, None]
    assert np.array_equal(
        above_threshold(to_hundredths(probability), threshold, exclusive=True), probability >= threshold
    )


def test_hundredths_by_hand():
    given = np.array([0, 0.0099, 0.01, 0.5, 0.509, 0.99, 1], np.float32)
    assert to_hundredths(given).tolist() == [0, 0, 1, 50, 50, 99, 99]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 0.375, -0.5, 0.505])
def test_a_threshold_between_hundredths_is_refused(threshold):
    with pytest.raises(BadSetting, match="kept in hundredths"):
        above_threshold(np.zeros(3, np.uint8), threshold, exclusive=False)


def test_they_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    given = {"B": rng.integers(0, 100, (3, 1, 5, 7), np.uint8), "A": rng.integers(0, 100, (1, 1, 5, 7), np.uint8)}
    held = Probabilities.joined([Probabilities([pair]) for pair in given.items()])
    save_probabilities(tmp_path / "p.npz", held, {"A": [4], "B": [1, 2, 9]})
    index, found = load_probabilities(tmp_path / "p.npz")
    assert index["case"].tolist() == ["B", "B", "B", "A"]
    assert index["slice"].tolist() == [1, 2, 9, 4]
    assert list(found) == ["B", "A"]
    assert all(np.array_equal(found[case], values) for case, values in given.items())


def test_mostly_empty_slices_take_little_room():
    values = np.zeros((10, 1, 256, 256), np.uint8)
    values[..., 100:120, 100:120] = 80
    [(data, _)] = Probabilities([("A", values)]).deflated.values()
    assert len(data) < values.size / 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("words"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: np.savez(path, deflated=np.zeros(1, np.uint8)),
    ],
)
def test_a_file_that_holds_none_is_refused_with_a_sentence(tmp_path, damage):
    path = tmp_path / "p.npz"
    save_probabilities(path, Probabilities([("A", np.zeros((2, 1, 4, 4), np.uint8))]), {"A": [1, 2]})
    damage(path)
    with pytest.raises(StoreError, match="holds no probabilities that can be read"):
        load_probabilities(path)
