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
from bench.errors import BenchError, StoreError, UnknownName
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
    return model, {
        "config": config.model_dump(mode="json"),
        "channels": 3,
        "channel_names": ["a"],
        "threshold": 0.4,
    }


def test_a_model_comes_back_with_the_same_answers_to_the_bit(tmp_path, described):
    model, description = described
    save_model(tmp_path / "made" / "here", model, description)
    loaded, said = load_model(tmp_path / "made" / "here")
    assert said.items() >= description.items()
    assert not loaded.training
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(loaded.to(memory_format=torch.channels_last)(images), model.eval()(images))
    assert {n: v.shape for n, v in loaded.state_dict().items()} == {
        n: v.shape for n, v in model.state_dict().items()
    }


FACTS = {"channel_names": ["a", "b"], "threshold": 0.5, "fold": 0}


def test_a_model_folder_runs_no_plugin_that_it_names(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("raise SystemExit")
    config = RunConfig(model="brought", plugins=(str(plugin),)).model_dump(mode="json")
    save_model(tmp_path, nn.Conv2d(2, 1, 1), {"config": config, "channels": 2, **FACTS})
    with pytest.raises(UnknownName, match=r"trained with mine\.py, .* no model named 'brought'.*--plugin FILE"):
        load_model(tmp_path)


def test_encoder_weights_are_not_fetched_again(tmp_path):
    """The description says 'imagenet', and this machine is offline: loading must not ask for them."""
    made = registry.model["unet"].bind({"encoder": "resnet18"})(3)
    config = RunConfig(model={"name": "unet", "encoder": "resnet18", "weights": "imagenet"}).model_dump(
        mode="json"
    )
    save_model(tmp_path, made, {"config": config, "channels": 3, **FACTS})
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.encoder.conv1.weight, made.encoder.conv1.weight)


def edited(**changes):
    """An edit of `model.json` as in a folder of an earlier version, which has no digest."""

    def edit(folder):
        content = json.loads((folder / DESCRIPTION).read_text()) | changes
        del content["digest"]
        (folder / DESCRIPTION).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return edit


def configured(**changes):
    model = {"name": "unet", "base": 2, "depth": 1, **changes}
    return edited(config=RunConfig(model=model).model_dump(mode="json"))


def shortened(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no readable weights"),
        (shortened, "holds no readable weights"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "holds no readable weights"),
        (lambda folder: (folder / DESCRIPTION).unlink(), "cannot be read"),
        (lambda folder: (folder / DESCRIPTION).write_text("{"), "is not JSON"),
        (lambda folder: (folder / DESCRIPTION).write_text("[" * 9999), "nested too deeply"),
        (lambda folder: (folder / DESCRIPTION).write_text("[]"), "is not valid: the whole file"),
        (edited(config=...), "is not valid: config: Field required"),
        (edited(config=1), "is not valid: config"),
        (edited(config={"epochs": 3}), r"is not valid: config\.epochs"),
        (edited(channels="3"), "is not valid: channels"),
        (edited(channels=-1), "is not valid: channels"),
        (edited(channels=4), "the weights in .* do not fit the model"),
        (edited(channel_names=[]), "is not valid: channel_names"),
        (edited(channel_names="flair"), "is not valid: channel_names"),
        (edited(threshold=nan), "is not valid: threshold"),
        (edited(threshold=2), "is not valid: threshold"),
        (edited(fold="0"), "is not valid: fold"),
        (edited(models="5"), "is not valid: models"),
        (edited(patients={"salt": "a"}), r"is not valid: patients\.hashes"),
        (configured(base="wide"), "cannot be built: model 'unet': base = 'wide' is refused"),
        (configured(pseudo=1), "cannot be built: model 'unet' has no setting 'pseudo'"),
        (configured(base=4), "the weights in .* do not fit the model"),
        (configured(name="unett"), "cannot be built: no model named 'unett'"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence_that_names_it(tmp_path, described, damage, message):
    save_model(tmp_path, *described)
    damage(tmp_path)
    with pytest.raises(BenchError, match=message) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("change", [{"threshold": 0.6}, {"channel_names": ["b"]}, {"added": 1}])
def test_any_change_of_a_description_is_noticed_by_its_digest(tmp_path, described, change):
    save_model(tmp_path, *described)
    content = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(content | change))
    with pytest.raises(StoreError, match="has changed since it was written"):
        load_model(tmp_path)


def test_a_flipped_bit_or_a_nan_in_the_weights_is_refused(tmp_path, described):
    model, description = described
    save_model(tmp_path, model, description)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(StoreError, match="has changed since it was written"):
        load_model(tmp_path)
    model.head.bias.data[0] = torch.nan
    save_model(tmp_path, model, description)
    with pytest.raises(StoreError, match=r"the weights 'head\.bias' in .* are not finite"):
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
    assert json.loads((tmp_path / "second" / DESCRIPTION).read_text()).items() >= description.items()


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
