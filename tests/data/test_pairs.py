"""Images with masks: patients, pairing, pixels, what is refused, and training on them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.data.audit import audit_source
from bench.data.pack import load_or_pack
from bench.data.readers.images import group_by_patient, read_mask, read_pixels, read_slice
from bench.data.source import Source
from bench.errors import BadSetting, BenchError, DataError
from bench.experiments.evaluate import evaluate_external
from bench.inference.fold_models import FoldModels
from bench.models.io import load_model, save_model
from bench.overrides import configure, parse_assignment
from bench.tracking import connect, read_table
from bench.training.cross_validation import cross_validate
from bench.training.experiment import resolve, source_of
from tests.fakes import MemoryRecorder

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack((GREY, GREY + 50, GREY + 100), -1)  # red, green, blue
MASK = np.uint8(GREY % 3 == 0)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels)
    return path


def load_source(folder: Path, **settings: object) -> Source:
    return registry.dataset["pairs"].bind({"folder": folder, **settings})()


def table(source: Source) -> list[tuple[str, int, str, str]]:
    return [(s.case, s.number, s.image.name, s.mask.name if s.mask else "") for s in source.slices]


# Patients and pairing


def test_a_folder_of_images_is_a_patient_and_masks_match_by_name(tmp_path):
    for name in ("b/s_10", "b/s_9", "a/x/s_1"):
        write(tmp_path / "images" / f"{name}.png", GREY)
    write(tmp_path / "masks/b/s_10_mask.png", MASK * 255)
    write(tmp_path / "masks/b/s_9.tif", MASK)
    write(tmp_path / "masks/a/x/s_1_Segmentation.png", MASK * 255)
    source = load_source(tmp_path)
    assert table(source) == [
        ("a/x", 1, "s_1.png", "s_1_Segmentation.png"),
        ("b", 9, "s_9.png", "s_9.tif"),
        ("b", 10, "s_10.png", "s_10_mask.png"),
    ]
    assert (source.name, source.channels, source.licence) == (tmp_path.name, ("grey",), "not stated")


def test_masks_may_be_beside_their_images(tmp_path):
    for name, pixels in (("a/s_1", GREY), ("a/s_1_mask", MASK), ("b/s_mask_2", GREY), ("b/s_mask_2_mask", MASK)):
        write(tmp_path / f"{name}.png", pixels)
    assert table(load_source(tmp_path, images=".", masks=".")) == [
        ("a", 1, "s_1.png", "s_1_mask.png"),
        ("b", 2, "s_mask_2.png", "s_mask_2_mask.png"),
    ]


def flat(folder: Path, *names: str) -> Path:
    for name in names:
        write(folder / "scans" / f"{name}.png", GREY)
        write(folder / "truth" / f"{name}.png", MASK)
    return folder


FLAT = {"images": "scans", "masks": "truth"}


def test_a_pattern_determines_the_patient(tmp_path):
    folder = flat(tmp_path, "P1_02", "P2_01", "P1_01")
    grouped = load_source(folder, **FLAT, patient=r"(P\d+)_.*")
    assert [row[:2] for row in table(grouped)] == [("P1", 1), ("P1", 2), ("P2", 1)]
    alone = load_source(folder, **FLAT, patient="(.*)")
    assert [row[:2] for row in table(alone)] == [("P1_01", 1), ("P1_02", 2), ("P2_01", 1)]


@pytest.mark.parametrize("part", ["train", "Val"])
def test_folders_named_like_parts_of_a_split_are_not_patients(tmp_path, part):
    for name in (f"{part}/P1_01.png", f"{part}/P2_01.png"):
        write(tmp_path / "images" / name, GREY)
        write(tmp_path / "masks" / name, MASK)
    with pytest.raises(DataError, match=f"{part} is named like a part of a split.*dataset.patient="):
        load_source(tmp_path)
    assert {case for case, *_ in table(load_source(tmp_path, patient=".*/(P[0-9]+)_.*"))} == {"P1", "P2"}


def test_slices_are_counted_if_their_numbers_repeat(tmp_path):
    folder = flat(tmp_path, "P1_left", "P1_right", "P1_above")
    rows = table(load_source(folder, **FLAT, patient="(P1)_.*"))
    assert rows == [("P1", n, f"P1_{s}.png", f"P1_{s}.png") for n, s in enumerate(("above", "left", "right"), 1)]


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        (None, DataError, r"outside any patient's folder, such as P1_01\. .*--set 'dataset\.patient=\(P"),
        ("P1_(.*)", DataError, "finds no patient in .*P2_01"),
        (r"(\d*)P.*", DataError, "finds no patient in"),
        ("P.*", BadSetting, "'P.*' is not valid: no such group.* with a group that matches the patient"),
        ("(P", BadSetting, "is not valid: "),
    ],
)
def test_a_patient_is_never_guessed(pattern, error, message, tmp_path):
    with pytest.raises(error, match=message):
        load_source(flat(tmp_path, "P1_01", "P2_01"), **FLAT, patient=pattern)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (None, None, "has no folder 'images'.*Set dataset.images and dataset.masks"),
        ("images/a/readme.txt", "masks/a/1.png", r"holds no images\. They end in \.tif"),
        ("images/a/1.png", "masks/a/2.png", r"images/a/1\.png has no mask of its name.* names 1 more"),
        ("images/a/1_mask.png", "masks/a/1.png", r"images/a/1_mask\.png has no mask of its name"),
    ],
)
def test_missing_folders_images_and_masks_raise_helpful_errors(image, mask, message, tmp_path):
    if image:
        write(tmp_path / "masks/a/1.png", MASK)
        (tmp_path / image).parent.mkdir(parents=True)
        (tmp_path / image).write_bytes((tmp_path / "masks/a/1.png").read_bytes())
        if mask != "masks/a/1.png":
            (tmp_path / "masks/a/1.png").rename(tmp_path / mask)
    with pytest.raises(DataError, match=message):
        load_source(tmp_path)


def test_two_files_of_one_name_and_orphan_masks_are_refused(tmp_path):
    write(tmp_path / "images/a/1.png", GREY)
    write(tmp_path / "masks/a/1.png", MASK)
    write(tmp_path / "masks/a/2.png", MASK)
    with pytest.raises(DataError, match=r"a/2\.png has no image of its name"):
        load_source(tmp_path)
    write(tmp_path / "masks/a/1_mask.png", MASK)
    with pytest.raises(DataError, match="have the same name"):
        load_source(tmp_path)


# Pixels


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pixels_are_read_as_they_were_written(suffix, tmp_path):
    np.testing.assert_array_equal(read_pixels(write(tmp_path / f"grey{suffix}", GREY))[..., 0], GREY)
    np.testing.assert_array_equal(read_pixels(write(tmp_path / f"colour{suffix}", COLOUR)), COLOUR)
    for name, mask in (("one", MASK), ("full", MASK * 255), ("three", np.stack([MASK * 255] * 3, -1))):
        np.testing.assert_array_equal(read_mask(write(tmp_path / f"{name}{suffix}", mask)), MASK)


def test_an_opaque_alpha_channel_is_ignored_and_transparency_is_refused(tmp_path):
    opaque = np.dstack((COLOUR[..., ::-1], np.full_like(GREY, 255)))  # OpenCV writes blue, green, red
    np.testing.assert_array_equal(read_pixels(write(tmp_path / "opaque.png", opaque)), COLOUR)
    with pytest.raises(DataError, match="transparent"):
        read_pixels(write(tmp_path / "clear.png", opaque - np.uint8([0, 0, 0, 1])))


def test_a_grey_image_is_repeated_in_every_channel(tmp_path):
    path = write(tmp_path / "grey.tif", GREY)
    np.testing.assert_array_equal(read_slice(path, 3), np.stack([GREY] * 3, -1))
    np.testing.assert_array_equal(read_slice(path, 1)[..., 0], GREY)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (GREY.astype(np.uint16) * 99, MASK, "holds uint16 pixels"),
        (GREY, MASK * 7, "holds the values 0, 7"),
        (GREY, GREY, r"holds the values 0, 1, 2, 3, 4, \.\.\.\. A mask holds"),
        (GREY, COLOUR, "is in colour. A mask is grey"),
        (COLOUR, MASK, r"2\.png has 3 channel\(s\), but the first image has 1"),
        (GREY, MASK[:3], "is 3x8, its image 6x8. Save both with the same size"),
    ],
)
def test_unusable_files_are_named(image, mask, message, tmp_path):
    for number, (i, m) in enumerate(((GREY, MASK), (image, mask)), 1):
        write(tmp_path / f"images/a/{number}.png", i)
        write(tmp_path / f"masks/a/{number}.png", m)
    with pytest.raises(BenchError, match=message):
        load_or_pack(load_source(tmp_path), tmp_path / "cache")


def test_resized_pixels_are_the_mean_of_the_area_they_cover(tmp_path):
    write(
        tmp_path / "images/a/1.png", np.kron(np.uint8(np.arange(256).reshape(16, 16)), np.uint8([[1, 1], [1, 1]]))
    )
    write(tmp_path / "masks/a/1.png", np.kron(np.uint8(np.eye(16)), np.ones((2, 2), np.uint8)))
    pack = load_or_pack(load_source(tmp_path, resize=16), tmp_path / "cache")
    np.testing.assert_array_equal(pack.images[0, ..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(pack.masks[0], np.eye(16))


def coloured(folder: Path) -> Path:
    """Two masks of black, red (tumour) and blue."""
    for number in (1, 2):
        mask = np.zeros((*GREY.shape, 3), np.uint8)
        mask[MASK == 1] = 255, 0, 0
        mask[0, number] = 0, 0, 255
        write(folder / f"images/a/{number}.png", GREY)
        write(folder / f"masks/a/{number}.png", mask)
    return folder


def test_one_colour_of_a_mask_is_the_foreground(tmp_path):
    settings = dict(parse_assignment(a) for a in ("dataset=pairs", "dataset.colours={tumour: [255, 0, 0]}"))
    config = configure(settings | {"dataset.folder": str(coloured(tmp_path))})
    pack = load_or_pack(source_of(config), tmp_path / "cache")
    for row in (0, 1):
        expected = MASK.copy()
        expected[0, row + 1] = 0
        np.testing.assert_array_equal(pack.masks[row], expected)
    with pytest.raises(
        BadSetting, match=r"dataset\.colours\.tumour = \[0, 9, 0\] occurs in no mask\. They hold \[0, 0, 0\]"
    ):
        load_or_pack(load_source(tmp_path, colours={"tumour": [0, 9, 0]}), tmp_path / "cache")
    with pytest.raises(DataError, match=r"is in colour.* set dataset\.colours"):
        load_or_pack(load_source(tmp_path), tmp_path / "cache")


def test_a_grey_level_of_a_mask_may_be_the_foreground(tmp_path):
    write(tmp_path / "images/a/1.png", GREY)
    write(tmp_path / "masks/a/1.png", GREY % 3)
    source = load_source(tmp_path, colours={"tumour": [2, 2, 2]})
    np.testing.assert_array_equal(source.read(source.slices[0])[1], GREY % 3 == 2)


def test_a_table_determines_the_patient(tmp_path):
    folder = flat(tmp_path, "ISIC_1", "ISIC_2", "ISIC_3")
    (folder / "patients.csv").write_text("image,patient\nISIC_1,A\nISIC_2,B\nISIC_3,A\n")
    rows = table(load_source(folder, **FLAT, patients="patients.csv"))
    assert [row[:2] for row in rows] == [("A", 1), ("A", 3), ("B", 2)]
    with pytest.raises(BadSetting, match="both name the patients"):
        load_source(folder, **FLAT, patients="patients.csv", patient="(.*)")
    files = [folder / f"scans/ISIC_{n}.png" for n in (1, 2, 3)]
    (folder / "scans/patients.csv").write_text((folder / "patients.csv").read_text())
    grouped = group_by_patient(files, folder / "scans", None, "patients.csv")
    assert [[file.stem for file in part] for part in grouped] == [["ISIC_1", "ISIC_3"], ["ISIC_2"]]


# Training and prediction


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of two grey slices of 20 x 30 pixels, all in one folder, each with a bright square."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for number in range(12):
        mask = np.zeros((20, 30), np.uint8)
        mask[4 : 8 + number % 6, 5:15] = 1
        write(
            folder / f"scans/P{number // 2}_{number % 2}.png",
            np.uint8(rng.integers(0, 90, mask.shape) + 120 * mask),
        )
        write(folder / f"truth/P{number // 2}_{number % 2}.png", mask)
    return folder


@pytest.fixture(scope="module")
def model(own: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryRecorder, Path]:
    """The recorder of one fold on slices of 16 x 16, and the folder of its model."""
    folder = tmp_path_factory.mktemp("model")
    settings = {"folder": str(own), "patient": r"(P\d)_.*", "resize": 16, **FLAT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        tiny = {"split.folds": 3, "model": {"name": "unet", "base": 2, "depth": 1}, "device": "cpu"}
        experiment = resolve(configure({"dataset": {"name": "pairs", **settings}, **tiny, "train.epochs": 1}))
        recorder = MemoryRecorder()
        cross_validate(experiment, recorder, only=0)
    assert (experiment.channels, len(experiment.pack.cases)) == (1, 6)
    for name, content in recorder.children["fold 0"].paths["model"].items():
        (folder / name).write_bytes(content)
    return recorder, folder


def test_images_in_one_folder_are_split_by_patient(model):
    split = model[0].tables["split"]
    assert set(split["case"]) == {f"P{n}" for n in range(6)}


def test_images_are_resized_as_in_training_and_logits_resized_back(own, model):
    segmenter = FoldModels([model[1]])
    images = np.stack([read_slice(own / f"scans/P0_{n}.png", 1) for n in range(2)])
    small = np.stack([cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA) for image in images])[..., None]
    probability, small_probability = segmenter.predict(images), segmenter.predict(small)
    assert probability.shape == (2, 20, 30)
    for one, other in zip(probability, np.log(small_probability / (1 - small_probability)), strict=True):
        logits = cv2.resize(other, (30, 20), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(one, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_external_patients_are_read_with_the_settings_of_training(own, model, template, tmp_path, monkeypatch):
    """Otherwise they would be refused, for sharing a folder and for their size."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(template, tmp_path / "mlruns")
    uri = f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    exported, (network, description) = tmp_path / "exported", load_model(model[1])
    save_model(exported, network, description | {"patients": {"salt": "", "hashes": []}})
    run = evaluate_external(str(exported), own, fold=None, threshold=None, device="cpu", uri=uri)
    store = connect(uri)
    cases = read_table(store, store.client.get_run(run), "cases")
    assert set(cases["case"]) == {f"P{n}" for n in range(6)}
    assert set(cases[["tp", "fp", "fn", "tn"]].sum(axis=1)) == {2 * 16 * 16}


def test_images_of_one_folder_are_grouped_by_patient_as_in_training():
    files = [Path(f"/scans/{name}.png") for name in ("P1_1", "P2_1", "P1_2", "other")]
    named = [[path.stem for path in part] for part in group_by_patient(files, Path("/scans"), r"(P\d)_.*")]
    assert named == [["P1_1", "P1_2"], ["P2_1"], ["other"]]
    assert group_by_patient(files, Path("/scans"), None) == [files]


def test_a_search_uses_the_dataset_of_its_file(tmp_path):
    (tmp_path / "own.yaml").write_text("base: {dataset: pairs}\nspace: {train.lr: 1e-4..1e-2 log}\n")
    result = CliRunner().invoke(app, ["search", str(tmp_path / "own.yaml"), "--data", str(tmp_path)])
    assert "has no folder 'images'" in str(result.exception)


# The `bench data` commands


@pytest.fixture
def damaged(tmp_path):
    """Four patients of two images: one image shared, one damaged, one blank, and no tumour in the last patient."""
    rng = np.random.default_rng(0)
    for case in range(4):
        for n in range(2):
            write(tmp_path / f"images/P{case}_{n}.png", rng.integers(0, 256, (6, 8, 3), np.uint8))
            write(tmp_path / f"masks/P{case}_{n}.png", MASK * (255 if case < 3 else 0))
    shutil.copy(tmp_path / "images/P0_1.png", tmp_path / "images/P2_0.png")
    (tmp_path / "images/P1_0.png").write_bytes(b"no image")
    write(tmp_path / "images/P3_0.png", np.full((6, 8, 3), 7, np.uint8))
    return tmp_path


def test_an_audit_of_pairs_names_all_problems_at_once(damaged):
    result = audit_source(load_source(damaged, patient=r"(P\d)_.*"))
    errors = {finding.code: finding.where for finding in result.errors}
    assert errors == {
        "unreadable": (str(damaged / "images/P1_0.png"), "P1"),
        "shared-slice": ("P0", "P2", str(damaged / "images/P0_1.png"), str(damaged / "images/P2_0.png")),
    }
    warnings = sorted((finding.code, finding.where[:2]) for finding in result.warnings)
    blank = [("blank-channel", ("P3", str(damaged / "images/P3_0.png")))] * 3
    assert warnings == [*blank, ("no-tumour", ("P3",))]
    facts = dict(result.facts)
    assert facts == {
        "patients": 4,
        "slices": 8,
        "positive_slices": 5,
        "institutions": {"unknown": 4},
        "synthetic": False,
        "sizes": {"6x8": 7},
        "largest_tumour": int(MASK.sum()),
        "slices_per_patient": (2, 2.0, 2),
        "positive_per_patient": (0, 1.5, 2),
    }


def test_a_check_names_every_problem_and_groups_them_by_kind(damaged):
    for name in ("images/P4_0.png", "images/P4_1.png", "masks/P5_0.png"):
        write(damaged / name, MASK)
    write(damaged / "masks/P3_1.png", MASK * 7)  # P3: one mask refused, so its tumour is unknown
    write(damaged / "masks/P0_0.png", np.full_like(MASK, 255))
    inverted = np.full_like(MASK, 255)
    inverted[2:4, 2:4] = 0
    write(damaged / "masks/P0_1.png", inverted)
    words = ["data", "check", str(damaged), "--dataset", "pairs", "--set", r"dataset.patient=(P\d)_.*"]
    short, long = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--verbose"]))
    kinds = re.findall(r"^(?:error|warning) \[([a-z-]+)\]", long.stdout, re.MULTILINE)
    assert sorted(kinds) == sorted(
        ["orphan-image"] * 2 + ["orphan-mask", "unreadable", "mask-values", "shared-slice"]
        + ["blank-channel"] * 3 + ["all-white", "inverted-mask"]
    )  # fmt: skip
    assert re.findall(r"^(?:error|warning) \[([a-z-]+)\]", short.stdout, re.MULTILINE) == list(
        dict.fromkeys(kinds)
    )
    assert f"And 1 more: {damaged / 'images/P4_1.png'}." in short.stdout
    assert "6 errors, 5 warnings; --verbose prints each" in short.stdout


def test_the_data_commands_accept_any_dataset(damaged, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(damaged / "cache"))
    words = [str(damaged), "--dataset", "pairs", "--set", r"dataset.patient=(P\d)_.*"]
    checked = CliRunner().invoke(app, ["data", "check", *words])
    assert checked.exit_code == 1
    assert "2 errors, 4 warnings" in checked.stdout
    (damaged / "images/P1_0.png").unlink()
    (damaged / "masks/P1_0.png").unlink()
    described = CliRunner().invoke(app, ["data", "describe", *words])
    assert described.exit_code == 0
    assert "green" in described.stdout
    small = CliRunner().invoke(app, ["data", "pack", *words, "--set", "dataset.resize=16"])
    assert "4 patients, 7 slices of 16x16x3" in small.stdout
    refused = CliRunner().invoke(app, ["data", "check", str(damaged), "--dataset", "pears"])
    assert "Did you mean 'pairs'?" in str(refused.exception)
