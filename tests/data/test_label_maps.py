"""Several structures from files: label maps, regions, colours, padding, the axis of slices, refusals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from bench import registry
from bench.data.pack import load_or_pack
from bench.data.readers.images import resize_pair
from bench.data.source import BadFile, Source
from bench.errors import BadSetting, BenchError, DataError
from bench.experiments.predict import predict_folder
from bench.inference.fold_models import FoldModels
from bench.models.io import build_model, save_model
from bench.overrides import configure
from bench.structures import Structures, call_structures, split_bits
from tests.fakes import write_volume

SHAPE = (3, 20, 24)  # slices, height, width
RNG = np.random.default_rng(0)
AB = {"anterior": 1, "posterior": 2}


def read_volume(path: Path) -> np.ndarray:
    itk = pytest.importorskip("SimpleITK", reason="pip install 'medseg-bench[volumes]'")
    return itk.GetArrayFromImage(itk.ReadImage(str(path)))


def write_case(folder: Path, case: str, shape: tuple[int, ...] = SHAPE, **options: tuple) -> np.ndarray:
    """Write a volume and its labels 0, 1 and 2, which are returned."""
    labels = RNG.integers(0, 3, shape).astype(np.uint8)
    write_volume(folder / f"imagesTr/{case}.nii.gz", RNG.integers(1, 256, shape).astype(np.int16), **options)
    write_volume(folder / f"labelsTr/{case}.nii.gz", labels, **options)
    return labels


def volumes(folder: Path, **settings: object) -> Source:
    return registry.dataset["volumes"].bind({"folder": folder, "patient": "(.*)", **settings})()


def masks_of(source: Source) -> np.ndarray:
    """All masks of a data set, bool (S, K, H, W)."""
    return split_bits(np.stack([source.read(entry)[1] for entry in source.slices]), len(source.structures))


def describe(folder: Path, labels: dict[str, object], **more: object) -> None:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **more}))


# Label maps of volumes


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        ({"background": 0, "anterior": 1, "posterior": 2}, {}),  # nnU-Net
        ({"0": "background", "1": "Anterior", "2": "Posterior"}, {}),  # the Decathlon
        ({"background": 0, "other": 1}, {"structures": AB}),  # by hand, whatever the file says
        (None, {"structures": {"anterior": [1], "posterior": [2, 9]}}),
    ],
)
def test_labels_are_structures_by_the_names_of_the_file_or_of_the_user(tmp_path, labels, settings):
    truth = write_case(tmp_path, "a")
    if labels:
        describe(tmp_path, labels)
    source = volumes(tmp_path, **settings)
    assert source.structures.names == ("anterior", "posterior")
    assert source.structures.exclusive
    np.testing.assert_array_equal(masks_of(source), np.stack((truth == 1, truth == 2), 1))


@pytest.mark.parametrize("by_hand", [False, True])
def test_regions_that_share_a_value_overlap(tmp_path, by_hand):
    truth, regions = write_case(tmp_path, "a"), {"whole": [1, 2], "core": [2]}
    if not by_hand:
        describe(tmp_path, {"background": 0, **regions}, regions_class_order=[1, 2])
    source = volumes(tmp_path, **({"structures": regions} if by_hand else {}))
    assert (source.structures.names, source.structures.exclusive) == (("whole", "core"), False)
    np.testing.assert_array_equal(masks_of(source), np.stack((truth > 0, truth == 2), 1))


def test_structures_that_share_no_value_may_be_let_overlap(tmp_path):
    write_case(tmp_path, "a")
    assert not volumes(tmp_path, structures=AB, exclusive=False).structures.exclusive


@pytest.mark.parametrize("labels", [{"background": 0, "tumor": 1}, {"0": "background", "1": "tumor"}])
def test_a_single_label_of_the_file_is_every_value_above_0(tmp_path, labels):
    truth = write_case(tmp_path, "a")
    describe(tmp_path, labels)
    source = volumes(tmp_path)
    assert source.structures.names == ("tumor",)
    np.testing.assert_array_equal(masks_of(source)[:, 0], truth > 0)


def test_a_packed_data_set_knows_its_structures_and_other_names_are_another_pack(tmp_path):
    truth = write_case(tmp_path, "a")
    named, renamed = (
        load_or_pack(volumes(tmp_path, structures=names), tmp_path / "cache")
        for names in (AB, {"head": 1, "tail": 2})
    )
    assert named.structures == Structures(("anterior", "posterior"), ((1,), (2,)))
    assert renamed.structures.names == ("head", "tail")
    assert named.manifest.key != renamed.manifest.key
    np.testing.assert_array_equal(named.truth(np.arange(3)), np.stack((truth == 1, truth == 2), 1))
    assert named.index["pixels"].tolist() == (truth > 0).sum((1, 2)).tolist()


def test_a_pack_of_a_single_structure_takes_another_name_without_changing_its_key(tmp_path):
    write_case(tmp_path, "a")
    packs = []
    for name in ("tumour", "lesion"):
        describe(tmp_path, {"background": 0, name: 1})
        packs.append(load_or_pack(volumes(tmp_path), tmp_path / "cache"))
    assert [pack.structures.names for pack in packs] == [("tumour",), ("lesion",)]
    assert packs[0].manifest.key == packs[1].manifest.key


@pytest.mark.parametrize(
    ("labels", "settings", "error", "message"),
    [
        (
            {"background": 0, "liver": 1, "ignore": 2},
            {},
            DataError,
            "dataset.json has the label 'ignore': pixels to leave out of training are not supported. Name",
        ),
        ({"liver": 1, "spleen": 3}, {}, BadFile, "holds the value 2, which dataset.json does not name"),
        ({"liver": 1, "rest": 2, "spleen": 7}, {}, BadSetting, "dataset.json.spleen = 7 occurs in no mask"),
        ({"liver": "left"}, {}, DataError, "dataset.json has the label 'liver': 'left'. Give it a number"),
        ({"liver": [1, "x"]}, {}, DataError, "dataset.json cannot be read"),
        (None, {"structures": {"a": 1, "b": 5}}, BadSetting, "b = 5 occurs in no mask. They hold 0, 1, 2."),
        (None, {"structures": {"a": [1, 2], "b": 2}, "exclusive": True}, BadSetting, "exclusive=true cannot be"),
        (None, {"structures": {"a": 0}}, BadSetting, "structures"),
    ],
)
def test_labels_that_cannot_be_structures_are_refused(tmp_path, labels, settings, error, message):
    write_case(tmp_path, "a")
    if labels:
        describe(tmp_path, labels)
    with pytest.raises(BenchError) as raised:
        masks_of(volumes(tmp_path, **settings))
    assert isinstance(raised.value, error)
    assert message in str(raised.value)


# Sizes and axes


def test_volumes_of_several_sizes_are_padded_to_the_largest_and_know_their_own(tmp_path):
    truths = [write_case(tmp_path, "a", (3, 20, 24)), write_case(tmp_path, "b", (2, 16, 30))]
    source = volumes(tmp_path, structures=AB, window=[0, 255])
    assert source.notes == ("slices of 2 sizes are padded to 20x30 pixels, and scored on their own grid.",)
    pack = load_or_pack(source, tmp_path / "cache")
    assert pack.padded
    assert pack.images.shape == (5, 20, 30, 1)
    for case, truth in zip("ab", truths, strict=True):
        rows, (height, width) = pack.rows([case]), truth.shape[1:]
        own = ..., *pack.own_grid(rows)
        np.testing.assert_array_equal(pack.truth(rows)[own], np.stack((truth == 1, truth == 2), 1))
        np.testing.assert_array_equal(pack.pad(pack.truth(rows)[own]), pack.truth(rows))
        scan = read_volume(tmp_path / f"imagesTr/{case}.nii.gz")
        np.testing.assert_array_equal(pack.images[rows, :height, :width, 0], scan)
        assert not pack.images[rows, height:].any()
        assert not pack.images[rows, :, width:].any()
        assert pack.histograms[rows].sum(2).ravel().tolist() == [height * width] * len(rows)  # without padding
    resized = load_or_pack(volumes(tmp_path, structures=AB, resize=16), tmp_path / "cache")
    assert not resized.padded
    assert resized.images.shape == (5, 16, 16, 1)


@pytest.mark.parametrize(
    ("spacing", "axis", "along"),
    [
        ((0.5, 0.5, 5), None, 2),
        ((5, 0.5, 0.75), None, 0),
        ((0.5, 5, 0.75), None, 1),
        ((1, 1, 1), None, 2),
        ((0.5, 0.5, 5), 0, 0),
    ],
)
def test_slices_are_cut_where_pixels_are_finest_or_along_the_axis_that_is_set(tmp_path, spacing, axis, along):
    truth = write_case(tmp_path, "a", (6, 7, 8), spacing=spacing)
    source = volumes(tmp_path, structures=AB, window=[0, 255], **({} if axis is None else {"axis": axis}))
    assert source.axis == along
    assert any(f"along axis {along} of the files" in note for note in source.notes) == (along != 2)
    cut = np.moveaxis(truth, 2 - along, 0)  # the last axis of an array is the first of the file
    np.testing.assert_array_equal(masks_of(source), np.stack((cut == 1, cut == 2), 1))
    index = load_or_pack(source, tmp_path / "cache").index
    columns, rows = (spacing[other] for other in range(3) if other != along)
    assert set(zip(index["row_mm"], index["column_mm"], strict=True)) == {(rows, columns)}


@pytest.mark.parametrize("exclusive", [True, False])
def test_predicted_structures_are_written_in_the_values_and_on_the_grid_of_the_volume(tmp_path, exclusive):
    write_volume(tmp_path / "scans/a.nii.gz", RNG.integers(0, 256, (6, 20, 24)).astype(np.int16))
    structures = Structures(("a", "b"), ((3,), (1, 2)), exclusive)
    settings = {"dataset": "volumes", "dataset.folder": "here", "dataset.window": [0, 255]}
    params = {"base": 4, "depth": 2}
    config = configure(settings).model_dump(mode="json") | {"model": {"name": "unet", **params}}
    torch.manual_seed(0)
    description = {"config": config, "channels": 1, "channel_names": ["grey"], "threshold": [0.5, 0.5]}
    description |= {"structures": asdict(structures), "activation": "sigmoid", "axis": 0, "fold": 0}
    model = build_model("unet", params, 1, 2)
    save_model(tmp_path / "model", model, description)
    scan = np.moveaxis(read_volume(tmp_path / "scans/a.nii.gz"), 2, 0).astype(np.uint8)[..., None]
    probability = FoldModels([tmp_path / "model"]).probabilities(scan)
    thresholds = tuple(np.quantile(probability, 0.7, axis=(0, 2, 3)).tolist())
    save_model(tmp_path / "model", model, description | {"threshold": list(thresholds)})

    models = FoldModels([tmp_path / "model"])
    assert (models.thresholds, models.structures, models.axis) == (thresholds, structures, 0)
    assert probability.shape == (24, 2, 6, 20)
    np.testing.assert_array_equal(models.predict(scan), probability)
    called = call_structures(probability, thresholds, exclusive=exclusive)
    assert called.any((0, 2, 3)).all()

    predict_folder(
        str(tmp_path / "model"),
        [tmp_path / "scans"],
        tmp_path / "out",
        fold=None,
        threshold=None,
        device="cpu",
        uri=None,
    )
    if exclusive:
        expected = {"a_mask.nii.gz": 3 * called[:, 0] + called[:, 1]}
    else:
        expected = {f"a_{name}_mask.nii.gz": called[:, k] for k, name in enumerate("ab")}
    assert {file.name for file in (tmp_path / "out").glob("*.nii.gz")} == set(expected)
    for name, labels in expected.items():
        np.testing.assert_array_equal(read_volume(tmp_path / "out" / name), np.moveaxis(labels, 0, 2))


def test_a_small_volume_is_predicted_with_the_padding_of_training(tmp_path):
    write_case(tmp_path, "a", (3, 20, 24))
    write_case(tmp_path, "b", (2, 40, 30))
    pack = load_or_pack(volumes(tmp_path, structures=AB, window=[0, 255]), tmp_path / "cache")
    params = {"base": 4, "depth": 2}
    config = configure({"dataset": "volumes", "dataset.folder": "here"}).model_dump(mode="json")
    description = {"config": config | {"model": {"name": "unet", **params}}, "channels": 1, "padded_to": [40, 30]}
    description |= {"channel_names": ["grey"], "threshold": [0.5, 0.5], "structures": asdict(pack.structures)}
    save_model(tmp_path / "model", build_model("unet", params, 1, 2), description)
    models, rows = FoldModels([tmp_path / "model"]), pack.rows(["a"])
    own = ..., *pack.own_grid(rows)
    alone = models.probabilities(pack.images[rows, :20, :24])
    np.testing.assert_array_equal(alone, models.predictor(pack).probabilities(rows)[own])


# Images with masks


def write_pair(folder: Path, mask: np.ndarray) -> None:
    for part, pixels in (("images", np.arange(48, dtype=np.uint8).reshape(6, 8)), ("masks", mask)):
        (folder / part / "P1").mkdir(parents=True)
        stored = pixels[..., ::-1] if pixels.ndim == 3 else pixels
        cv2.imwrite(str(folder / part / "P1/1.png"), np.ascontiguousarray(stored))


def pairs(folder: Path, **settings: object) -> Source:
    return registry.dataset["pairs"].bind({"folder": folder, **settings})()


LEVELS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 4  # 0 to 3


def test_grey_levels_of_a_mask_are_structures(tmp_path):
    write_pair(tmp_path, LEVELS)
    source = pairs(tmp_path, structures={"liver": 1, "kidneys": [2, 3]})
    assert source.structures == Structures(("liver", "kidneys"), ((1,), (2, 3)))
    np.testing.assert_array_equal(masks_of(source)[0], np.stack((LEVELS == 1, LEVELS > 1)))
    overlapping = pairs(tmp_path, structures={"all": [1, 2, 3], "liver": 1})
    assert not overlapping.structures.exclusive
    np.testing.assert_array_equal(masks_of(overlapping)[0], np.stack((LEVELS > 0, LEVELS == 1)))


def test_colours_of_a_mask_are_structures(tmp_path):
    palette = np.uint8([[0, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 0]])
    write_pair(tmp_path, palette[LEVELS])
    source = pairs(tmp_path, colours={"liver": [255, 0, 0], "kidneys": [0, 0, 255]})
    assert source.structures.names == ("liver", "kidneys")
    np.testing.assert_array_equal(masks_of(source)[0], np.stack((LEVELS == 1, LEVELS == 2)))
    with pytest.raises(BadSetting, match=r"colours\.spleen = \[0, 255, 0\] occurs in no mask"):
        masks_of(pairs(tmp_path, colours={"liver": [255, 0, 0], "spleen": [0, 255, 0]}))


def test_structures_and_colours_at_once_are_refused(tmp_path):
    write_pair(tmp_path, LEVELS)
    with pytest.raises(BadSetting, match=r"dataset\.structures and dataset\.colours both name the structures"):
        pairs(tmp_path, structures={"liver": 1}, colours={"liver": [1, 1, 1]})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_a_resized_mask_keeps_its_bits(dtype):
    bits = np.array([[1, 2], [3, np.iinfo(dtype).max]], dtype)
    image = np.zeros((2, 2, 1), np.uint8)
    resized = resize_pair(image, bits, 16)[1]
    assert resized.dtype == dtype
    np.testing.assert_array_equal(resized, np.kron(bits, np.ones((8, 8), dtype)))
