"""Models leave the store as plain folders, and predict there as they did in it."""

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
from bench.errors import BadSetting, DataError, UnknownName
from bench.experiments.evaluate import evaluate_external
from bench.inference.fold_models import FoldModels
from bench.models.io import save_model
from bench.overrides import configure
from bench.tracking import Store, open_run, participants, read_table
from bench.tracking.export import export_run, exported
from tests.fakes import image_of, write, write_case

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    """A finished run of two folds, each with a model of its own; gives its name."""
    config = configure({"model": "unet", "model.base": 4, "model.depth": 2})
    described = {
        "config": config.model_dump(mode="json"),
        "channels": 3,
        "channel_names": ["pre", "flair", "post"],
    }
    with open_run(store, "mine", "lgg", TAGS) as parent:
        parent.tags({"mlflow.note.content": "**mine**: what is known of it"})
        parent.table("split", pd.DataFrame({"case": ["p_1", "p_2"]}))
        for number in range(2):
            torch.manual_seed(number)
            model = registry.model["unet"].bind(config.model.params)(3)
            save_model(tmp_path / f"{number}", model, described | {"fold": number, "threshold": 0.4 + number / 10})
            with parent.child(f"fold {number}", {"bench.fold": str(number)}) as fold:
                fold.model(tmp_path / f"{number}", 3)
    return "mine"


def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def test_an_export_predicts_to_the_bit_what_the_run_does(run, store, tmp_path):
    export_run(run, tmp_path / "out", uri=store.uri)
    folders = exported(tmp_path / "out")
    assert [f.name for f in folders] == ["fold-0", "fold-1"]
    ours, theirs = (FoldModels(f) for f in (folders, [tmp_path / "0", tmp_path / "1"]))
    assert np.array_equal(ours.predict(scan()), theirs.predict(scan()))
    assert ours.threshold == pytest.approx(0.45)


def test_in_16_bits_it_is_half_as_large_and_predicts_the_same_within_a_hundredth(run, store, tmp_path):
    for half in (False, True):
        export_run(run, tmp_path / f"{half}", half=half, uri=store.uri)
    large, small = (tmp_path / f"{half}" / "fold-0" / "weights.safetensors" for half in (False, True))
    assert small.stat().st_size < 0.6 * large.stat().st_size
    kept = {name: tensor.dtype for name, tensor in load_file(small).items()}
    assert all(
        dtype != torch.float16 for name, dtype in kept.items() if "running" in name or name.endswith("bias")
    )
    whole, halved = (FoldModels(exported(tmp_path / f"{half}")).predict(scan()) for half in (False, True))
    assert not np.array_equal(whole, halved)
    assert halved == pytest.approx(whole, abs=0.01)


def test_one_fold_alone_and_its_card(run, store, tmp_path):
    export_run(run, tmp_path / "out", fold=1, uri=store.uri)
    assert [f.name for f in exported(tmp_path / "out")] == ["fold-1"]
    assert exported(tmp_path / "out", 0) == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("**mine**: what is known of it")
    assert "1 model, one a fold" in card


def test_bench_predict_takes_the_folder_anywhere(run, store, tmp_path, monkeypatch):
    words = ["export", run, "--out", str(tmp_path / "out"), "--half", "--tracking-uri", store.uri]
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "2 models, " in said.output
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


def test_bench_evaluate_takes_the_folder_for_patients_whom_its_models_have_not_seen(run, store, tmp_path, capsys):
    export_run(run, tmp_path / "out", uri=store.uri)
    write_case(tmp_path / "scans", "p_3", (1, 2))

    def evaluated(of: Path) -> str:
        return evaluate_external(
            str(of), tmp_path / "scans", fold=None, threshold=None, device="cpu", uri=store.uri
        )

    logged = store.client.get_run(evaluated(tmp_path / "out"))
    assert logged.info.run_name == "out on scans"
    assert "who took part by their names alone" in capsys.readouterr().err
    assert read_table(store, logged, "cases")["case"].tolist() == ["p_3"]
    write_case(tmp_path / "scans", "p_2", (1, 2))
    with pytest.raises(DataError, match=r"^1 of the patients of .* took part in the run itself, .*\(p_2\)"):
        evaluated(tmp_path / "out")
    for file in (tmp_path / "out").rglob("model.json"):
        assert "p_2" not in file.read_text(), "who took part cannot be read"
        described = json.loads(file.read_text())
        del described["patients"]
        file.write_text(json.dumps(described))
    with pytest.raises(DataError, match="does not say which patients its model has seen"):
        evaluated(tmp_path / "out")


def test_what_is_there_is_not_written_over(run, store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(BadSetting, match="is not empty"):
        export_run(run, tmp_path / "out", uri=store.uri)
    with pytest.raises(UnknownName, match="no run 'min'"):
        export_run("min", tmp_path / "new", uri=store.uri)
    assert not (tmp_path / "new").exists()


CHAMPION = Path(__file__).parents[2] / "benchmarks" / "results" / "lgg" / "champion"


def test_the_published_champion_knows_its_patients_under_any_name(lgg_folder, tmp_path):
    folder = next(path for path in sorted(lgg_folder.rglob("TCGA_*")) if path.is_dir())
    shutil.copytree(folder, tmp_path / "scans" / "subject1")
    pack = load_or_pack(lgg(folder=tmp_path / "scans"), tmp_path / "cache")
    for model in exported(CHAMPION):
        described = json.loads((model / "model.json").read_text())
        assert participants.participants_of_export(described).among(pack) == ["subject1"]


def test_the_published_champion_predicts_from_a_clone():
    folders = exported(CHAMPION)
    assert len(folders) == 5
    assert sum(file.stat().st_size for file in folders[0].parent.rglob("*") if file.is_file()) < 20e6
    champion = FoldModels(folders)
    images = np.zeros((4, 256, 256, 3), np.uint8)
    y, x = np.mgrid[:256, :256]
    images[(np.hypot(y - 128, x - 128) < 100)[None].repeat(4, 0)] = 60  # a head, in each slice
    images[1:3, 90:130, 140:190, 1] = 200  # bright on FLAIR, in two of them
    found = champion.predict(images) >= champion.threshold
    assert found[1:3, 95:125, 145:185].mean() > 0.5, "what is bright on FLAIR"
    assert found[[0, 3]].mean() < 0.05, "and little where nothing is"
