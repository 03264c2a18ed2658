"""Models are exported as plain folders that predict as they did in the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.data.datasets.lgg import lgg
from bench.data.pack import load_or_pack
from bench.errors import BadSetting, DataError, StoreError, UnknownName
from bench.experiments.evaluate import evaluate_external
from bench.inference.fold_models import FoldModels
from bench.models.io import save_model
from bench.overrides import configure
from bench.tracking import Store, find_folds, find_run, open_run, read_masks, read_table
from bench.tracking.export import export_run, find_exported_models
from bench.tracking.participants import read_exported_participants
from tests.fakes import image_of, write, write_case

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    """A finished run of two folds, each with its own model. Returns its name."""
    config = configure({"model": "unet", "model.base": 4, "model.depth": 2})
    description = {
        "config": config.model_dump(mode="json"),
        "channels": 3,
        "channel_names": ["pre", "flair", "post"],
    }
    with open_run(store, "mine", "lgg", TAGS) as parent:
        parent.tags({"mlflow.note.content": "**mine**: its model card"})
        parent.table("split", pd.DataFrame({"case": ["p_1", "p_2"]}))
        parent.table("cases", pd.DataFrame({"case": ["p_1", "p_2"], "fold": [0, 1]}))
        for number in range(2):
            torch.manual_seed(number)
            model = registry.model["unet"].bind(config.model.params)(3)
            own = {"fold": number, "threshold": 0.4 + number / 10}
            save_model(tmp_path / f"{number}", model, description | own)
            with parent.child(f"fold {number}", {"bench.fold": str(number)}) as fold:
                fold.model(tmp_path / f"{number}", 3)
    return "mine"


def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def test_an_export_predicts_exactly_as_the_run_does(run, store, tmp_path):
    export_run(run, tmp_path / "out", uri=store.uri)
    folders = find_exported_models(tmp_path / "out")
    assert [f.name for f in folders] == ["fold-0", "fold-1"]
    exported, logged = (FoldModels(f) for f in (folders, [tmp_path / "0", tmp_path / "1"]))
    assert np.array_equal(exported.predict(scan()), logged.predict(scan()))
    assert exported.thresholds == pytest.approx((0.45,))


def test_an_export_in_16_bits_predicts_within_a_hundredth(run, store, tmp_path):
    for half in (False, True):
        export_run(run, tmp_path / f"{half}", half=half, uri=store.uri)
    large, small = (tmp_path / f"{half}" / "fold-0" / "weights.safetensors" for half in (False, True))
    assert small.stat().st_size < 0.6 * large.stat().st_size
    dtypes = {name: tensor.dtype for name, tensor in load_file(small).items()}
    assert all(
        dtype != torch.float16 for name, dtype in dtypes.items() if "running" in name or name.endswith("bias")
    )
    whole, halved = (
        FoldModels(find_exported_models(tmp_path / f"{half}")).predict(scan()) for half in (False, True)
    )
    assert not np.array_equal(whole, halved)
    assert halved == pytest.approx(whole, abs=0.01)


def test_one_fold_is_exported_with_its_model_card(run, store, tmp_path):
    export_run(run, tmp_path / "out", fold=1, uri=store.uri)
    assert [f.name for f in find_exported_models(tmp_path / "out")] == ["fold-1"]
    assert find_exported_models(tmp_path / "out", 0) == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("**mine**: its model card")
    assert "1 model, one per fold" in card


def test_bench_predict_accepts_an_exported_folder(run, store, tmp_path, monkeypatch):
    words = ["export", run, "--out", str(tmp_path / "out"), "--half", "--tracking-uri", store.uri]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "2 models, " in result.output
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a_1.tif", image_of("a", 64))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for more in ([], ["--fold", "1"]):
        words = ["predict", str(tmp_path / "out"), str(tmp_path / "images"), "--out", "masks", *more]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        assert tifffile.imread(elsewhere / "masks" / "a_1_mask.tif").shape == (64, 64)
    assert not (elsewhere / "mlruns").exists()


def test_bench_evaluate_accepts_an_exported_folder_for_new_patients_only(run, store, tmp_path, capsys):
    export_run(run, tmp_path / "out", uri=store.uri)
    write_case(tmp_path / "scans", "p_3", (1, 2))

    def evaluate() -> str:
        folders = str(tmp_path / "out"), tmp_path / "scans"
        return evaluate_external(*folders, fold=None, threshold=None, device="cpu", uri=store.uri)

    logged = store.client.get_run(evaluate())
    assert logged.info.run_name == "out on scans"
    assert "know their patients only by name" in capsys.readouterr().err
    assert read_table(store, logged, "cases")["case"].tolist() == ["p_3"]
    write_case(tmp_path / "scans", "p_2", (1, 2))
    with pytest.raises(DataError, match=r"^1 of the patients of .* took part in the run itself, .*\(p_2\)"):
        evaluate()
    for file in (tmp_path / "out").rglob("model.json"):
        assert "p_2" not in file.read_text()
        description = json.loads(file.read_text())
        del description["patients"], description["digest"]
        file.write_text(json.dumps(description))
    with pytest.raises(DataError, match="does not say which patients its model has seen"):
        evaluate()


def test_an_export_does_not_overwrite_files(run, store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(BadSetting, match="is not empty"):
        export_run(run, tmp_path / "out", uri=store.uri)
    with pytest.raises(UnknownName, match="no run 'min'"):
        export_run("min", tmp_path / "new", uri=store.uri)
    assert not (tmp_path / "new").exists()


def test_a_run_that_has_lost_a_fold_is_never_taken_for_the_whole(run, store, tmp_path):
    lost = find_folds(store, find_run(store, run))[1]
    store.client.delete_run(lost.info.run_id)
    message = r"run mine \(\w{8}\) has lost its run of fold 1\. .* restore it there"
    with pytest.raises(StoreError, match=message):
        export_run(run, tmp_path / "out", uri=store.uri)
    with pytest.raises(StoreError, match=message):
        read_masks(store, find_run(store, run))
    assert not (tmp_path / "out").exists()
    export_run(run, tmp_path / "out", fold=0, uri=store.uri)
    store.client.restore_run(lost.info.run_id)
    export_run(run, tmp_path / "whole", uri=store.uri)
    assert len(find_exported_models(tmp_path / "whole")) == 2


def test_a_run_that_has_lost_a_model_is_never_taken_for_the_whole(run, store, tmp_path):
    fold = find_folds(store, find_run(store, run))[1]
    bare = store.client.create_run(fold.info.experiment_id, tags=fold.data.tags, run_name="fold 1")
    store.client.set_terminated(bare.info.run_id)
    store.client.delete_run(fold.info.run_id)
    with pytest.raises(StoreError, match=r"has lost its model of fold 1\. Name one of the other folds"):
        export_run(run, tmp_path / "out", uri=store.uri)


def test_a_run_that_is_not_finished_gives_only_single_folds(run, store, tmp_path):
    store.client.set_terminated(find_run(store, run).info.run_id, "FAILED")
    with pytest.raises(StoreError, match=r"is not finished\. Repeat its command to resume it, or name one fold"):
        export_run(run, tmp_path / "out", uri=store.uri)
    export_run(run, tmp_path / "out", fold=0, uri=store.uri)


def test_an_export_that_has_lost_a_model_is_never_taken_for_the_whole(run, store, tmp_path):
    export_run(run, tmp_path / "out", uri=store.uri)
    shutil.rmtree(tmp_path / "out" / "fold-1")
    with pytest.raises(DataError, match=r"was exported with 2 models and has 1\. Export it again, or give --fold"):
        find_exported_models(tmp_path / "out")
    assert find_exported_models(tmp_path / "out", 0) == [tmp_path / "out" / "fold-0"]


CHAMPION = Path(__file__).parents[2] / "benchmarks" / "results" / "lgg" / "champion"


def test_the_published_champion_recognises_renamed_patients(lgg_folder, tmp_path):
    folder = next(path for path in sorted(lgg_folder.rglob("TCGA_*")) if path.is_dir())
    shutil.copytree(folder, tmp_path / "scans" / "subject1")
    pack = load_or_pack(lgg(folder=tmp_path / "scans"), tmp_path / "cache")
    for model in find_exported_models(CHAMPION):
        description = json.loads((model / "model.json").read_text())
        assert read_exported_participants(description).find_in(pack) == ["subject1"]


def test_the_published_champion_predicts_from_the_repository():
    folders = find_exported_models(CHAMPION)
    assert len(folders) == 5
    assert sum(file.stat().st_size for file in folders[0].parent.rglob("*") if file.is_file()) < 20e6
    champion = FoldModels(folders)
    images = np.zeros((4, 256, 256, 3), np.uint8)
    y, x = np.mgrid[:256, :256]
    images[(np.hypot(y - 128, x - 128) < 100)[None].repeat(4, 0)] = 60  # a head, in each slice
    images[1:3, 90:130, 140:190, 1] = 200  # bright on FLAIR, in two of them
    mask = champion.predict(images) >= champion.thresholds[0]
    assert mask[1:3, 95:125, 145:185].mean() > 0.5, "the bright region"
    assert mask[[0, 3]].mean() < 0.05, "almost nothing in the other slices"
