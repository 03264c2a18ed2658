"""Probabilities kept in hundredths give the mask of every threshold that may be chosen, and survive the disk."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import BadSetting, StoreError
from bench.probabilities import (
    THRESHOLDS,
    Probabilities,
    hundredths,
    load_probabilities,
    reached,
    save_probabilities,
)


def around_every_threshold() -> np.ndarray:
    """Each threshold as float32, and its neighbours on either side; the ends; and some at random."""
    edges = THRESHOLDS.astype(np.float32)
    near = [np.nextafter(edges, np.float32(0)), edges, np.nextafter(edges, np.float32(1))]
    ends = np.array([0, 1e-30, 1 - 2**-24, 1], np.float32)
    return np.concatenate([*near, ends, np.random.default_rng(0).random(5000, np.float32)])


@pytest.mark.parametrize("threshold", THRESHOLDS.tolist())
def test_every_threshold_calls_the_pixels_that_the_probability_itself_calls(threshold):
    probability = around_every_threshold()
    assert np.array_equal(reached(hundredths(probability), threshold), probability >= threshold)


def test_hundredths_by_hand():
    given = np.array([0, 0.0099, 0.01, 0.5, 0.509, 0.99, 1], np.float32)
    assert hundredths(given).tolist() == [0, 0, 1, 50, 50, 99, 99]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 0.375, -0.5, 0.505])
def test_a_threshold_between_hundredths_is_refused(threshold):
    with pytest.raises(BadSetting, match="kept in hundredths"):
        reached(np.zeros(3, np.uint8), threshold)


def test_they_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    given = {"B": rng.integers(0, 100, (3, 5, 7), np.uint8), "A": rng.integers(0, 100, (1, 5, 7), np.uint8)}
    held = Probabilities.joined([Probabilities([pair]) for pair in given.items()])
    save_probabilities(tmp_path / "p.npz", held, {"A": [4], "B": [1, 2, 9]})
    index, found = load_probabilities(tmp_path / "p.npz")
    assert index["case"].tolist() == ["B", "B", "B", "A"]
    assert index["slice"].tolist() == [1, 2, 9, 4]
    assert list(found) == ["B", "A"]
    assert all(np.array_equal(found[case], values) for case, values in given.items())


def test_mostly_empty_slices_take_little_room():
    values = np.zeros((10, 256, 256), np.uint8)
    values[:, 100:120, 100:120] = 80
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
    save_probabilities(path, Probabilities([("A", np.zeros((2, 4, 4), np.uint8))]), {"A": [1, 2]})
    damage(path)
    with pytest.raises(StoreError, match="holds no probabilities that can be read"):
        load_probabilities(path)
