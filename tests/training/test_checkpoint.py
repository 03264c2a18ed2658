"""The best weights are kept, and what is written comes back to the bit or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
from contextlib import contextmanager
from math import nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import registry
from bench.config import RunConfig
from bench.errors import StoreError
from bench.models.io import DESCRIPTION, WEIGHTS, load_model, save_model
from bench.training.checkpoint import Best, Checkpoints, read_state, write_state
from bench.types import Watch


def weight(value: float) -> nn.Module:
    """A model of one weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def kept(scores: list[float]) -> tuple[int, float]:
    """Which epoch is kept of epochs with these scores, and the weight that comes back, which is its number."""
    best, model = Best(), weight(0)
    for epoch, score in enumerate(scores, start=1):
        nn.init.constant_(model.weight, epoch)
        best.consider(model, score, epoch)
    best.restore(model)
    return best.epoch, model.weight.item()


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ([0.1, 0.7, 0.3], 2),
        ([0.7, 0.7, 0.7], 1),
        ([-9.0, -2.0, -5.0], 2),
        ([0.5], 1),
        ([nan, nan], 1),
        ([nan, 0.2, nan, 0.1], 2),
        ([float("-inf"), 0.0], 2),
    ],
)
def test_the_first_of_the_best_scores_is_kept_and_restored(scores, epoch):
    assert kept(scores) == (epoch, epoch)


def test_best_says_whether_it_took_the_weights():
    best = Best()
    assert [best.consider(weight(0), s, e) for e, s in enumerate([0.1, 0.1, 0.2])] == [True, False, True]
    assert best.score == 0.2


@pytest.fixture
def described():
    """A small model with worn-in batch statistics, and its description."""
    config = RunConfig(model={"name": "unet", "base": 2, "depth": 1}).completed()
    torch.manual_seed(0)
    model = registry.model["unet"].bind(config.model.params)(3).to(memory_format=torch.channels_last)
    model(torch.randn(2, 3, 16, 16))
    return model, {"config": config.model_dump(mode="json"), "channels": 3, "threshold": 0.4}


def test_a_model_comes_back_with_the_same_answers_to_the_bit(tmp_path, described):
    model, description = described
    save_model(tmp_path / "made" / "here", model, description)
    loaded, said = load_model(tmp_path / "made" / "here")
    assert said == description
    assert not loaded.training
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(loaded.to(memory_format=torch.channels_last)(images), model.eval()(images))
    assert {n: v.shape for n, v in loaded.state_dict().items()} == {
        n: v.shape for n, v in model.state_dict().items()
    }


def test_the_description_brings_its_plugin(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from torch import nn\nfrom bench.registry import model\n\n@model\ndef brought(channels):\n"
        "    'A 1x1 convolution.'\n    return nn.Conv2d(channels, 1, 1)\n"
    )
    config = RunConfig(model="brought", plugins=(str(plugin),)).model_dump(mode="json")
    save_model(tmp_path, nn.Conv2d(2, 1, 1), {"config": config, "channels": 2})
    try:
        loaded, _ = load_model(tmp_path)
        assert isinstance(loaded, nn.Conv2d)
    finally:
        registry.model._entries.pop("brought", None)


def test_encoder_weights_are_not_fetched_again(tmp_path):
    """The description says 'imagenet', and this machine is offline: loading must not ask for them."""
    made = registry.model["unet"].bind({"encoder": "resnet18"})(3)
    config = RunConfig(model={"name": "unet", "encoder": "resnet18", "weights": "imagenet"}).model_dump(
        mode="json"
    )
    save_model(tmp_path, made, {"config": config, "channels": 3})
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.encoder.conv1.weight, made.encoder.conv1.weight)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / DESCRIPTION).unlink(),
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8]),
        lambda folder: (folder / WEIGHTS).write_bytes(b""),
        lambda folder: (folder / DESCRIPTION).write_text("{"),
        lambda folder: (folder / DESCRIPTION).write_text("[]"),
        lambda folder: (folder / DESCRIPTION).write_text('{"channels": 3}'),
    ],
)
def test_a_broken_folder_is_refused_with_a_sentence(tmp_path, described, damage):
    save_model(tmp_path, *described)
    damage(tmp_path)
    with pytest.raises(StoreError, match="holds no readable model"):
        load_model(tmp_path)


def test_weights_of_another_model_are_refused_with_a_sentence(tmp_path, described):
    model, description = described
    description["config"]["model"]["base"] = 4
    save_model(tmp_path, model, description)
    with pytest.raises(StoreError, match="do not fit the model"):
        load_model(tmp_path)


@contextmanager
def disk_full_after(size: int):
    """Files may not grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_could_not_be_written_whole_never_appears(tmp_path, described):
    model, description = described
    with disk_full_after(1000), pytest.raises(OSError, match="File too large"):
        save_model(tmp_path / "first", model, description)
    assert not (tmp_path / "first" / WEIGHTS).exists()
    save_model(tmp_path / "second", model, description)
    before = (tmp_path / "second" / WEIGHTS).read_bytes()
    with disk_full_after(1000), pytest.raises(OSError, match="File too large"):
        save_model(tmp_path / "second", model, description)
    assert (tmp_path / "second" / WEIGHTS).read_bytes() == before
    assert json.loads((tmp_path / "second" / DESCRIPTION).read_text()) == description


# Checkpoints


def test_what_was_best_is_still_to_be_beaten_after_going_on(tmp_path):
    before = Best()
    before.consider(weight(3), 0.7, 3)
    write_state(tmp_path / "state", before.state())
    after, model = Best(), weight(0)
    after.load(read_state(tmp_path / "state"))
    assert not after.consider(weight(4), 0.7, 4)
    after.restore(model)
    assert (after.epoch, after.score, model.weight.item()) == (3, 0.7, 3)
    assert after.consider(weight(5), 0.8, 5)


def test_a_state_comes_back_with_its_types_and_its_bits(tmp_path):
    state = {"weights": {"a": torch.randn(3), 1: torch.arange(4)}, "scores": [nan, 0.1], "none": None, "b": b"\0"}
    write_state(tmp_path / "made" / "here.state", state)
    found = read_state(tmp_path / "made" / "here.state")
    assert torch.equal(found["weights"]["a"], state["weights"]["a"])
    assert torch.equal(found["weights"][1], state["weights"][1])
    assert repr(found["scores"]) == repr(state["scores"])
    assert (found["none"], found["b"]) == (None, b"\0")


class Shell:
    """What an attacker would leave."""

    def __reduce__(self):
        return os.mkdir, ("broken-into",)


def test_a_checkpoint_is_never_unpickled_into_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zipped = tmp_path / "zipped"
    torch.save({"a": Shell()}, zipped)
    for content in (pickle.dumps(Shell(), protocol=2), zipped.read_bytes()):
        (tmp_path / "bad.state").write_bytes(hashlib.sha256(content).digest() + content)
        with pytest.raises(StoreError, match="cannot be read"):
            read_state(tmp_path / "bad.state")
    assert not Path("broken-into").exists()


def told(said: list[str]) -> Watch:
    """A watch that keeps what it is told."""
    watch = Watch()
    watch.say = said.append
    return watch


@pytest.fixture
def checkpoints(tmp_path):
    """Those of a fold that has taken three, each holding its number, and what they say."""
    said: list[str] = []
    made = Checkpoints(tmp_path / "fold-0", 0, told(said))
    for epoch in (1, 2, 3):
        made.save(epoch, {"epoch": epoch})
    return made, said


def latest(made: Checkpoints) -> dict[str, int] | None:
    return next(made.undamaged(), None)


def newest(made: Checkpoints) -> list[Path]:
    return sorted(made.folder.iterdir(), reverse=True)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_the_last_two_are_kept_and_the_newest_is_used(checkpoints):
    made, said = checkpoints
    assert len(newest(made)) == 2
    assert latest(made) == {"epoch": 3}
    assert said == []
    assert latest(Checkpoints(made.folder.with_name("fold-1"), 0)) is None


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit of the checksum": lambda path: flip(path, 0),
    "a bit of the state": lambda path: flip(path, -40),
    "words": lambda path: path.write_text("words"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_gives_way_to_the_one_before_and_says_so(checkpoints, damage):
    made, said = checkpoints
    name = newest(made)[0].name
    damage(newest(made)[0])
    assert latest(made) == {"epoch": 2}
    assert len(said) == 1
    assert name in said[0]
    assert "damaged" in said[0]


def test_two_damaged_ones_mean_to_start_over_and_are_not_in_the_way(checkpoints):
    made, said = checkpoints
    for path in newest(made):
        flip(path, -1)
    assert latest(made) is None
    assert len(said) == 2
    made.save(1, {"epoch": 1})
    assert latest(made) == {"epoch": 1}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_process_that_ends_before_the_last_step_leaves_the_one_before(checkpoints, monkeypatch, step):
    """It ends when the content is written but not yet flushed, or flushed but not yet under its name."""
    made, said = checkpoints

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, step, end)
        with pytest.raises(KeyboardInterrupt):
            made.save(4, {"epoch": 4})
    assert latest(Checkpoints(made.folder, 0, told(said))) == {"epoch": 3}
    made.save(4, {"epoch": 4})
    assert latest(made) == {"epoch": 4}
    assert said == []


def test_a_full_disk_leaves_the_one_before(checkpoints):
    made, _ = checkpoints
    with disk_full_after(1000), pytest.raises(OSError, match="File too large"):
        made.save(4, {"weights": torch.zeros(1000)})
    assert latest(made) == {"epoch": 3}


def test_one_is_due_so_many_seconds_after_the_last(tmp_path, monkeypatch):
    # The clock is read when all begins, at each question and at each save.
    clock = SimpleNamespace(monotonic=iter((100, 129, 130, 150, 150, 179, 181, 5, 5)).__next__)
    monkeypatch.setattr("bench.training.checkpoint.time", clock)
    made = Checkpoints(tmp_path, 30)
    assert [made.due() for _ in range(2)] == [False, True]
    made.save(1, {})
    assert [made.due() for _ in range(3)] == [False, False, True]
    assert Checkpoints(tmp_path, 0).due()


TRANSIENT = (
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    OSError("Input/output error"),
)


@pytest.mark.parametrize("error", TRANSIENT)
def test_a_checkpoint_that_cannot_be_read_is_kept(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints.save(1, {"a": 1})

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(StoreError, match=r"cannot be read: .* It is kept"):
        next(checkpoints.undamaged())
    assert len(list(tmp_path.iterdir())) == 1
