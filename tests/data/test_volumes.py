"""Volumes: cases and channels, grey levels, what is refused, and the position of predicted masks."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bench import registry
from bench.data.audit import audit_source
from bench.data.pack import load_or_pack
from bench.data.readers.itk import find_volumes, group_channels, read_volume
from bench.data.source import Source
from bench.demo.scans import Patients
from bench.errors import BadSetting, BenchError, DataError
from bench.experiments.predict import predict_folder
from bench.inference.fold_models import FoldModels
from bench.models.io import save_model
from bench.outputs import LIST
from bench.overrides import configure

itk = pytest.importorskip("SimpleITK", reason="pip install 'medseg-bench[volumes]'")
SHAPE = (3, 20, 24)  # slices, height, width
RNG = np.random.default_rng(0)


def write(path: Path, array: np.ndarray, *, vectors: bool = False) -> Path:
    """Write a rotated volume away from the origin, with slices thicker than its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = itk.GetImageFromArray(array, isVector=vectors)
    if array.ndim == 3:
        image.SetSpacing((0.5, 0.75, 5))
        image.SetOrigin((10, -20, 30))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    itk.WriteImage(image, str(path), True)
    return path


def scan(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.int16)


def truth(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return RNG.integers(0, 3, shape).astype(np.uint8)


def load_source(folder: Path, **settings: object) -> Source:
    return registry.dataset["volumes"].bind({"folder": folder, **settings})()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two cases of two channels in the layout of nnU-Net."""
    for case in ("a", "b"):
        for channel in range(2):
            write(tmp_path / f"imagesTr/{case}_{channel:04d}.nii.gz", scan())
        write(tmp_path / f"labelsTr/{case}.nii.gz", truth())
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}))
    return tmp_path


def array(path: Path) -> np.ndarray:
    return itk.GetArrayFromImage(itk.ReadImage(str(path)))


# Cases, channels and pixels


def test_channels_are_files_and_slices_follow_the_last_axis(two):
    source = load_source(two, window=[0, 255])
    assert [(s.case, s.number) for s in source.slices] == [(case, n) for case in "ab" for n in (1, 2, 3)]
    assert source.channels == ("t1", "flair")
    for entry in source.slices:
        image, mask = source.read(entry)
        for channel in range(2):
            file = two / f"imagesTr/{entry.case}_{channel:04d}.nii.gz"
            np.testing.assert_array_equal(image[..., channel], array(file)[entry.number - 1])
        np.testing.assert_array_equal(mask, array(two / f"labelsTr/{entry.case}.nii.gz")[entry.number - 1] > 0)
        assert image.dtype == mask.dtype == np.uint8


def test_channels_may_be_a_fourth_axis_and_a_case_may_be_named_like_a_channel(tmp_path):
    both = scan((2, *SHAPE))
    write(tmp_path / "imagesTr/scan_0007.nii.gz", both)
    (tmp_path / "labelsTr").mkdir()
    itk.WriteImage(itk.GetImageFromArray(truth()), str(tmp_path / "labelsTr/scan_0007.nii.gz"))
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w"}}))
    source = load_source(tmp_path, window=[0, 255], patient="(.*)")
    assert source.notes == ()  # the position of four axes is that of the first three
    assert {s.case for s in source.slices} == {"scan_0007"}
    assert source.channels == ("flair", "t1w")
    np.testing.assert_array_equal(source.read(source.slices[1])[0], np.moveaxis(both[:, 1], 0, -1))


@pytest.mark.parametrize("suffix", [".nii", ".mha"])
def test_other_formats_and_folders_are_read(tmp_path, suffix):
    pixels = scan()
    write(tmp_path / f"scans/a{suffix}", pixels)
    write(tmp_path / "truth/a.nii.gz", truth())
    source = load_source(tmp_path, images="scans", labels="truth", window=[0, 255])
    assert source.channels == ("grey",)
    np.testing.assert_array_equal(source.read(source.slices[2])[0][..., 0], pixels[2])


def test_channels_without_distinct_names_are_numbered(two):
    (two / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR", "1": "MR"}}))
    assert load_source(two).channels == ("channel0", "channel1")


def test_grey_levels_span_the_percentiles_of_each_volume(tmp_path):
    """Of 0 to 1000, 5 and 995 are the 0.5 and the 99.5 percentile."""
    levels = RNG.permutation(1001).reshape(7, 11, 13)
    file = write(tmp_path / "a.nii.gz", (levels - 300).astype(np.float32))
    expected = np.round((levels.clip(5, 995) - 5) / 990 * 255)
    assert np.abs(read_volume([file])[..., 0] - expected).max() <= 1  # where float32 rounds the other way
    assert (read_volume([file])[..., 0] == expected).mean() > 0.99


def test_a_window_maps_two_levels_to_black_and_white(tmp_path):
    file = write(tmp_path / "a.nii.gz", np.array([-1000, -160, 0, 240, 3000], np.int16).reshape(1, 1, 5))
    assert read_volume([file], (-160, 240))[0, 0, :, 0].tolist() == [0, 0, 102, 255, 255]


def test_a_blank_channel_is_black(tmp_path):
    assert not read_volume([write(tmp_path / "a.nii.gz", np.full(SHAPE, 700, np.int16))]).any()


def test_the_foreground_is_one_label_or_all(two):
    values = array(two / "labelsTr/a.nii.gz")
    for label, expected in ((None, values > 0), (1, values == 1), (2, values == 2)):
        source = load_source(two, label=label)
        np.testing.assert_array_equal(np.stack([source.read(s)[1] for s in source.slices[:3]]), expected)


def test_volumes_of_one_patient_are_combined(tmp_path):
    arrays = {}
    for case in ("p1_t0", "p1_t1", "p2_t0"):
        arrays[case] = scan()
        write(tmp_path / f"imagesTr/{case}.nii.gz", arrays[case])
        write(tmp_path / f"labelsTr/{case}.nii.gz", truth())
    source = load_source(tmp_path, patient="(p[0-9])_.*", window=[0, 255])
    assert [(s.case, s.number) for s in source.slices] == [("p1", n) for n in range(1, 7)] + [
        ("p2", n) for n in (1, 2, 3)
    ]
    read = np.stack([source.read(s)[0][..., 0] for s in source.slices])
    np.testing.assert_array_equal(read, np.concatenate(list(arrays.values())))
    assert source.notes == ()  # the patient is known, and all headers agree
    assert "each volume is treated as one patient" in load_source(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("part", "value", "noted"),
    [
        ("Origin", (10.0, -20.0, 30.004), False),
        ("Origin", (10.0, -20.0, 30.1), True),
        ("Spacing", (0.5, 0.75, 4.0), True),
        ("Direction", (0, 1, 0, 1, 0, 0, 0, 0, 1), True),
    ],
)
def test_a_label_at_another_position_is_noted(two, part, value, noted):
    file = two / "labelsTr/b.nii.gz"
    moved = itk.ReadImage(str(file))
    getattr(moved, f"Set{part}")(value)
    itk.WriteImage(moved, str(file))
    notes = load_source(two, patient="(.*)").notes
    assert bool(notes) == noted
    assert all("the headers of 1 label(s) differ in position from their volumes: b;" in note for note in notes)


def test_slices_are_resized_on_request(two):
    image, mask = (lambda source: source.read(source.slices[0]))(load_source(two, resize=16))
    assert image.shape == (16, 16, 2)
    assert mask.shape == (16, 16)


@pytest.mark.parametrize("name", ["imagesTr/a_0001.nii.gz", "labelsTr/b.nii.gz"])
def test_a_changed_file_is_packed_again(two, tmp_path, name):
    first = load_or_pack(load_source(two), tmp_path / "cache")
    assert load_or_pack(load_source(two), tmp_path / "cache").manifest.key == first.manifest.key
    write(two / name, 200 - array(two / name))
    os.utime(two / name, ns=(1, 1))
    assert load_or_pack(load_source(two), tmp_path / "cache").manifest.key != first.manifest.key


# What is refused


def damage(folder: Path, what: str) -> dict[str, object]:
    """Damage two cases of two channels. Return settings to read them with."""
    image, label = folder / "imagesTr/b_0001.nii.gz", folder / "labelsTr/b.nii.gz"
    match what:
        case "no folder":
            return {"labels": "labels"}
        case "no volumes":
            (folder / "empty").mkdir()
            return {"images": "empty"}
        case "empty window":
            return {"window": [5, 5]}
        case "no label":
            label.unlink()
        case "no image":
            image.unlink()
            image.with_name("b_0000.nii.gz").unlink()
        case "a channel":
            image.with_name("b_0000.nii.gz").unlink()
        case "fewer channels":
            image.unlink()
        case "twice":
            write(folder / "labelsTr/b.nrrd", truth())
        case "names":
            (folder / "dataset.json").write_text("[1")
        case "pattern":
            return {"patient": "(a)"}
        case "flat":
            write(image.with_name("b_0000.nii.gz"), scan(SHAPE[1:]))
        case "vectors":
            write(image.with_name("b_0000.nii.gz"), scan((*SHAPE, 3)), vectors=True)
        case "garbage":
            image.with_name("b_0000.nii.gz").write_bytes(b"no volume")
        case "later":
            image.write_bytes(b"no volume")
        case "numbers":
            image.unlink()  # NIfTI is read with 0 in their place
            write(image.with_name("b_0001.nrrd"), np.full(SHAPE, np.nan, np.float32))
        case "channel grid":
            write(image, scan((3, 20, 20)))
        case "label grid":
            write(label, truth((4, 20, 24)))
    return {}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "has no folder 'labels'. Set dataset.images and dataset.labels to the two folders"),
        ("no volumes", "empty holds no volumes. They end in .nii.gz"),
        ("empty window", "dataset.window = [5.0, 5.0] is empty. Give two levels, the lower one first"),
        ("no label", "1 volume(s) have no label: b. Fix or remove them"),
        ("no image", "1 label(s) have no volume: b"),
        ("a channel", "b lacks a channel: it has b_0001.nii.gz"),
        ("fewer channels", "b has 1 channel(s), but a has 2. Save all volumes alike"),
        ("twice", "have the same name. Keep one of them"),
        ("names", "dataset.json is not JSON"),
        ("pattern", "dataset.patient = '(a)' finds no patient in"),
        ("flat", "b_0000.nii.gz has the size (24, 20). It must have three axes"),
        ("vectors", "b_0000.nii.gz holds vectors. Save one file per channel"),
        ("garbage", "b_0000.nii.gz cannot be read (Unable to determine ImageIO reader"),
        ("later", "b_0001.nii.gz cannot be read"),
        ("numbers", "b_0001.nrrd holds values that are not finite"),
        (
            "channel grid",
            "b_0001.nii.gz is 3x20x20, another channel 3x20x24. Save all channels with the same size",
        ),
        ("label grid", "b.nii.gz is 4x20x24, its image 3x20x24. Save both with the same size"),
    ],
)
def test_unusable_volumes_raise_a_helpful_error(two, what, message):
    settings = damage(two, what)
    with pytest.raises(BenchError, match=re.escape(message)):
        (lambda source: [source.read(entry) for entry in source.slices])(load_source(two, **settings))


def test_without_simpleitk_the_error_says_how_to_install_it(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(BadSetting, match=r"pip install 'medseg-bench\[volumes\]'"):
        load_source(two)


def test_an_audit_names_slices_of_volumes_and_a_broken_volume_once(two):
    shared = array(two / "imagesTr/a_0000.nii.gz")[1], array(two / "imagesTr/a_0001.nii.gz")[1]
    write(two / "imagesTr/c_0000.nii.gz", np.stack([scan(SHAPE[1:]), shared[0], np.full(SHAPE[1:], 9, np.int16)]))
    write(two / "imagesTr/c_0001.nii.gz", np.stack([scan(SHAPE[1:]), shared[1], np.full(SHAPE[1:], 9, np.int16)]))
    write(two / "labelsTr/c.nii.gz", truth())
    damage(two, "later")
    result = audit_source(load_source(two, window=[0, 255]))
    assert [(finding.code, finding.where[0]) for finding in result.errors] == [
        ("unreadable", str(two / "imagesTr/b_0001.nii.gz")),
        ("shared-slice", "a"),
    ]
    assert result.errors[1].where[2:] == tuple(f"{two / f'imagesTr/{case}_0000.nii.gz'}#2" for case in "ac")
    blank = [finding.where for finding in result.warnings if finding.code == "blank-channel"]
    assert blank == [("c", f"{two / 'imagesTr/c_0000.nii.gz'}#3")] * 2


# Prediction


def save(folder: Path, name: str, channels: tuple[str, ...], **params: object) -> Path:
    config = configure({"dataset": "volumes", "dataset.folder": "here", "dataset.window": [0, 255]})
    own = config.model_dump(mode="json") | {"model": {"name": name, **params}}
    torch.manual_seed(0)
    model: nn.Module = registry.model[name].bind(params)(len(channels))
    save_model(
        folder,
        model,
        {"config": own, "channels": len(channels), "channel_names": channels, "threshold": 0.5, "fold": 0},
    )
    return folder


def predict(model: Path, path: Path, out: Path, threshold: float = 0.5) -> None:
    predict_folder(str(model), path, out, fold=None, threshold=threshold, device="cpu", uri=None)


def test_a_predicted_mask_has_the_position_of_its_volume(two, tmp_path):
    model = save(tmp_path / "model", "unet", ("t1", "flair"), base=4, depth=2)

    def probability(case: str) -> np.ndarray:
        files = [array(two / f"imagesTr/{case}_{channel:04d}.nii.gz") for channel in range(2)]
        return FoldModels([model]).predict(np.stack(files, -1).astype(np.uint8))

    threshold = float(np.median(probability("a")))
    predict(model, two / "imagesTr", tmp_path / "out", threshold)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {LIST} | {
        f"{case}_{what}" for case in "ab" for what in ("mask.nii.gz", "overlay.png")
    }
    assert find_volumes(tmp_path / "out") == {}
    for case in "ab":
        written, like = (
            itk.ReadImage(str(f))
            for f in (tmp_path / f"out/{case}_mask.nii.gz", two / f"imagesTr/{case}_0000.nii.gz")
        )
        for part in ("Spacing", "Origin", "Direction", "Size"):
            np.testing.assert_allclose(getattr(written, f"Get{part}")(), getattr(like, f"Get{part}")(), atol=1e-6)
        expected = probability(case) >= threshold
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(itk.GetArrayFromImage(written), expected)


def test_the_mask_of_a_volume_with_four_axes_has_three(tmp_path):
    model = save(tmp_path / "model", "unet", ("t1", "flair"), base=4, depth=2)
    file = write(tmp_path / "a.b.nii.gz", scan((2, *SHAPE)))
    predict(model, file, tmp_path / "out")
    assert itk.ReadImage(str(tmp_path / "out/a.b_mask.nii.gz")).GetSize() == SHAPE[::-1]


@pytest.mark.slow
def test_a_presence_model_names_slices_by_their_number(two, tmp_path):
    predict(save(tmp_path / "model", "classifier", ("t1", "flair")), two / "imagesTr", tmp_path / "out")
    called = pd.read_csv(tmp_path / "out/presence.csv")
    assert called["image"].tolist() == [f"{case}#{n}" for case in "ab" for n in (1, 2, 3)]


def test_a_volume_with_other_channels_is_refused_and_nothing_is_written(two, tmp_path):
    model = save(tmp_path / "model", "unet", ("grey",), base=4, depth=2)
    with pytest.raises(DataError, match=r"a has 2 channel\(s\); the model was trained on 1"):
        predict(model, two / "imagesTr", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_demo_names_every_slice_of_a_volume(two, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    shown = Patients(load_source(two)).scan("a")
    assert shown.names == ("a_0000_1", "a_0000_2", "a_0000_3")
    assert shown.truth.shape == SHAPE


def test_a_year_is_not_a_channel(tmp_path):
    names = {name: tmp_path / f"{name}.nii.gz" for name in ("scan_2021", "b_0001", "b_0000")}
    assert group_channels(names) == {"b": (names["b_0000"], names["b_0001"]), "scan_2021": (names["scan_2021"],)}


def test_hidden_and_other_files_are_not_volumes(tmp_path):
    for name in (".a.nii.gz", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_volumes(tmp_path) == find_volumes(tmp_path / "nowhere") == {}
