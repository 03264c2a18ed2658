"""The reference of settings: complete, with names that `--set` accepts."""

from __future__ import annotations

import pytest

from bench import registry
from bench.config import RunConfig, flatten
from bench.reference import Setting, component_settings, find_settings, run_settings, suggest_setting


def test_a_setting_has_its_type_range_default_and_meaning():
    meaning = "learning rate, before the schedule changes it"
    assert find_settings("train.lr") == [Setting("train.lr", "float, >= 1e-10, <= 1000.0", 0.001, meaning)]
    (epochs,) = find_settings("train.epochs")
    assert (epochs.default, epochs.meaning) == (
        30,
        "passes over the training slices; 50 by default with lgg, pairs, volumes; 4 by default with phantom",
    )
    (loss,) = find_settings("loss")
    assert (loss.takes, loss.default) == ("a name of `bench list losses`", "bce_dice")


def test_the_settings_of_a_run_are_those_of_its_schema():
    chosen = {"dataset.name", "split.name", "model.name", "loss.name", "train.schedule.name"}
    keys = {key for key, _ in flatten(RunConfig().model_dump())} - {"augment.warp", "augment.intensity"}
    patch = {"input.patch.size", "input.patch.overlap", "input.patch.tumour_share"}
    expected = {key.removesuffix(".name") if key in chosen else key for key in keys} | patch | {"augment"}
    assert {setting.name for setting in run_settings()} == expected
    assert all(setting.meaning for setting in run_settings())


@pytest.mark.parametrize("kind", registry.REGISTRIES.values(), ids=registry.REGISTRIES)
def test_every_setting_of_a_builtin_component_has_a_meaning(kind):
    entries = [kind[name] for name in kind if kind[name].built_in]
    assert [(e.name, s.name) for e in entries for s in component_settings(e) if not s.meaning] == []


@pytest.mark.parametrize(
    ("name", "names", "components"),
    [
        ("unet.base", ["model.base"], ["the model 'unet'"]),
        ("classifier.hidden", ["model.hidden"], ["the model 'classifier'"]),
        ("augment.warp.flip", ["augment.warp.flip"], ["the augmentation 'warp'"]),
        ("clahe.tiles", ["input.preprocess.clahe.tiles"], ["the preprocessing 'clahe'"]),
        ("split.folds", ["split.folds"], ["the split 'leaky_slices', the split 'patients'"]),
        ("input.patch.size", ["input.patch.size"], [""]),
        ("epochs", [], []),
    ],
)
def test_settings_are_found_by_their_dotted_name(name, names, components):
    found = find_settings(name)
    assert [setting.name for setting in found] == names
    assert [setting.of for setting in found] == components


@pytest.mark.parametrize(
    ("typed", "suggestion"),
    [
        ("epochs", " Did you mean 'train.epochs'?"),
        ("epoch", " Did you mean 'train.epochs'?"),
        ("trian.lr", " Did you mean 'train.lr'?"),
        ("base", " Did you mean 'model.base'?"),
        ("batch_size", " Did you mean 'train.batch_size' or 'evaluate.batch_size'?"),
        ("warp.flip", " Did you mean 'augment.warp.flip'?"),
        ("foo", ""),
    ],
)
def test_a_mistyped_setting_is_answered_with_names_that_exist(typed, suggestion):
    assert suggest_setting(typed) == suggestion
