"""Masks of other tools are read onto the data as they are, and what is wrong with them is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from bench.data.datasets.pairs import pairs
from bench.data.datasets.volumes import volumes
from bench.data.guest_masks import fold_folders, read_guest_masks
from bench.data.nnunet_export import export_nnunet
from bench.data.pack import Pack, load_or_pack
from bench.data.source import Source
from bench.errors import DataError
from bench.outputs import LIST

itk = pytest.importorskip("SimpleITK")
CASES = ("P1", "P2", "P3")
SIZE = (3, 4, 5)  # slices, rows, columns; one row less for P2, so that it is padded


def labels_of(case: str) -> np.ndarray:
    labels = np.zeros((SIZE[0], SIZE[1] - (case == "P2"), SIZE[2]), np.uint8)
    labels[1, 0, : 1 + CASES.index(case)], labels[2, 1:3, 1] = 1, 2
    return labels


def write_volume(path: Path, array: np.ndarray, origin: tuple[float, ...] = (7, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = itk.GetImageFromArray(array)
    image.SetOrigin(origin)
    image.SetSpacing((0.5, 0.5, 3))
    itk.WriteImage(image, str(path))


@pytest.fixture
def data(tmp_path: Path) -> tuple[Source, Pack]:
    """Volumes of two structures."""
    root = tmp_path / "data"
    for case in CASES:
        labels = labels_of(case)
        write_volume(root / "imagesTr" / f"{case}_0000.nii.gz", labels * 20 + np.arange(SIZE[2], dtype=np.uint8))
        write_volume(root / "labelsTr" / f"{case}.nii.gz", labels)
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "rim": 1, "core": 2}}))
    source = volumes(folder=root)
    return source, load_or_pack(source, tmp_path / "cache")


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """Masks that are equal to the labels."""
    folder = tmp_path / "guest"
    for case in CASES:
        write_volume(folder / f"{case}.nii.gz", labels_of(case))
    return folder


def read(folder: Path, data: tuple[Source, Pack], **how: Any) -> dict[str, np.ndarray]:
    return read_guest_masks({folder: frozenset(CASES)}, *data, **how).masks


def test_masks_equal_to_the_labels_are_the_truth(guest, data):
    pack = data[1]
    for case, mask in read(guest, data).items():
        assert np.array_equal(mask, pack.truth(pack.rows([case])))


def test_values_are_those_that_dataset_json_beside_the_masks_names(guest, data):
    for case in CASES:
        write_volume(guest / f"{case}.nii.gz", np.array([0, 7, 3], np.uint8)[labels_of(case)])
    (guest / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "core": 3, "rim": 7}}))
    pack = data[1]
    assert np.array_equal(read(guest, data)["P3"], pack.truth(pack.rows(["P3"])))


def add(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(folder / "P1.nii.gz", folder / name) and None


def replace(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: write_volume(folder / f"{name}.nii.gz", change(labels_of(name)))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda folder: (folder / "P2.nii.gz").unlink(), "has no mask of P2"),
    "extra": (add("P9.nii.gz"), "P9.nii.gz belongs to no patient"),
    "repeated": (add("P1_mask.nii.gz"), "are both masks of P1"),
    "another format": (
        lambda folder: write_volume(folder / "P1.nii", labels_of("P1")),
        "P1.nii.gz and P1.nii are both masks of P1",
    ),
    "resized": (replace("P1", lambda m: m.repeat(2, 2)), "is 3x4x10, but the data are 3x4x5"),
    "padded": (replace("P2", lambda m: np.pad(m, ((0, 0), (0, 1), (0, 0)))), "is 3x4x5, but the data are 3x3x5"),
    "turned": (replace("P1", lambda m: m.transpose(0, 2, 1)), "is 3x5x4, but the data are 3x4x5"),
    "shifted": (
        lambda folder: write_volume(folder / "P1.nii.gz", labels_of("P1"), origin=(8, 0, 0)),
        "states another position, direction or spacing",
    ),
    "unknown value": (replace("P1", lambda m: m * 3), "holds the value 3, which stands for no structure"),
    "probabilities": (
        replace("P1", lambda m: m.astype(np.float32) / 4),
        "holds the values 0.0, 0.25, 0.5. Labels are whole numbers",
    ),
    "damaged": (lambda folder: (folder / "P1.nii.gz").write_bytes(b"no volume"), "P1.nii.gz"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault, guest, data):
    plant, sentence = FAULTS[fault]
    plant(guest)
    with pytest.raises(DataError, match=r"1 problem\(s\) in the masks, so nothing was scored") as caught:
        read(guest, data)
    assert sentence in str(caught.value)


def test_every_fault_is_named_at_once(guest, data):
    for fault in ("missing", "extra", "shifted"):
        FAULTS[fault][0](guest)
    with pytest.raises(DataError, match=r"3 problem\(s\)") as caught:
        read(guest, data)
    assert str(caught.value).count("\n- ") == 3


def test_a_patient_without_any_predicted_pixel_is_named_but_scored(guest, data):
    write_volume(guest / "P2.nii.gz", 0 * labels_of("P2"))
    found = read_guest_masks({guest: frozenset(CASES)}, *data)
    assert (found.empty, found.masks["P2"].any()) == (["P2"], False)


def test_masks_of_two_patients_that_are_equal_are_named(guest, data):
    write_volume(guest / "P1.nii.gz", labels_of("P3"))
    assert read_guest_masks({guest: frozenset(CASES)}, *data).equal == ["P1 and P3"]


@pytest.mark.parametrize("background", [True, False])
def test_probabilities_beside_the_masks_are_read(background, guest, data):
    rng, saved = np.random.default_rng(0), {}
    for case in CASES:
        saved[case] = rng.random((2, *labels_of(case).shape)).astype(np.float32)
        first = [1 - saved[case].sum(0, keepdims=True).clip(0, 1)] if background else []
        np.savez(guest / f"{case}.npz", probabilities=np.concatenate([*first, saved[case]]))
    found = read_guest_masks({guest: frozenset(CASES)}, *data, probabilities=True)
    assert found.probabilities is not None
    assert found.probabilities["P2"].shape == (3, 2, 4, 5)  # padded from three rows to four
    assert np.array_equal(found.probabilities["P2"][:, :, :3], saved["P2"].swapaxes(0, 1))
    assert np.array_equal(found.probabilities["P3"], saved["P3"].swapaxes(0, 1))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "P1.npz holds no array 'probabilities'"),
        ({"softmax": np.zeros((2, *SIZE))}, "P1.npz holds no array 'probabilities'"),
        ({"probabilities": np.zeros((2, 3, 4, 6))}, "P1.npz is 2x3x4x6, but must be 2 or 3x3x4x5"),
        ({"probabilities": np.full((2, *SIZE), 7.0)}, "P1.npz holds values outside of 0 to 1"),
        ({"probabilities": np.full((2, *SIZE), np.nan)}, "P1.npz holds values outside of 0 to 1"),
    ],
)
def test_probabilities_that_cannot_be_used_are_named(content, sentence, guest, data):
    for case in CASES:
        np.savez(guest / f"{case}.npz", probabilities=np.zeros((2, *labels_of(case).shape)))
    (guest / "P1.npz").unlink()
    if content is not None:
        np.savez(guest / "P1.npz", **content)
    with pytest.raises(DataError, match=r"1 problem\(s\)") as caught:
        read(guest, data, probabilities=True)
    assert sentence in str(caught.value)


def test_headers_are_ignored_if_asked(guest, data):
    FAULTS["shifted"][0](guest)
    assert read(guest, data, check_headers=False)["P1"].any()


def test_masks_of_another_fold_are_named(guest, data, tmp_path: Path):
    for number, names in enumerate((["P1"], ["P2", "P3"])):
        own = tmp_path / "folds" / f"fold_{number}" / "validation"
        own.mkdir(parents=True)
        for name in names:
            shutil.copy(guest / f"{name}.nii.gz", own)
    tested = {0: frozenset({"P1", "P2"}), 1: frozenset({"P3"})}
    with pytest.raises(DataError, match=r"P2\.nii\.gz is of P2, whom this fold does not test") as caught:
        read_guest_masks(dict(fold_folders(tmp_path / "folds", tested)), *data)
    assert "has no mask of P2" in str(caught.value)
    with pytest.raises(DataError, match="has no folder fold_2"):
        dict(fold_folders(tmp_path / "folds", tested | {2: frozenset()}))


def test_the_export_for_nnunet_is_the_data_set_again(data, tmp_path: Path):
    source, pack = data
    out = tmp_path / "Dataset501_Two"
    assert export_nnunet(source, pack, out, tick=lambda done, of: None) == 3
    for written in out.rglob(LIST):  # of outputs, which are no inputs
        written.unlink()
    again = volumes(folder=out)
    assert (again.structures.names, again.channels) == (source.structures.names, source.channels)
    copy = load_or_pack(again, tmp_path / "cache")
    assert np.array_equal(copy.masks, pack.masks)
    for case in CASES:
        written = itk.ReadImage(str(out / "labelsTr" / f"{case}.nii.gz"))
        assert (written.GetOrigin(), written.GetSpacing()) == ((7, 0, 0), (0.5, 0.5, 3))
        image = itk.GetArrayFromImage(itk.ReadImage(str(out / "imagesTr" / f"{case}_0000.nii.gz")))
        own = pack.images[pack.rows([case])][..., 0]
        assert np.array_equal(image, own[:, : image.shape[1]])


def slices_on_disk(root: Path) -> tuple[Source, Pack]:
    """Two patients of two slices, an image and a mask each, of one structure."""
    for name in ("A_1", "A_2", "B_1", "B_2"):
        mask = np.zeros((6, 8), np.uint8)
        mask[2, : 1 + "AB".index(name[0]) + int(name[2])] = 255
        for folder, pixels in (("images", mask // 2 + 20), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / folder / f"{name}.tif", pixels)
    source = pairs(folder=root, patient="([AB])_.*")
    return source, load_or_pack(source, root.parent / "cache")


def test_slices_and_patients_may_have_a_file_each(tmp_path: Path):
    source, pack = slices_on_disk(tmp_path / "pairs")
    guest = tmp_path / "guest"
    guest.mkdir()
    truth = {case: pack.truth(pack.rows([case])) for case in "AB"}
    tifffile.imwrite(guest / "A.tif", truth["A"][:, 0].astype(np.uint8) * 255, photometric="minisblack")
    for number in (1, 2):
        tifffile.imwrite(guest / f"B_{number}_mask.tif", truth["B"][number - 1, 0].astype(np.uint8))
    found = read_guest_masks({guest: frozenset("AB")}, source, pack).masks
    assert all(np.array_equal(found[case], truth[case]) for case in "AB")
    shutil.copy(guest / "B_1_mask.tif", guest / "A_1.tif")
    (guest / "B_2_mask.tif").unlink()
    with pytest.raises(DataError, match="has a mask of A as a whole, and masks of its slices") as caught:
        read_guest_masks({guest: frozenset("AB")}, source, pack)
    assert "has no mask of slice 2 of B" in str(caught.value)
