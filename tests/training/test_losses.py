"""Losses: the contract of every loss, and values computed by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from bench import registry
from bench.errors import BadSetting
from bench.inference.predict import ACTIVATIONS
from bench.training.step import mean_over_structures
from tests import reference

NAMES = list(registry.loss)
OVER = [name for name in NAMES if "over" in registry.loss[name].settings({})]
MASKS = ["empty", "full", "lesion"]


def compute(name, logits, target, **settings):
    return registry.loss[name].bind(settings)(logits, target)


def gradient(name, logits, target):
    logits = logits.clone().requires_grad_()
    compute(name, logits, target).backward()
    return logits.grad


@pytest.fixture
def lesion():
    """Three images of 12 x 10 with a small, a large and a long tumour."""
    masks = torch.zeros(3, 1, 12, 10)
    masks[0, :, 2:4, 3:5] = 1
    masks[1, :, 1:10, 1:9] = 1
    masks[2, :, 6, :] = 1
    return masks


@pytest.fixture
def logits():
    return torch.randn(3, 1, 12, 10, generator=torch.Generator().manual_seed(0)) * 2


def mask_of(kind, lesion):
    return {"empty": torch.zeros_like(lesion), "full": torch.ones_like(lesion), "lesion": lesion}[kind]


# The contract of every loss


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_decreases_towards_the_truth(name, lesion):
    for kind in MASKS:
        truth = 2 * mask_of(kind, lesion) - 1
        losses = [compute(name, scale * truth, (truth + 1) / 2) for scale in (5.0, 1.0, 0.0, -1.0, -5.0)]
        # The hinge loss is 0 beyond a margin of 1.
        assert all(a < b or (name == "lovasz" and a == b == 0) for a, b in pairwise(losses))


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_one_float32_number(name, lesion, logits):
    value = compute(name, logits, lesion)
    assert value.shape == ()
    assert value.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_and_its_gradient_are_finite_for_extreme_logits(name, lesion):
    for kind in MASKS:
        target = mask_of(kind, lesion)
        correct = 1e4 * (2 * target - 1)
        for logits in (torch.full_like(target, 50.0), torch.full_like(target, -1e4), correct, -correct):
            assert compute(name, logits, target).isfinite()
            assert gradient(name, logits, target).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["empty", "full"])
def test_every_image_has_a_gradient_towards_an_empty_or_full_mask(name, kind, lesion):
    target = mask_of(kind, lesion)
    for logit in (2.0, -2.0):
        # Uneven, because the hinge loss has a gradient at the worst pixel alone.
        uneven = logit + torch.linspace(-0.1, 0.1, target.numel()).view_as(target)
        slope = gradient(name, uneven, target).flatten(1).sum(1)
        if name == "lovasz" and (kind == "full") == (logit > 0):
            assert (slope == 0).all()  # correct by more than the margin
        else:
            assert (slope > 0).all() if kind == "empty" else (slope < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_equals_the_finite_difference(name, lesion, logits):
    slope = gradient(name, logits, lesion)
    direction = slope / slope.norm()
    h = 1e-2
    ahead, behind = (compute(name, logits + sign * h * direction, lesion) for sign in (1, -1))
    assert ((ahead - behind) / (2 * h)).item() == pytest.approx(slope.norm().item(), rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_has_the_mean_loss_of_its_images_in_any_order(name, lesion, logits):
    batch = compute(name, logits, lesion)
    single = [compute(name, logits[i : i + 1], lesion[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(batch, torch.stack(single).mean())
    order = [2, 0, 1]
    torch.testing.assert_close(batch, compute(name, logits[order], lesion[order]))


@pytest.mark.parametrize("name", OVER)
def test_over_the_batch_equals_one_image_that_holds_all_images(name, lesion, logits):
    tall = [torch.cat(list(x), dim=1)[None] for x in (logits, lesion)]  # (1, 1, 3 * 12, 10)
    batch = compute(name, logits, lesion, over="batch")
    torch.testing.assert_close(batch, compute(name, *tall))
    assert batch != compute(name, logits, lesion)


def test_every_overlap_loss_has_the_setting_over():
    assert set(OVER) == set(NAMES) - {"bce", "focal"}


def test_predicting_nothing_is_rewarded_over_images_but_not_over_the_batch():
    """Three of four images are empty: predicting nothing is correct on three and misses the only tumour."""
    target = torch.zeros(4, 1, 16, 16)
    target[0] = 1
    nothing = torch.full_like(target, -50.0)
    # Over images: 3 x 0 and 1 - 1 / 257, averaged. Over the batch: 1 - 1 / 257.
    assert compute("dice", nothing, target).item() == pytest.approx((1 - 1 / 257) / 4, abs=1e-6)
    assert compute("dice", nothing, target, over="batch").item() == pytest.approx(1 - 1 / 257, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_summed_in_float32(name):
    """300 x 300 ones sum to more than float16 can represent."""
    for half in (torch.float16, torch.bfloat16):
        logits, target = torch.full((1, 1, 300, 300), 3.0, dtype=half), torch.ones(1, 1, 300, 300)
        target[..., :100] = 0
        value = compute(name, logits, target.to(half))
        assert value.dtype == torch.float32
        assert torch.equal(value, compute(name, logits.float(), target))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_change_a_loss(name, lesion, logits):
    with torch.autocast("cpu", torch.bfloat16):
        inside = compute(name, logits, lesion)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, compute(name, logits, lesion))


# Values by hand

# One image of two pixels: p = 0.8 where the truth is 1 and p = 0.4 where it is 0.
# Hits 0.8, misses 0.2, false alarms 0.4. -ln 0.8 = 0.2231436, -ln 0.6 = 0.5108256.
BY_HAND = [
    ("bce", {}, 0.3669846),  # (0.2231436 + 0.5108256) / 2
    ("bce", {"positive_weight": 3.0}, 0.5901282),  # (3 * 0.2231436 + 0.5108256) / 2
    ("focal", {}, 0.0317653),  # (0.25 * 0.2² * 0.2231436 + 0.75 * 0.4² * 0.5108256) / 2
    ("focal", {"alpha": 0.5, "gamma": 0.0}, 0.1834923),  # half of bce
    ("focal", {"alpha": 0.9, "gamma": 1.0}, 0.0302994),  # (0.9 * 0.2 * 0.2231436 + 0.1 * 0.4 * 0.5108256) / 2
    ("dice", {}, 0.1875),  # 1 - 2.6 / 3.2
    ("dice", {"smooth": 3.0}, 3 / 26),  # 1 - 4.6 / 5.2
    ("jaccard", {}, 0.25),  # 1 - 1.8 / 2.4
    ("tversky", {}, 0.1262136),  # 1 - 1.8 / (0.8 + 0.7 * 0.2 + 0.3 * 0.4 + 1)
    ("tversky", {"fn_weight": 0.2, "smooth": 0.5}, 0.2168675),  # 1 - 1.3 / (0.8 + 0.04 + 0.32 + 0.5)
    ("tversky", {"fn_weight": 0.5, "smooth": 0.5}, 0.1875),  # dice with twice the smooth
    ("focal_tversky", {}, 0.2117531),  # 0.1262136 ** 0.75
    ("focal_tversky", {"focus": 2.0}, 0.0159299),  # 0.1262136 ** 2
    ("bce_dice", {}, 0.2772423),  # (0.3669846 + 0.1875) / 2
    ("bce_dice", {"bce_weight": 0.2}, 0.2233969),  # 0.2 * 0.3669846 + 0.8 * 0.1875
    ("bce_plus_dice", {}, 0.5544846),  # 0.3669846 + 0.1875
    ("ce_dice", {}, 0.2772423),  # of one structure, that of bce_dice
    ("ce_dice", {"ce_weight": 0.2}, 0.2233969),
    # -0.3 ln 0.8 = 0.0669431 and -0.7 ln 0.6 = 0.3575779, their mean 0.2122605; soft Dice 0.8125:
    ("combo", {"alpha": 0.6, "beta": 0.3}, -0.1976437),  # 0.6 * 0.2122605 - 0.4 * 0.8125
    ("combo", {"alpha": 1.0, "beta": 0.5}, 0.1834923),  # half of bce
    ("combo", {"alpha": 0.0}, -0.8125),
    # Logits ln 4 = 1.386 and ln(2/3) = -0.405: hinge errors 0 and 0.5945349. Wrong second pixel alone: J = 1/2.
    ("lovasz", {}, 0.2972674),
]
# The same image and an empty one with p = 0.4 twice: hits 0.8, misses 0.2, false alarms 0.4 + 0.8 = 1.2.
BY_HAND_OVER_TWO = [
    ("dice", {}, 0.35),  # 1 - 2.6 / (2.0 + 1 + 1)
    ("jaccard", {}, 0.4375),  # 1 - 1.8 / (2.0 + 1 - 0.8 + 1)
    ("tversky", {}, 0.2173913),  # 1 - 1.8 / (0.8 + 0.7 * 0.2 + 0.3 * 1.2 + 1)
    ("focal_tversky", {"focus": 2.0}, 0.0472590),  # 0.2173913 ** 2
    # bce: (0.2231436 + 3 * 0.5108256) / 4 = 0.4389051
    ("bce_dice", {}, 0.3944526),  # (0.4389051 + 0.35) / 2
    ("bce_plus_dice", {}, 0.7889051),
    ("ce_dice", {}, 0.3944526),
    ("combo", {"alpha": 0.0}, -0.65),
    # Hinge errors 0 (truth) and three of 0.5945349: in descending order J = 1/2, 2/3, 3/4; 0.5945349 * 3 / 4.
    ("lovasz", {}, 0.4459012),
]


@pytest.mark.parametrize(("name", "settings", "expected"), BY_HAND)
def test_the_loss_of_two_pixels_equals_its_value_by_hand(name, settings, expected):
    logits = torch.logit(torch.tensor([0.8, 0.4], dtype=torch.float64)).float().view(1, 1, 1, 2)
    value = compute(name, logits, torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), **settings)
    assert value.item() == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize(("name", "settings", "expected"), BY_HAND_OVER_TWO)
def test_the_loss_over_two_images_equals_its_value_by_hand(name, settings, expected):
    p = torch.tensor([0.8, 0.4, 0.4, 0.4], dtype=torch.float64)
    target = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(2, 1, 1, 2)
    value = compute(name, torch.logit(p).float().view(2, 1, 1, 2), target, over="batch", **settings)
    assert value.item() == pytest.approx(expected, abs=2e-7)


def test_every_loss_has_a_value_by_hand():
    assert {name for name, _, _ in BY_HAND} >= set(NAMES)
    assert {name for name, _, _ in BY_HAND_OVER_TWO} == set(OVER)


# Several structures

# Two pixels of two exclusive structures: the first is of structure 1, the second is background. Softmax of the
# structures and the background, whose logit is 0: (0.5, 0.25 | 0.25) and (0.2, 0.4 | 0.4), from their quotients.
TWO_LOGITS = torch.log(torch.tensor([[0.5 / 0.25, 0.2 / 0.4], [0.25 / 0.25, 0.4 / 0.4]])).view(1, 2, 1, 2)
TWO_TARGET = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)


@pytest.fixture
def exclusive():
    """Three images of 12 x 10 with two structures that exclude each other; the second lacks one of them."""
    masks = torch.zeros(3, 2, 12, 10)
    masks[0, 0, 2:4, 3:5] = masks[0, 1, 4:9, 3:5] = 1
    masks[1, 1, 1:10, 1:9] = 1
    masks[2, 0, 6, :5] = masks[2, 1, 6, 5:] = 1
    return masks


@pytest.mark.parametrize("name", [name for name in NAMES if "activation" not in registry.loss[name].facts])
def test_the_loss_of_several_structures_is_the_mean_of_each(name, exclusive):
    logits = torch.randn(3, 2, 12, 10, generator=torch.Generator().manual_seed(1))
    loss = registry.loss[name].bind({})
    each = [loss(logits[:, k : k + 1], exclusive[:, k : k + 1]) for k in range(2)]
    torch.testing.assert_close(mean_over_structures(loss)(logits, exclusive), torch.stack(each).mean())
    assert torch.equal(mean_over_structures(loss)(logits[:, :1], exclusive[:, :1]), each[0])


def test_ce_dice_of_two_structures_equals_its_value_by_hand():
    # Cross-entropy (-ln 0.5 - ln 0.4) / 2 = 0.8047190. Dice of structure 1: (2 * 0.5 + 1) / (0.7 + 1 + 1), of
    # structure 2, which is absent: 1 / (0.65 + 0 + 1); 1 - (0.7407407 + 0.6060606) / 2 = 0.3265993.
    assert compute("ce_dice", TWO_LOGITS, TWO_TARGET).item() == pytest.approx(0.5656591, abs=2e-7)
    assert compute("ce_dice", TWO_LOGITS, TWO_TARGET, ce_weight=1.0).item() == pytest.approx(0.8047190, abs=2e-7)
    assert compute("ce_dice", TWO_LOGITS, TWO_TARGET, ce_weight=0.0).item() == pytest.approx(0.3265993, abs=2e-7)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_ce_dice_agrees_with_the_pixel_by_pixel_reference(over, exclusive):
    logits = 2 * torch.randn(3, 2, 12, 10, generator=torch.Generator().manual_seed(1))
    settings = {"ce_weight": 0.3, "smooth": 2.0, "over": over}
    expected = reference.ce_dice(logits.double().numpy(), exclusive.numpy(), **settings)
    assert compute("ce_dice", logits, exclusive, **settings).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_ce_dice_of_one_structure_is_bce_dice(over, lesion, logits):
    found, expected = (compute(name, logits, lesion, over=over) for name in ("ce_dice", "bce_dice"))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_probabilities_of_a_softmax_are_those_of_the_loss():
    probability = ACTIVATIONS["softmax"](TWO_LOGITS)
    assert probability.flatten().tolist() == pytest.approx([0.5, 0.2, 0.25, 0.4])
    torch.testing.assert_close(ACTIVATIONS["softmax"](TWO_LOGITS[:, :1]), TWO_LOGITS[:, :1].sigmoid())


# References


def overlap_reference(logits, target, *, fn_weight, smooth):
    """Compute the Tversky loss pixel by pixel with Python floats."""
    losses = []
    for z_image, t_image in zip(logits.flatten(1).tolist(), target.flatten(1).tolist(), strict=True):
        hits = misses = alarms = 0.0
        for z, t in zip(z_image, t_image, strict=True):
            p = 1 / (1 + np.exp(-z))
            hits, misses, alarms = hits + p * t, misses + (1 - p) * t, alarms + p * (1 - t)
        losses.append(1 - (hits + smooth) / (hits + fn_weight * misses + (1 - fn_weight) * alarms + smooth))
    return np.mean(losses)


def test_tversky_and_dice_agree_with_the_pixel_by_pixel_reference(lesion, logits):
    tversky = compute("tversky", logits, lesion, fn_weight=0.6, smooth=2.0)
    assert tversky.item() == pytest.approx(overlap_reference(logits, lesion, fn_weight=0.6, smooth=2.0), abs=1e-6)
    dice = compute("dice", logits, lesion, smooth=4.0)
    assert dice.item() == pytest.approx(overlap_reference(logits, lesion, fn_weight=0.5, smooth=2.0), abs=1e-6)


def jaccard_loss(wrong, truth):
    """Return the Jaccard loss of a prediction that is wrong at these pixels (Berman et al. 2018, equation 6)."""
    return len(wrong) / len(truth | wrong) if truth | wrong else 0.0


def lovasz_reference(logits, target):
    """Compute the Lovász extension by its definition: descending errors, each times the increase of the loss."""
    losses = []
    for z, t in zip(logits.flatten(1).double().numpy(), target.flatten(1).numpy(), strict=True):
        truth = set(np.flatnonzero(t))
        errors = np.maximum(0, 1 - z * (2 * t - 1))
        order = np.argsort(-errors, kind="stable")
        losses.append(
            sum(
                errors[pixel] * (jaccard_loss(set(order[: i + 1]), truth) - jaccard_loss(set(order[:i]), truth))
                for i, pixel in enumerate(order)
            )
        )
    return np.mean(losses)


@pytest.mark.parametrize("kind", MASKS)
def test_lovasz_agrees_with_its_definition(kind, lesion, logits):
    target = mask_of(kind, lesion)
    assert compute("lovasz", logits, target).item() == pytest.approx(lovasz_reference(logits, target), rel=1e-5)


def test_lovasz_of_binary_predictions_is_twice_the_jaccard_loss(lesion):
    """At logits of +-1 the hinge error is 0 where correct and 2 where wrong."""
    prediction = lesion.roll((1, 1), (2, 3))
    expected = np.mean(
        [
            1 - (p * t).sum().item() / (p + t).clamp(max=1).sum().item()
            for p, t in zip(prediction, lesion, strict=True)
        ]
    )
    assert compute("lovasz", 2 * prediction - 1, lesion).item() == pytest.approx(2 * expected, rel=1e-5)


def test_lovasz_runs_with_deterministic_algorithms_only(lesion, logits):
    torch.use_deterministic_algorithms(True)
    try:
        assert gradient("lovasz", logits, lesion).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_bce_plus_dice_is_twice_bce_dice(lesion, logits):
    torch.testing.assert_close(
        compute("bce_plus_dice", logits, lesion), 2 * compute("bce_dice", logits, lesion, bce_weight=0.5)
    )


def test_the_combo_loss_of_a_perfect_prediction_is_alpha_minus_one(lesion):
    """The paper subtracts Dice."""
    value = compute("combo", 100 * (2 * lesion - 1), lesion, alpha=0.4)
    assert value.item() == pytest.approx(-0.6, abs=1e-6)


def test_fn_weight_decides_which_error_costs_more():
    """A square of 16 pixels, of which half is missed, or which is predicted twice as large."""
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:8, 4:8] = 1
    half, double = target.clone(), target.clone()
    half[..., 4:8, 6:8] = 0
    double[..., 4:8, 8:12] = 1
    for fn_weight, misses_cost_more in ((0.9, True), (0.1, False)):
        missed, extra = (compute("tversky", 20 * (2 * p - 1), target, fn_weight=fn_weight) for p in (half, double))
        assert bool(missed > extra) == misses_cost_more


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bce", {"positive_weight": 0}),
        ("bce", {"positive_weight": float("inf")}),
        ("bce_dice", {"bce_weight": 1.5}),
        ("combo", {"beta": -0.1}),
        ("dice", {"smooth": 0}),
        ("focal", {"gamma": -1}),
        ("focal_tversky", {"focus": 0}),
        ("jaccard", {"smooth": "much"}),
        ("lovasz", {"smooth": 1}),
        ("tversky", {"fn_weight": 1.0}),
    ],
)
def test_a_setting_out_of_range_raises(name, settings):
    with pytest.raises(BadSetting, match=next(iter(settings))):
        registry.loss[name].settings(settings)
