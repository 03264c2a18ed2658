"""LGG and the phantom: which patients are found, how slices are paired, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from bench import registry
from bench.data.audit import audit
from bench.data.datasets.lgg import lgg
from bench.data.datasets.phantom import phantom, write_phantom
from bench.data.pack import load_or_pack
from bench.data.readers.patient_folders import parse_case_name, read_table
from bench.data.source import BadFile, Source
from bench.errors import BadSetting, DataError
from tests import fakes as tiffs
from tests.fakes import write_case

SMALL = {"patients": 4, "size": 32, "slices": 6, "institutions": 2}
DIAGONAL = np.eye(16, dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


def test_masks_are_paired_by_name_and_slices_ordered_by_number(tmp_path):
    write_case(tmp_path, "TCGA_DU_7010_19860307", range(1, 13))
    source = lgg(folder=tmp_path)
    assert [s.number for s in source.slices] == list(range(1, 13))
    for entry in source.slices:
        assert entry.image.name == f"TCGA_DU_7010_19860307_{entry.number}.tif"
        assert entry.mask == entry.image.with_name(f"TCGA_DU_7010_19860307_{entry.number}_mask.tif")
    assert {(s.case, s.institution) for s in source.slices} == {("TCGA_DU_7010", "DU")}


def test_read_returns_the_pixels_and_a_mask_of_zeros_and_ones(tmp_path):
    write_case(tmp_path, "patient7", [3])
    tiffs.write(tmp_path / "patient7" / "patient7_4.tif", tiffs.image_of("x"))
    tiffs.write(tmp_path / "patient7" / "patient7_4_mask.tif", tiffs.mask_of() // 255)
    source = lgg(folder=tmp_path)
    for entry, name in zip(source.slices, ["patient7_3", "x"], strict=True):
        image, mask = source.read(entry)
        np.testing.assert_array_equal(image, tiffs.image_of(name))
        np.testing.assert_array_equal(mask, tiffs.mask_of() > 0)
        assert image.dtype == mask.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TCGA_DU_7010_19860307", ("TCGA_DU_7010", "DU")),
        ("PHANTOM_AA_0001_20000101", ("PHANTOM_AA_0001", "AA")),
        ("my_own_case_01", ("my_own_case_01", "unknown")),
    ],
)
def test_a_case_is_the_first_three_fields_of_a_barcode(name, expected):
    assert parse_case_name(Path("some/where") / name) == expected


def test_a_doubled_tree_is_used_once_with_a_note(tmp_path):
    for case in ("TCGA_CS_4941_19960909", "TCGA_DU_7010_19860307"):
        write_case(tmp_path / "kaggle_3m", case)
    shutil.copytree(tmp_path / "kaggle_3m", tmp_path / "lgg-mri-segmentation" / "kaggle_3m")
    source = lgg(folder=tmp_path)
    assert len(source.slices) == 6
    assert all("lgg-mri-segmentation" not in str(s.image) for s in source.slices)
    assert any("2 patient(s) exist more than once" in n and "lgg-mri-segmentation" in n for n in source.notes)


def test_the_more_complete_of_two_copies_is_used(tmp_path):
    write_case(tmp_path / "a", "TCGA_CS_4941_19960909", [1, 2, 3])
    write_case(tmp_path / "b" / "deeper", "TCGA_CS_4941_19960909", [1, 2, 3, 4])
    assert [s.number for s in lgg(folder=tmp_path).slices] == [1, 2, 3, 4]


def two_of_one_name(root: Path) -> None:
    write_case(root / "a", "patient1")
    for path in write_case(root / "b", "patient1").glob("*[0-9].tif"):
        tiffs.write(path, tiffs.image_of("someone else"))


def two_dates(root: Path) -> None:
    write_case(root, "TCGA_CS_4941_19960909")
    write_case(root, "TCGA_CS_4941_19970909")


def two_of_one_number(root: Path) -> None:
    folder = write_case(root, "patient1")
    for end in ("", "_mask"):
        shutil.copy(folder / f"patient1_2{end}.tif", folder / f"patient1_02{end}.tif")


def among_phantoms(root: Path) -> None:
    write_phantom(root / "p", **SMALL)
    write_case(root, "TCGA_CS_4941_19960909")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.rmdir(), "does not exist"),
        (lambda root: None, "holds no slices"),
        (two_of_one_name, "are both named patient1"),
        (two_dates, "TCGA_CS_4941"),
        (two_of_one_number, r"patient1_02\.tif"),
        (among_phantoms, "TCGA_CS_4941"),
        (lambda root: (write_case(root, "patient1") / "patient1_2.tif").unlink(), r"patient1_2_mask\.tif"),
        (lambda root: (write_case(root, "patient1") / "patient1_2_mask.tif").unlink(), r"patient1_2\.tif"),
    ],
)
def test_a_folder_that_would_be_read_wrongly_is_refused(tmp_path, make, message):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        lgg(folder=tmp_path / "data")


def test_notes_name_gaps_unnumbered_files_lone_institutions_and_table_gaps(tmp_path):
    write_case(tmp_path, "TCGA_CS_4941_19960909", [1, 2, 5])
    write_case(tmp_path, "TCGA_CS_4942_19970222")
    write_case(tmp_path, "TCGA_EZ_7264_20010816")
    tiffs.write(tmp_path / "overview.tif", tiffs.image_of("overview"))
    (tmp_path / "data.csv").write_bytes(
        b"Patient;RNASeqCluster\r\nTCGA_CS_4941;1\r\nTCGA_EZ_7264;\r\nTCGA_XX_0001;2\r\n"
    )
    source = lgg(folder=tmp_path)
    notes = "\n".join(source.notes)
    assert "TCGA_CS_4941 lacks slice(s) 3, 4" in notes
    assert "overview.tif" in notes
    assert "EZ has a single patient, TCGA_EZ_7264" in notes
    assert "1 of 3 patients in data.csv have no images: TCGA_XX_0001" in notes
    assert "1 of 3 patients have no row in data.csv: TCGA_CS_4942" in notes
    assert {s.case for s in source.slices} == {"TCGA_CS_4941", "TCGA_CS_4942", "TCGA_EZ_7264"}


def test_the_table_is_read_with_either_separator(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"Patient,RNASeqCluster,CNCluster\nP1,1,\nP2,,3\n")
    (tmp_path / "b.csv").write_bytes(b"Patient;RNASeqCluster;CNCluster\r\nP1;1;\r\nP2;;3\r\n")
    for name in ("a.csv", "b.csv"):
        table = read_table(tmp_path / name)
        assert table.loc["P1", "RNASeqCluster"] == 1
        assert np.isnan(table.loc["P1", "CNCluster"])
        assert table.loc["P2", "CNCluster"] == 3


@pytest.mark.parametrize(
    ("damage", "target", "code", "message"),
    [
        (tiffs.truncate, "patient1_2.tif", "truncated", "is truncated"),
        (tiffs.sixteen_bits, "patient1_2.tif", "dtype", "uint16"),
        (tiffs.two_pages, "patient1_2.tif", "multi-page", "2 pages"),
        (tiffs.giant, "patient1_2.tif", "giant", "100000x100000"),
        (tiffs.garbage, "patient1_2.tif", "unreadable", "cannot be read"),
        (tiffs.four_channels, "patient1_2.tif", "shape", r"\(16, 16, 4\)"),
        (lambda p: p.write_bytes(p.read_bytes()[:150]), "patient1_2.tif", "unreadable", "cannot be read"),
        (lambda p: tiffs.write(p, tiffs.mask_of()), "patient1_2.tif", "shape", r"\(16, 16\)"),
        (lambda p: tiffs.write(p, tiffs.image_of("m")), "patient1_2_mask.tif", "shape", "is in colour"),
        (lambda p: tiffs.write(p, tiffs.mask_of() // 2), "patient1_2_mask.tif", "mask-values", "0, 127"),
        (lambda p: tiffs.write(p, DIAGONAL + 254), "patient1_2_mask.tif", "mask-values", "254, 255"),
        (lambda p: tiffs.write(p, tiffs.mask_of() | DIAGONAL), "patient1_2_mask.tif", "mask-values", "0, 1, 255"),
        (lambda p: tiffs.write(p, tiffs.mask_of(8)), "patient1_2_mask.tif", "mask-size", "8x8, its image 16x16"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_by_name(tmp_path, damage, target, code, message):
    damage(write_case(tmp_path, "patient1") / target)
    source = lgg(folder=tmp_path)
    with pytest.raises(BadFile, match=message) as caught:
        source.read(source.slices[1])
    assert target in str(caught.value)
    assert caught.value.code == code
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_resize_averages_the_image_and_keeps_the_mask_binary(tmp_path):
    write_case(tmp_path, "patient1", [2], side=32)
    source = lgg(folder=tmp_path, resize=16)
    image, mask = source.read(source.slices[0])
    full = tiffs.image_of("patient1_2", 32).astype(float)
    blocks = full.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(image - blocks).max() <= 1  # rounding
    truth = tiffs.mask_of(32) > 0
    corners = [truth[i::2, j::2] for i in (0, 1) for j in (0, 1)]
    assert ((mask == 1) <= np.any(corners, axis=0)).all()
    assert ((mask == 1) >= np.all(corners, axis=0)).all()
    assert source.variant != lgg(folder=tmp_path).variant
    assert source.variant != lgg(folder=tmp_path, resize=24).variant


def test_a_resize_out_of_range_is_refused(tmp_path):
    with pytest.raises(BadSetting, match="resize"):
        registry.dataset["lgg"].bind({"folder": tmp_path, "resize": 3})
    with pytest.raises(BadSetting, match="needs the setting 'folder'"):
        registry.dataset["lgg"].bind({})


def test_slices_of_different_sizes_can_be_packed_after_a_resize(tmp_path):
    write_case(tmp_path / "data", "patient1")
    write_case(tmp_path / "data", "patient2", side=24)
    with pytest.raises(DataError, match=r"dataset\.resize"):
        load_or_pack(lgg(folder=tmp_path / "data"), tmp_path / "cache")
    pack = load_or_pack(lgg(folder=tmp_path / "data", resize=16), tmp_path / "cache")
    assert pack.images.shape == (6, 16, 16, 3)


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_volumes(source: Source) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    pairs = {}
    for entry in source.slices:
        pairs.setdefault(entry.case, []).append(source.read(entry))
    return {case: (np.stack([i for i, _ in p]), np.stack([m for _, m in p]) > 0) for case, p in pairs.items()}


def test_equal_settings_give_equal_bytes_and_another_seed_does_not(tmp_path):
    first, again = write_phantom(tmp_path / "a", **SMALL), write_phantom(tmp_path / "b", **SMALL)
    assert digest(first) == digest(again)
    other = digest(write_phantom(tmp_path / "c", **SMALL, seed=1))
    assert not set(digest(first).values()) & {d for name, d in other.items() if re.search(r"_[34]\.tif", name)}


def test_a_phantom_is_marked_as_synthetic_wherever_it_is_read(tmp_path):
    folder = write_phantom(tmp_path / "p", **SMALL)
    assert json.loads((folder / "PHANTOM.json").read_text())["patients"] == 4
    source = lgg(folder=folder)
    assert source.synthetic
    assert source.name == "phantom"
    assert "synthetic" in source.licence
    assert source.notes == (
        "institution BB has a single patient, PHANTOM_BB_0004, so folds cannot be stratified by it.",
    )
    case = source.slices[0].image.parent
    shutil.copytree(case, tmp_path / "p2" / case.name)
    assert not lgg(folder=tmp_path / "p2").synthetic  # the marker is missing
    assert lgg(folder=case).synthetic  # the marker is in the parent folder


def test_the_phantom_is_written_once_and_again_if_a_file_is_missing():
    source = phantom(**SMALL)
    assert replace(source, read=lgg) == replace(phantom(**SMALL), read=lgg)
    before = source.slices[0].image.stat().st_mtime_ns
    assert phantom(**SMALL).slices[0].image.stat().st_mtime_ns == before
    source.slices[5].image.unlink()
    assert phantom(**SMALL).slices[5].image.is_file()


def test_the_phantom_of_one_structure_has_the_content_key_that_it_always_had():
    assert load_or_pack(phantom(**SMALL)).manifest.key == "4553f3194cab2e8f"


@pytest.mark.parametrize(
    ("exclusive", "names", "bits"), [(False, ("tumour", "core"), (0, 1, 3)), (True, ("rim", "core"), (0, 1, 2))]
)
def test_the_lesions_of_a_phantom_of_two_structures_have_a_core(tmp_path, exclusive, names, bits):
    pack = load_or_pack(phantom(**SMALL, structures=2, exclusive=exclusive))
    assert (pack.structures.names, pack.structures.exclusive) == (names, exclusive)
    assert tuple(np.unique(pack.masks)) == bits
    lesion = load_or_pack(phantom(**SMALL)).masks
    np.testing.assert_array_equal(pack.masks > 0, lesion)
    core = pack.truth(np.arange(len(lesion)))[:, 1]
    assert all(core[pack.rows([case])].any() for case in pack.cases)
    assert core.sum() < lesion.sum() / 2


def test_a_written_phantom_of_two_structures_is_a_folder_of_label_maps(tmp_path):
    folder = write_phantom(tmp_path / "p", **SMALL, structures=2, exclusive=True)
    stored = {path: tifffile.imread(path) for path in folder.glob("*/*_mask.tif")}
    assert set(np.unique(list(stored.values()))) == {0, 1, 2}
    source = lgg(folder=folder)
    assert source.structures == phantom(**SMALL, structures=2, exclusive=True).structures
    for entry in source.slices:  # bit k is structure k, and label k + 1
        np.testing.assert_array_equal(source.read(entry)[1], stored[entry.mask])
    assert not audit(folder).errors


def test_a_phantom_never_overwrites_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantom(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["thesis.txt"]
    with pytest.raises(BadSetting, match="patients"):
        write_phantom(tmp_path / "new", patients=0)
    with pytest.raises(BadSetting, match="institutions"):
        write_phantom(tmp_path / "new", patients=2, institutions=3)


@pytest.mark.parametrize(
    "settings", [SMALL, {"patients": 6, "size": 48, "slices": 9, "institutions": 3, "seed": 5}]
)
def test_every_phantom_patient_has_a_tumour_and_the_set_has_empty_slices(settings):
    source = phantom(**settings)
    stacks = read_volumes(source)
    assert len(stacks) == settings["patients"]
    assert len({s.institution for s in source.slices}) == settings["institutions"]
    assert all(image.shape[:2] == (settings["slices"], settings["size"]) for image, _ in stacks.values())
    assert all(mask.any() for _, mask in stacks.values())
    assert 0.2 < np.mean([mask.any((1, 2)).mean() for _, mask in stacks.values()]) < 0.8
    substituted = [case[-4:] for case, (image, _) in stacks.items() if (image[..., 2] == image[..., 1]).all()]
    assert substituted == ["0003"]


def test_the_phantom_needs_more_than_a_threshold_on_flair():
    """Thresholds are chosen with the reference masks of the whole set: an upper bound for any threshold."""
    stacks = read_volumes(phantom())

    def standard(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / x.std()

    def best_dice(score) -> float:
        scored = [(standard(score(image.astype(float))), truth) for image, truth in stacks.values()]
        return max(
            np.mean([2 * ((s > t) & m).sum() / ((s > t).sum() + m.sum()) for s, m in scored])
            for t in np.arange(0, 5, 0.25)
        )

    assert best_dice(lambda image: image[..., 1]) < 0.5
    assert best_dice(lambda image: standard(image[..., 1]) - standard(image[..., 0])) > 0.75


def test_institutions_of_the_phantom_are_unequal_and_the_last_has_one_patient():
    cases = {(s.institution, s.case) for s in phantom().slices}
    sizes = {name: sum(i == name for i, _ in cases) for name in ("AA", "BB", "CC", "DD")}
    assert sum(sizes.values()) == 16
    assert sizes["AA"] > sizes["BB"] > sizes["CC"] > sizes["DD"] == 1


def test_the_real_data_is_complete_and_paired(lgg_folder):
    """Compared with a count by glob and by file name."""
    source = lgg(folder=lgg_folder)
    images = {p for p in lgg_folder.rglob("*.tif") if not p.name.endswith("_mask.tif")}
    assert {s.image for s in source.slices} == images
    assert all(str(s.mask) == str(s.image)[:-4] + "_mask.tif" for s in source.slices)
    assert all(re.search(rf"_{s.number}\.tif$", s.image.name) for s in source.slices)
    keys = [(s.case, s.number) for s in source.slices]
    assert keys == sorted(keys)
    assert not source.synthetic
    image, mask = source.read(source.slices[10])
    np.testing.assert_array_equal(image, tifffile.imread(source.slices[10].image))
    assert mask.shape == (256, 256)
    if len({s.case for s in source.slices}) == 88:  # a partial copy; the full set has 110
        assert len(source.slices) == 3093
        assert any("22 of 110 patients in data.csv have no images" in note for note in source.notes)


def test_other_data_is_named_after_its_folder_without_a_licence(tmp_path):
    write_case(tmp_path / "hospital", "patient7")
    other = lgg(folder=tmp_path / "hospital")
    write_case(tmp_path / "kaggle_3m", "TCGA_DU_7010_19860307")
    kaggle = lgg(folder=tmp_path / "kaggle_3m")
    assert (other.name, other.licence) == ("hospital", "not stated")
    assert (kaggle.name, kaggle.licence) == ("lgg", "CC BY-NC-SA 4.0")


@pytest.mark.parametrize(
    ("name", "folders"), [("pairs", ["images", "masks"]), ("volumes", ["imagesTr", "labelsTr"])]
)
def test_a_subfolder_of_the_data_is_answered_with_the_folder_above_it(name, folders, tmp_path):
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=re.escape(f"Give the folder above it, {tmp_path}.")):
        registry.dataset[name].bind({"folder": tmp_path / folders[0]})()
