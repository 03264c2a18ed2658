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
from bench.data.audit import audit_dataset, audit_source
from bench.data.pack import load_or_pack
from bench.data.readers.itk import (
    find_volumes,
    group_channels,
    read_array,
    read_grid,
    read_volume,
)
from bench.data.source import BadFile, Source
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
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w"}, "licence": "CC0"}))
    source = load_source(tmp_path, window=[0, 255], patient="(.*)")
    assert source.licence == "CC0"
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


@pytest.mark.parametrize("ringing", [0, 1e-6])
def test_the_foreground_is_one_label_or_all(two, ringing):
    values = array(two / "labelsTr/a.nii.gz")
    write(two / "labelsTr/a.nii.gz", values + np.float32(ringing) if ringing else values)
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
        ("no label", "b_0000.nii.gz has no label of its name. Fix or remove it"),
        ("no image", "b.nii.gz has no volume of its name"),
        ("a channel", "b lacks a channel: it has b_0001.nii.gz"),
        ("fewer channels", "b_0000.nii.gz has 1 channel(s), but a has 2. Save all volumes alike"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda label: label + 0.4 * (label == 1), "b.nii.gz holds the values 0.0, 1.4, 2.0"),
        (lambda label: np.where(label == 1, np.nan, label), "b.nii.gz holds values that are not finite"),
        (lambda label: label - 1.0, "b.nii.gz holds the values -1.0, 0.0, 1.0. Labels are whole numbers from 0"),
        (lambda label: label / 255, "b.nii.gz holds the values 0.0, 0.003921"),
        (
            lambda label: np.arange(label.size).reshape(label.shape) % 300,
            "b.nii.gz holds the values 0, 1, 2, 3, 4, ...",
        ),
    ],
)
def test_labels_that_are_no_labels_are_refused_with_their_values(two, change, message):
    changed = change(array(two / "labelsTr/b.nii.gz"))
    write(two / "labelsTr/b.nii.gz", changed.astype(np.float32 if changed.dtype.kind == "f" else np.int16))
    source = load_source(two)
    with pytest.raises(BadFile, match=re.escape(message)):
        source.read(source.slices[3])


def test_a_label_that_occurs_nowhere_is_an_error_that_names_the_others(two, tmp_path):
    write(
        two / "labelsTr/a.nii.gz", array(two / "labelsTr/a.nii.gz") // 2
    )  # 0 and 1: not all volumes need all labels
    assert load_or_pack(load_source(two, label=2), tmp_path / "cache").masks.any()
    with pytest.raises(BadSetting, match=r"dataset\.label = 3 occurs in no mask\. They hold 0, 1, 2\."):
        load_or_pack(load_source(two, label=3), tmp_path / "cache")


def flip_a_bit(content: bytearray) -> None:
    content[len(content) * 3 // 4] ^= 64


def cut(content: bytearray) -> None:
    del content[-100:]


def claim_too_much(content: bytearray) -> None:
    content[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()  # dim[1] to dim[3] of NIfTI


def shear(content: bytearray) -> None:
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code, sform_code
    content[280:328] = np.array([1, 0.3, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "<f4").tobytes()  # the rows of sform


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        *(
            (suffix, cut, "is truncated|is damaged|cannot be read")
            for suffix in (".nii", ".nii.gz", ".nrrd", ".mha")
        ),
        (".nii.gz", flip_a_bit, "is damaged|cannot be read"),
        (".nii", claim_too_much, r"claims 2000x2000x2000 pixels; at most .* 1,073,741,824 a volume"),
        (".nii", shear, r"orthonormal.*Resample it to a grid without shear"),
    ],
)
def test_damaged_volumes_are_refused_with_the_way_out(suffix, damage, message, tmp_path):
    file = write(tmp_path / f"a{suffix}", scan())
    read_array(file)
    content = bytearray(file.read_bytes())
    damage(content)
    file.write_bytes(content)
    with pytest.raises(BadFile, match=message):
        read_array(file)
    if damage in (claim_too_much, shear):  # known from the header
        with pytest.raises(BadFile, match=message):
            read_grid((file,))


def test_other_layouts_of_volumes_are_refused_with_the_way_out(two, tmp_path):
    write(tmp_path / "brats/P1/P1_flair.nii.gz", scan())
    with pytest.raises(
        DataError, match=r"1 folder\(s\) of volumes, such as P1\. Copy or link .*labelsTr/<patient>"
    ):
        load_source(tmp_path / "brats")
    write(two / "imagesTr/c.mhd", scan())
    with pytest.raises(
        DataError, match=r"c\.mhd keeps its pixels in a second file\. Save it as \.nii\.gz or \.mha"
    ):
        load_source(two)


def test_names_of_channels_may_begin_with_a_byte_order_mark(two):
    file = two / "dataset.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load_source(two).channels == ("t1", "flair")


def test_a_table_groups_volumes_by_patient(two):
    (two / "patients.csv").write_text("image,patient\na.nii.gz,P1\nb.nii.gz,P1\n")
    source = load_source(two, patients="patients.csv")
    assert {entry.case for entry in source.slices} == {"P1"}
    assert source.notes == ()


def test_an_audit_names_every_unusable_volume_and_checks_the_others(two):
    write(two / "imagesTr/c_0000.nii.gz", scan())
    write(two / "imagesTr/d_0001.nii.gz", scan())
    write(two / "labelsTr/e.nii.gz", truth())
    damage(two, "garbage")
    result = audit_dataset(lambda: load_source(two))
    assert sorted(finding.code for finding in result.errors) == [
        "orphan-image",
        "orphan-mask",
        "refused",
        "unreadable",
    ]
    assert result.facts["patients"] == 1


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
    predict_folder(str(model), [path], out, fold=None, threshold=threshold, device="cpu", uri=None)


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


def test_masks_are_not_predicted_as_scans(two, tmp_path):
    model = save(tmp_path / "model", "unet", ("grey",), base=4, depth=2)
    write(tmp_path / "mixed/a.nii.gz", scan())
    write(tmp_path / "mixed/a_seg.nii.gz", truth())
    predict(model, tmp_path / "mixed", tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").glob("[!.]*")} == {"a_mask.nii.gz", "a_overlay.png"}
    write(tmp_path / "mixed/b.nii.gz", truth() // 2)
    with pytest.raises(DataError, match=r"b#1, b#2, b#3 hold two grey levels only, like masks"):
        predict(model, tmp_path / "mixed/b.nii.gz", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_demo_names_every_slice_of_a_volume(two, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    shown = Patients(load_source(two)).scan("a")
    assert shown.names == ("a_0000_1", "a_0000_2", "a_0000_3")
    assert shown.truth.shape == (SHAPE[0], 1, *SHAPE[1:])


def test_a_year_is_not_a_channel(tmp_path):
    names = {name: tmp_path / f"{name}.nii.gz" for name in ("scan_2021", "b_0001", "b_0000")}
    assert group_channels(names) == {"b": (names["b_0000"], names["b_0001"]), "scan_2021": (names["scan_2021"],)}


def test_hidden_and_other_files_are_not_volumes(tmp_path):
    for name in (".a.nii.gz", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_volumes(tmp_path) == find_volumes(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({}, True), ({"structures": {"rim": 1, "core": 2}}, False), ({"label": 1}, False)],
)
def test_an_audit_says_that_unnamed_labels_count_as_one_structure(two, settings, warned):
    findings = [
        f.message for f in audit_source(load_source(two, **settings)).warnings if f.code == "several-labels"
    ]
    message = (
        "the masks hold the labels 1, 2, which count as one structure, tumour. To score each, name them: "
        "--set 'dataset.structures={name1: 1, name2: 2}'."
    )
    assert findings == [message] * warned
