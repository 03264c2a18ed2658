"""Logged models on other images: truth is drawn where it lies beside, and what is not defined is no error."""

from __future__ import annotations

import re
from math import isnan
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from sklearn import metrics
from torch import nn

from bench import registry
from bench.data.readers.images import find_images, read_slice
from bench.errors import BadSetting, BenchError, DataError
from bench.experiments.evaluate import evaluate_external
from bench.experiments.predict import predict_folder
from bench.inference.fold_models import FoldModels
from bench.inference.overlays import PREDICTION, TRUTH
from bench.models.io import save_model
from bench.outputs import LIST
from bench.overrides import configure
from bench.tracking import EVALUATION, Store, find_run, open_run, read_records, read_table
from bench.tracking.tags import Tag
from bench.training.experiment import source_like
from tests.fakes import image_of, mask_of, write, write_case

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}
UNET = {"model": "unet", "model.base": 2, "model.depth": 1}
CLASSIFIER = {"model": "classifier", "model.encoder": "mobilenetv3_small_050"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, settings: dict[str, object], *, lean: float = 0.0, threshold: float = 0.5) -> Path:
    """A model that nobody trained, as a folder; `lean` is added to every logit."""
    config = configure(settings)
    torch.manual_seed(0)
    model = registry.model[config.model.name].bind(config.model.params)(3)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][-1]
    with torch.no_grad():
        last.bias += lean
    described = {"config": config.model_dump(mode="json"), "channels": 3, "threshold": threshold}
    save_model(folder, model, described | {"channel_names": ["pre", "flair", "post"]})
    return folder


def logged(store: Store, model: Path) -> str:
    """A finished run of one fold with this model, whose patients are others; gives its name."""
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.table("split", pd.DataFrame({"case": ["somebody"]}))
        run.table("cases", pd.DataFrame({"case": ["somebody"], "fold": [0]}))
        with run.child("fold 0", {"bench.fold": "0"}) as fold:
            fold.model(model, 3)
    return "mine"


def predict(model: Path, images: Path, out: Path, *, threshold: float | None = None) -> None:
    print(predict_folder(str(model), [images], out, fold=None, threshold=threshold, device="cpu", uri=None))


def evaluate(store: Store, run: str, folder: Path) -> str:
    return evaluate_external(run, folder, fold=None, threshold=None, device="cpu", uri=store.uri)


def near(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Where the colour is, bool (H, W)."""
    return np.abs(pixels.astype(int) - np.array([round(255 * c) for c in to_rgb(colour)])).max(-1) < 40


def overlay(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Left and right half of an overlay, RGB."""
    pixels = cv2.imread(str(path))[..., ::-1]
    half = pixels.shape[1] // 2
    return pixels[:, :half], pixels[:, half:]


# Pictures


def test_an_overlay_shows_the_truth_that_lies_beside_the_image(tmp_path):
    """Slice 1 has a mask without tumour, slices 2 and 3 with one; slice 4 has no mask."""
    folder = write_case(tmp_path / "scans", "a", (1, 2, 3))
    write(folder / "a_4.tif", image_of("a_4"))
    predict(saved(tmp_path / "model", UNET, lean=-50), tmp_path / "scans", tmp_path / "out")
    for number, there in ((1, False), (2, True), (3, True), (4, False)):
        left, right = overlay(tmp_path / "out" / "a" / f"a_{number}_overlay.png")
        assert near(right, TRUTH).any() == there
        assert not near(left, TRUTH).any()
        assert not near(right, PREDICTION).any()
    assert len(list((tmp_path / "out").rglob("*_mask.tif"))) == 4


def test_an_overlay_shows_the_prediction_beside_the_truth(tmp_path):
    write_case(tmp_path / "scans", "a", (2,))
    predict(saved(tmp_path / "model", UNET, lean=50), tmp_path / "scans", tmp_path / "out")
    _, right = overlay(tmp_path / "out" / "a" / "a_2_overlay.png")
    assert near(right, PREDICTION).any()
    assert near(right, TRUTH).any()


def test_several_inputs_are_predicted_and_images_of_one_folder_together(tmp_path):
    folder, other = write_case(tmp_path / "scans", "a", (1, 2)), write_case(tmp_path / "more", "b", (1,))
    model = saved(tmp_path / "model", UNET)
    inputs = [folder / "a_2.tif", other, folder / "a_1.tif"]
    predict_folder(str(model), inputs, tmp_path / "out", fold=None, threshold=None, device="cpu", uri=None)
    predict(model, folder, tmp_path / "together")
    assert {path.name for path in (tmp_path / "out").glob("*_mask.tif")} == {
        f"{n}_mask.tif" for n in ("a_1", "a_2", "b_1")
    }
    for name in ("a_1_mask.tif", "a_2_mask.tif"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()


def test_inputs_that_would_write_the_same_file_are_refused(tmp_path):
    folders = [write_case(tmp_path / name, "a", (1,)) for name in ("scans", "more")]
    with pytest.raises(BenchError, match=r"a_1_mask\.tif"):
        predict_folder(
            str(saved(tmp_path / "model", UNET)),
            folders,
            tmp_path / "out",
            fold=None,
            threshold=None,
            device="cpu",
            uri=None,
        )


def test_a_folder_of_folders_of_volumes_is_answered_with_the_one_to_pass(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        (tmp_path / "scans" / folder / "a.nii.gz").touch()
    message = (
        f"in the folders imagesTr, labelsTr. Pass the one of the scans, such as {tmp_path / 'scans/imagesTr'}."
    )
    with pytest.raises(DataError, match=re.escape(message)):
        predict(saved(tmp_path / "model", UNET), tmp_path / "scans", tmp_path / "out")


def test_an_evaluation_takes_settings_of_the_data_set_alone():
    config = configure({"dataset": "pairs", "dataset.folder": "x"})
    with pytest.raises(DataError, match="has no folder 'scans'"):
        source_like(config, Path(), {"dataset.images": "scans"})
    with pytest.raises(BadSetting, match=r"train\.lr cannot be set here: only settings of the data set"):
        source_like(config, Path(), {"train.lr": 1})


def test_masks_by_any_name_and_hidden_files_are_no_scans(tmp_path):
    for name in ("a_1.png", "a_1_mask.png", "a_2_Mask.png", "a_3_segmentation.png", "._a_1.png"):
        (tmp_path / name).touch()
    assert find_images(tmp_path) == {tmp_path: [tmp_path / "a_1.png"]}


def test_a_mask_may_be_a_png(tmp_path):
    (tmp_path / "scans").mkdir()
    cv2.imwrite(str(tmp_path / "scans" / "x_1.png"), image_of("x"))
    cv2.imwrite(str(tmp_path / "scans" / "x_1_mask.png"), mask_of())
    predict(saved(tmp_path / "model", UNET, lean=-50), tmp_path / "scans", tmp_path / "out")
    assert near(overlay(tmp_path / "out" / "x_1_overlay.png")[1], TRUTH).any()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [LIST, "x_1_mask.tif", "x_1_overlay.png"]


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    folder = write_case(tmp_path / "scans", "a", (2,))
    write(folder / "a_2_mask.tif", mask_of(12))
    with pytest.raises(DataError, match=r"the mask beside .*a_2\.tif has another size than the image"):
        predict(saved(tmp_path / "model", UNET), tmp_path / "scans", tmp_path / "out")


# Where masks are written


@pytest.mark.parametrize("out", ["scans", "scans/a", "scans/new"])
def test_masks_are_not_written_among_the_images(tmp_path, out):
    folder = write_case(tmp_path / "scans", "a", (2,))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BadSetting, match="masks would lie among the images"):
        predict(saved(tmp_path / "model", UNET), tmp_path / "scans", tmp_path / out)
    assert {path: path.read_bytes() for path in (tmp_path / "scans").rglob("*.*")} == before


def test_the_true_masks_of_another_folder_are_kept(tmp_path):
    write_case(tmp_path / "scans", "a", (1, 2))
    (tmp_path / "out" / "a").mkdir(parents=True)
    truth = tmp_path / "out" / "a" / "a_2_mask.tif"
    write(truth, mask_of())
    before = truth.read_bytes()
    with pytest.raises(BadSetting, match=r"a_2_mask\.tif exists, and bench did not write it"):
        predict(saved(tmp_path / "model", UNET), tmp_path / "scans", tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*.*")] == [truth]
    assert truth.read_bytes() == before


def test_two_images_of_one_name_are_refused_before_anything_is_predicted(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("x.png", "x.tif"):
        cv2.imwrite(str(tmp_path / "scans" / name), image_of("x"))
    with pytest.raises(BadSetting, match=r"two results would be written to .*x_mask\.tif"):
        predict(saved(tmp_path / "model", UNET), tmp_path / "scans", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_are_replaced_and_never_predicted_or_taken_for_the_truth(tmp_path):
    write_case(tmp_path, "a", (2,))
    (tmp_path / "a" / "a_2_mask.tif").unlink()
    model = saved(tmp_path / "model", UNET, lean=50)
    for _ in range(2):
        predict(model, tmp_path / "a" / "a_2.tif", tmp_path / "a")
    assert find_images(tmp_path / "a") == {tmp_path / "a": [tmp_path / "a" / "a_2.tif"]}
    predict(model, tmp_path / "a", tmp_path / "out")
    assert not near(overlay(tmp_path / "out" / "a_2_overlay.png")[1], TRUTH).any()


# Classifiers


def test_a_presence_model_leaves_one_table_and_no_masks(tmp_path, capsys):
    for name in "ab":
        write_case(tmp_path / "scans", name, (1, 2, 10))
    model = saved(tmp_path / "model", CLASSIFIER)
    probability = {}
    for name in "ab":
        files = [tmp_path / "scans" / name / f"{name}_{number}.tif" for number in (1, 2, 10)]
        found = FoldModels([model]).predict(np.stack([read_slice(file, 3) for file in files]))
        probability |= {f"{name}/{file.name}": float(p) for file, p in zip(files, found[:, 0, 0], strict=True)}
    middle = sorted(probability.values())[3]
    predict(model, tmp_path / "scans", tmp_path / "out", threshold=middle)
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {LIST, "presence.csv"}
    said = pd.read_csv(tmp_path / "out" / "presence.csv").set_index("image")
    assert list(said.index) == list(probability)
    assert said["probability"].to_dict() == pytest.approx(probability, abs=1e-6)
    assert said["called"].tolist() == [p >= middle for p in probability.values()]
    assert said["called"].sum() == 3
    assert "presence.csv lists 6 images; 3 of them with tumour" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("lean", "called"), [(-50, 0), (50, 2)])
def test_a_presence_model_of_the_store_judges_by_the_threshold_of_its_run(store, tmp_path, lean, called):
    write_case(tmp_path / "scans", "a", (1, 2))
    name = logged(store, saved(tmp_path / "model", CLASSIFIER, lean=lean, threshold=0.3))
    predict_folder(
        name, [tmp_path / "scans"], tmp_path / "out", fold=0, threshold=None, device="cpu", uri=store.uri
    )
    assert pd.read_csv(tmp_path / "out" / "presence.csv")["called"].sum() == called


def test_a_presence_model_is_evaluated_on_other_patients(store, tmp_path, capsys):
    for name in "abc":
        write_case(tmp_path / "others", name, (1, 2, 3))
    run = logged(store, saved(tmp_path / "model", CLASSIFIER))
    child = store.client.get_run(evaluate(store, run, tmp_path / "others"))
    assert child.data.tags[Tag.KIND] == EVALUATION
    assert child.data.tags["bench.task"] == "presence"
    slices = read_table(store, child, "slices")
    assert len(slices) == 9
    assert slices["truth"].tolist() == [False, True, True] * 3
    auroc = metrics.roc_auc_score(slices["truth"], slices["probability"])
    assert child.data.metrics["auroc"] == pytest.approx(auroc)
    assert len(read_table(store, child, "report")) == 2
    said = capsys.readouterr().out
    assert f"AUROC {auroc:.3f}" in said
    assert "undefined: no negative patients" in said
    assert [record.name for record in read_records(store)] == ["mine"]


@pytest.mark.parametrize(
    ("settings", "pictures"),
    [
        (UNET, {"overlays/best.png", "overlays/median.png", "overlays/worst.png"}),
        (CLASSIFIER, {"discrimination.png", "confusion.png", "reliability.png"}),
    ],
)
def test_an_evaluation_logs_the_pictures_of_its_task(store, tmp_path, settings, pictures):
    for name in "abc":
        write_case(tmp_path / "others", name, (1, 2, 3))
    run_id = evaluate(store, logged(store, saved(tmp_path / "model", settings)), tmp_path / "others")
    logged_files = [*store.client.list_artifacts(run_id), *store.client.list_artifacts(run_id, "overlays")]
    assert pictures <= {file.path for file in logged_files}


# Nothing to be found, and nothing found


def test_patients_of_whom_no_dice_is_defined_are_evaluated_and_get_a_dash(store, tmp_path, capsys):
    for name in "ab":
        folder = write_case(tmp_path / "others", name, (1, 2))
        for mask in folder.glob("*_mask.tif"):
            write(mask, mask_of(positive=False))
    run = logged(store, saved(tmp_path / "model", UNET, lean=-50))
    child = store.client.get_run(evaluate(store, run, tmp_path / "others"))
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == find_run(store, run).info.run_id
    assert isnan(child.data.metrics["dice"])
    assert child.data.metrics["dice_undefined"] == child.data.metrics["patients"] == 2
    assert "dice_low" not in child.data.metrics
    assert read_table(store, child, "cases")["dice"].isna().all()
    said = " ".join(capsys.readouterr().out.split())
    assert "Dice – (95% interval – to –), median –, HD95 – px, missed slices 0, pooled over all pixels –" in said
