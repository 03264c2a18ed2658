"""Random numbers depend only on (seed, epoch, slice)."""

from __future__ import annotations

import pytest
import torch

from bench.data.slice_random import SliceRandom


def numbers(seed=1, epoch=2, slices=(3, 4, 5)):
    draws = SliceRandom(seed, epoch, slices)
    return torch.cat([draws.uniform(0, 1, 4), draws.normal(4)], dim=1)


def test_the_same_key_gives_the_same_numbers():
    assert torch.equal(numbers(), numbers())


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 3}, {"slices": (6, 7, 8)}])
def test_another_seed_epoch_or_slice_changes_all_numbers(other):
    assert (numbers() != numbers(**other)).all()


def test_seed_epoch_and_slice_are_not_interchangeable():
    keys = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 0, 0)]
    assert len({SliceRandom(seed, epoch, [s]).uniform().item() for seed, epoch, s in keys}) == len(keys)


def test_a_slice_gets_the_same_numbers_in_any_batch():
    whole = numbers(slices=(9, 3, 7, 5))
    assert torch.equal(numbers(slices=(5, 3)), whole[[3, 1]])
    for row, number in enumerate((9, 3, 7, 5)):
        assert torch.equal(numbers(slices=(number,))[0], whole[row])


def test_successive_draws_differ():
    draws = SliceRandom(0, 0, [1])
    assert draws.uniform() != draws.uniform()


def test_draws_have_the_requested_shape_and_are_float32():
    draws = SliceRandom(0, 0, range(5))
    assert draws.uniform().shape == (5,)
    assert draws.uniform(0, 1, 2, 3).shape == (5, 2, 3)
    assert draws.normal(2, 3).shape == (5, 2, 3)
    assert draws.uniform().dtype == draws.normal(1).dtype == torch.float32


def test_uniform_draws_cover_their_range_evenly():
    values = SliceRandom(0, 0, range(20)).uniform(-1, 3, 2000)
    assert values.min() >= -1
    assert values.max() <= 3
    # Deviation 4 / sqrt(12) over 40,000 numbers: the mean's standard error is 0.006.
    assert values.mean().item() == pytest.approx(1, abs=0.03)
    assert values.std().item() == pytest.approx(4 / 12**0.5, rel=0.02)
    quarters = torch.histc(values, 4, -1, 3) / values.numel()
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.012)


def test_normal_draws_have_the_moments_of_a_standard_normal():
    values = SliceRandom(0, 0, range(20)).normal(2000)
    assert values.mean().item() == pytest.approx(0, abs=0.03)
    assert values.var().item() == pytest.approx(1, abs=0.04)
    assert values.pow(4).mean().item() == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize("along", ["slice", "epoch", "seed"])
def test_neighbouring_keys_are_uncorrelated(along):
    def first(i):
        key = {"seed": 0, "epoch": 0, "slice": 0} | {along: i}
        return SliceRandom(key["seed"], key["epoch"], [key["slice"]]).uniform().item()

    values = torch.tensor([first(i) for i in range(2000)])
    assert values.mean().item() == pytest.approx(0.5, abs=0.03)
    neighbours = torch.corrcoef(torch.stack((values[1:], values[:-1])))[0, 1]
    assert abs(neighbours) < 0.1  # four and a half standard errors


def test_the_largest_64_bit_seed_is_valid():
    assert SliceRandom(2**64 - 1, 0, [0]).uniform() != SliceRandom(0, 0, [0]).uniform()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(OverflowError):
        SliceRandom(seed, 0, [0])
