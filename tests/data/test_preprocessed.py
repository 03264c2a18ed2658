"""Slices are preprocessed once and reused, completely or not at all; the identity of the data is unchanged."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from bench import registry
from bench.config import RunConfig
from bench.data.loader import SliceLoader
from bench.data.pack import load_or_pack, open_pack, pack_in_memory
from bench.data.preprocessed import preprocess_pack
from bench.data.source import SliceFile, Source
from bench.errors import BadSetting, DataError, UnknownName
from bench.inference.fold_models import FoldModels
from bench.models.io import save_model
from bench.overrides import override
from bench.training.experiment import resolve
from tests.fakes import refuse_to_write, tiny_pack

CALLS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _steps():
    """Register steps that count their calls, for the duration of a test."""
    CALLS.clear()

    def halve(image, *, by: int = 2):
        """Darker, any number of times."""
        CALLS["halve"] += 1
        return image // by

    def lift(image, *, level: int = 10):
        """Brighter."""
        CALLS["lift"] += 1
        return image + np.uint8(level)

    def interrupt(image):
        """Stops at the fourth slice."""
        CALLS["interrupt"] += 1
        if CALLS["interrupt"] == 4:
            raise KeyboardInterrupt
        return image

    def widen(image):
        """Returns floats, which is not allowed."""
        return image.astype(float)

    def spoil(image):
        """Overwrites its input."""
        image[:] = 7
        return image

    added = (halve, lift, interrupt, widen, spoil)
    for step in added:
        registry.preprocessing(step)
    yield
    for step in added:
        del registry.preprocessing._entries[step.__name__]


@pytest.fixture
def pack(tmp_path):
    """Ten slices of two patients, packed in a folder."""
    whole = tiny_pack(cases=2, slices=5, size=24, channels=2)
    case = whole.index["case"].tolist()
    files = [tmp_path / f"{row}.npy" for row in range(10)]
    for file in files:
        file.touch()
    slices = tuple(SliceFile(case[row], row, "DU", file, None) for row, file in enumerate(files))

    def read(entry):
        return whole.images[entry.number], whole.masks[entry.number]

    source = Source("noise", slices, read, ("pre", "flair"), "")
    return load_or_pack(source, tmp_path / "cache")


def cached(folder: Path) -> list[str]:
    """Entries beside the files of the pack, except locks."""
    own = {"images.npy", "masks.npy", "histograms.npy", "index.csv", "manifest.json", "checked.json"}
    return sorted(f.name for f in folder.iterdir() if f.name not in own and not f.name.endswith(".lock"))


def test_without_steps_the_pack_itself_is_returned(pack):
    assert preprocess_pack(pack, {}) is pack
    assert cached(pack.folder) == []


def test_all_steps_apply_to_every_slice_and_the_manifest_is_kept(pack):
    made = preprocess_pack(pack, {"halve": {"by": 3}, "lift": {}})
    assert np.array_equal(made.images, pack.images // 3 + 10)
    assert made.images.dtype == np.uint8
    assert made.manifest == pack.manifest, "runs with and without preprocessing are ranked together"
    assert made.folder == pack.folder
    assert made.masks is pack.masks
    assert made.index is pack.index
    for row, channel in np.ndindex(10, 2):
        counts = [(made.images[row, ..., channel] == level).sum() for level in range(256)]
        assert made.histograms[row, channel].tolist() == counts


def test_the_order_of_steps_matters(pack):
    one, other = preprocess_pack(pack, {"halve": {}, "lift": {}}), preprocess_pack(pack, {"lift": {}, "halve": {}})
    assert np.array_equal(one.images, pack.images // 2 + 10)
    assert np.array_equal(other.images, (pack.images + 10) // 2)
    assert len(cached(pack.folder)) == 2


def test_preprocessed_slices_are_reused_for_equal_settings(pack):
    first = preprocess_pack(pack, {"halve": {}})
    again = preprocess_pack(pack, {"halve": {"by": 2}})  # the default, written out
    assert CALLS["halve"] == 10
    assert np.array_equal(again.images, first.images)
    assert np.array_equal(again.histograms, first.histograms)
    assert isinstance(again.images, np.memmap)
    other = preprocess_pack(pack, {"halve": {"by": 4}})
    assert np.array_equal(other.images, pack.images // 4)
    assert CALLS["halve"] == 20


PLUGIN = '''
import numpy as np

from bench.registry import preprocessing


@preprocessing
def mine(image):
    """One that is edited."""
    return np.uint8(255) - image
'''


def test_an_edited_plugin_is_preprocessed_again_and_a_moved_one_is_not(pack, tmp_path):
    edited = PLUGIN.replace("255", "254")
    inverted = {}
    for place, text in (("here", PLUGIN), ("there", PLUGIN), ("edited", edited)):
        path = tmp_path / f"{place}.py"
        path.write_text(text)
        registry.load_plugin(path)
        inverted[place] = preprocess_pack(pack, {"mine": {}}).images
        del registry.preprocessing._entries["mine"]
    assert np.array_equal(inverted["here"], 255 - pack.images)
    assert inverted["there"].filename == inverted["here"].filename
    assert np.array_equal(inverted["edited"], 254 - pack.images)


def test_progress_is_reported_after_each_slice(pack):
    calls = []
    preprocess_pack(pack, {"halve": {}}, tick=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 10) for n in range(1, 11)]


def test_concurrent_calls_preprocess_once(pack):
    start = Barrier(4)

    def run(_: int):
        start.wait()
        return preprocess_pack(pack, {"halve": {}})

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(run, range(4)))
    assert CALLS["halve"] == 10
    assert all(np.array_equal(m.images, pack.images // 2) for m in made)


# In memory


def test_a_pack_in_memory_is_preprocessed_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = tiny_pack(cases=2, slices=3, size=24)
    before = whole.images.copy()
    made = preprocess_pack(whole, {"halve": {}, "spoil": {}, "lift": {}})
    assert (made.images == 17).all()
    assert (made.histograms[..., 17] == 24 * 24).all()
    assert np.array_equal(whole.images, before), "a step that overwrites its input changed the data"
    assert list(tmp_path.iterdir()) == []


# Interrupted, damaged, refused


def test_an_interrupted_write_leaves_nothing(pack):
    with pytest.raises(KeyboardInterrupt):
        preprocess_pack(pack, {"interrupt": {}})
    assert cached(pack.folder) == []
    assert len(preprocess_pack(pack, {"interrupt": {}}).images) == 10


def test_leftovers_of_a_killed_process_are_removed_and_never_used(pack):
    preprocess_pack(pack, {"halve": {}})
    [name] = cached(pack.folder)
    (pack.folder / name).rename(pack.folder / f".{name}.writing")
    assert np.array_equal(preprocess_pack(pack, {"halve": {}}).images, pack.images // 2)
    assert CALLS["halve"] == 20
    assert cached(pack.folder) == [name]


def test_the_pack_stays_verified_and_may_be_removed(pack):
    preprocess_pack(pack, {"halve": {}})
    assert open_pack(pack.folder, verify=True).manifest == pack.manifest
    raw = np.array(pack.images)
    shutil.rmtree(pack.folder)
    pack.folder.mkdir()
    assert np.array_equal(preprocess_pack(pack, {"halve": {}}).images, raw // 2)
    assert CALLS["halve"] == 20


def test_damaged_slices_raise_a_helpful_error(pack):
    preprocess_pack(pack, {"halve": {}})
    [name] = cached(pack.folder)
    path = pack.folder / name / "images.npy"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{name} is damaged .* Remove that folder; it will be written again"):
        preprocess_pack(pack, {"halve": {}})
    shutil.rmtree(pack.folder / name)
    assert np.array_equal(preprocess_pack(pack, {"halve": {}}).images, pack.images // 2)


def test_overwritten_slices_are_refused_and_a_read_only_folder_is_read(pack, monkeypatch):
    expected = np.array(preprocess_pack(pack, {"halve": {}}).images)
    refuse_to_write(monkeypatch)
    assert np.array_equal(preprocess_pack(pack, {"halve": {}}).images, expected)
    with pytest.raises(DataError, match=r"cannot write to the cache: .*Set BENCH_CACHE"):
        preprocess_pack(pack, {"lift": {}})
    [name] = cached(pack.folder)
    images = np.load(pack.folder / name / "images.npy", mmap_mode="r+")
    images[4, 0, 0] += 1
    images.flush()
    for _ in range(2):
        with pytest.raises(DataError, match=f"{name} is damaged .slice 4 has changed"):
            preprocess_pack(pack, {"halve": {}})


def test_unknown_steps_settings_and_wrong_results_raise_helpful_errors(pack):
    with pytest.raises(UnknownName, match=r"no preprocessing named 'halv'\. Did you mean 'halve'"):
        preprocess_pack(pack, {"halv": {}})
    with pytest.raises(BadSetting, match="preprocessing 'halve' has no setting 'bye'"):
        preprocess_pack(pack, {"halve": {"bye": 3}})
    with pytest.raises(BadSetting, match=r"'widen' turns a uint8 slice of shape \(24, 24, 2\) into float64"):
        preprocess_pack(pack, {"widen": {}})
    assert cached(pack.folder) == []


def test_a_step_that_is_not_in_a_file_raises_a_helpful_error(pack):
    scope = {"__name__": "nowhere"}
    exec("def typed(image):\n    return image", scope)
    registry.preprocessing(scope["typed"])
    try:
        with pytest.raises(BadSetting, match=r"'typed' is not defined in a file.*with --plugin"):
            preprocess_pack(pack, {"typed": {}})
    finally:
        del registry.preprocessing._entries["typed"]


# In a run


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    tiny = {"dataset.patients": 6, "dataset.size": 32, "dataset.slices": 6, "dataset.institutions": 2}
    fast = {"split.folds": 3, "model.base": 4, "model.depth": 2}
    return override(RunConfig(), tiny, fast, {"input.preprocess": {"median": {}, "clahe": {"tiles": 2}}})


def test_a_run_trains_on_preprocessed_slices_of_the_same_data(config):
    raw = resolve(override(config, {"input.preprocess": "none"}))
    experiment = resolve(config)
    median, clahe = (registry.preprocessing[n].bind(p) for n, p in config.input.preprocess.items())
    assert np.array_equal(experiment.pack.images[3], clahe(median(raw.pack.images[3])))
    assert not np.array_equal(experiment.pack.images, raw.pack.images)
    assert experiment.pack.manifest == raw.pack.manifest
    assert experiment.split_hash == raw.split_hash
    assert list(experiment.config.flat()["input.preprocess"]) == ["median", "clahe"]
    assert experiment.config.flat()["input.preprocess.median.size"] == 3


def test_a_saved_model_preprocesses_as_its_run_did(config, tmp_path):
    experiment = resolve(config)
    raw = open_pack(experiment.pack.folder)
    description = {
        "config": experiment.config.model_dump(mode="json"),
        "channels": experiment.channels,
        "channel_names": experiment.pack.manifest.channels,
        "threshold": 0.5,
        "data": asdict(experiment.pack.manifest),
    }
    save_model(tmp_path / "model", experiment.model(0), description)
    segmenter = FoldModels([tmp_path / "model"])
    case = experiment.pack.cases[2]
    rows = experiment.pack.rows([case])
    loader = SliceLoader(experiment.pack, experiment.config.input, torch.device("cpu"))
    trained_on, _ = loader.load_normalised(rows)
    scan = pack_in_memory(np.array(raw.images[rows]), segmenter.channels)
    of_scan, _ = segmenter.predictor(scan).loader.load_normalised(np.arange(len(rows)))
    of_pack, _ = segmenter.predictor(raw).loader.load_normalised(rows)
    assert torch.equal(of_scan, trained_on)
    assert torch.equal(of_pack, trained_on)
    with torch.inference_mode():
        expected = segmenter.models[0](trained_on).sigmoid()[:, 0]
    assert np.allclose(segmenter.predict(raw.images[rows]), expected.numpy(), atol=1e-6)
