"""Components of others are tried before anything is trained, and a prediction that is not a number is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench import registry
from bench.config import Input
from bench.data.loader import SliceLoader
from bench.errors import BadSetting, TrainingError
from bench.inference.predict import Predictor
from bench.overrides import configure
from bench.training.experiment import resolve
from bench.types import Watch
from tests.fakes import tiny_pack

pytestmark = pytest.mark.usefixtures("cache")
SMALL = {"dataset.patients": 6, "dataset.size": 64, "split.folds": 2}


ARGUMENTS = {
    "model": "channels",
    "loss": "logits, target",
    "metric": "stack",
    "schedule": "progress, scores",
    "augmentation": "images, masks, draws",
    "split": "index",
    "dataset": "",
}
CHOICES = {
    "augmentation": {"augment": "tried"},
    "schedule": {"train.schedule": "tried"},
    "metric": {"evaluate.metrics": ["tried"]},
    "split": {"split": "tried", "split.folds": ...},
    "dataset": {"dataset": "tried", "dataset.patients": ..., "dataset.size": ...},
}


@pytest.fixture
def plugin(tmp_path):
    """Writes a component `tried`, from line 5 of a plugin file; returns settings that use it."""

    def write(kind: str, body: str, more: str = "") -> dict[str, object]:
        head = "import numpy as np\nimport torch\nfrom torch import nn, sigmoid\nfrom bench.registry import *\n"
        function = f"@{kind}\ndef tried({ARGUMENTS[kind]}{more}):\n    {body}\n"
        (tmp_path / "mine.py").write_text(head + (body if body.startswith("@") else function))
        settings = SMALL | {"plugins": [str(tmp_path / "mine.py")]} | CHOICES.get(kind, {kind: "tried"})
        return {key: value for key, value in settings.items() if value is not ...}

    yield write
    for components in registry.REGISTRIES.values():
        components.forget(f"bench_plugin_{tmp_path / 'mine.py'}")


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (
            "model",
            "return nn.Conv2d(2, 1, 1)",
            r"fails on images of \(2, 3, 64, 64\): RuntimeError: .* 3 chan",
        ),
        ("model", "return None", r"mine\.py, line 5\) returns NoneType\. It must return a `torch\.nn\.Module`"),
        ("model", "return 1 / 0", r"fails \(mine\.py, line 7\): ZeroDivisionError: .*Fix the plugin"),
        ("model", "return nn.LSTM(64, 64)", r"line 5\) fails on images of"),
        ("model", "return nn.Conv2d(channels, 2, 1)", r"returns \(2, 2, .*a logit per pixel"),
        ("model", "return nn.Conv2d(channels, 1, 2, 2)", r"returns \(2, 1, 32, 32\) for"),
        ("model", "return nn.AvgPool3d((3, 1, 1))", "output of the model 'tried' .* depends on no parameter"),
        ("loss", "return 0.5", r"mine\.py, line 5\) returns float\. .*the mean over"),
        ("loss", "return (logits - target) ** 2", r"line 5\) returns \(2, 1, 64, 64\)\."),
        ("loss", "return logits.mean().detach()", "without a gradient.*Do not detach"),
        ("loss", "return logits.sum() * torch.nan", "returns nan with a gradient"),
        ("loss", "@loss\nclass tried:\n    def __init__(self, a, b): pass", "returns tried. It takes logits"),
        ("loss", "return nn.functional.binary_cross_entropy(logits, target)", "takes logits, not probabilities"),
        ("metric", "return {}['hole']", r"fails \(mine\.py, line 7\): KeyError: 'hole'.*a `Stack`"),
        ("metric", "return 'good'", "'tried' .*fails: TypeError: it returns text. It takes a `Stack"),
        ("metric", "return None", "'tried' .*fails: TypeError: float.*It takes a `Stack`"),
        ("metric", "return stack.truth", "'tried' .*fails: .* It takes a `Stack`"),
        ("schedule", "return None", "train.schedule=tried fails: TypeError.*return a number"),
        ("schedule", "return scores[-1]", r"schedule 'tried' .*line 7\): IndexError"),
        ("augmentation", "return images", "'tried' .* must return two tensors"),
        ("augmentation", "return masks.hue", r"fails \(mine\.py, line 7\): AttributeError"),
        ("split", "return None", "split must return a list"),
        ("split", "return index['fold']", r"line 7\): KeyError: 'fold'\. Fix the plugin, or"),
        ("dataset", "raise OSError('no scans')", r"dataset 'tried' .*line 7\): OSError: no scans"),
    ],
)
def test_a_component_of_a_plugin_that_fails_is_refused_in_one_sentence(plugin, kind, body, message):
    with pytest.raises(BadSetting, match=message) as caught:
        resolve(configure(plugin(kind, body)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["np.float32(1)", "np.array(1.0)", "torch.tensor(1)", "float('nan')", "True"])
def test_a_metric_may_return_any_kind_of_number(plugin, value):
    resolve(configure(plugin("metric", f"return {value}")))


class Said(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


CONV = "return nn.Conv2d(channels, 1, width)"


@pytest.mark.parametrize(
    ("body", "more", "expected"),
    [
        (
            "return nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())",
            "",
            ["warning: all outputs of the model 'tried' (mine.py, line 5) are between 0 and 1."],
        ),
        (CONV, ", width=1", ["note: width of the model 'tried' (mine.py, line 5) is no setting,"]),
        (CONV, ", *, width=1", []),
    ],
)
def test_a_sigmoid_and_a_default_that_is_no_setting_are_reported(plugin, body, more, expected):
    watch = Said()
    resolve(configure(plugin("model", body, more)), watch=watch)
    assert len(watch.lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(watch.lines, expected, strict=True))


def test_a_positional_default_that_is_set_is_refused_with_the_way_to_write_it(plugin):
    settings = plugin("model", CONV, ", width=1") | {"model.width": 3}
    with pytest.raises(BadSetting, match=r"width is no setting of the model 'tried'.*Write `\*` before it"):
        resolve(configure(settings))


@pytest.mark.parametrize("setting", [{"evaluate.primary": "hd95_mm"}, {"evaluate.metrics": ["dice", "assd_mm"]}])
def test_millimetres_are_refused_where_the_size_of_a_pixel_is_unknown(setting):
    with pytest.raises(BadSetting, match=r"_mm' needs the size of a pixel.*such as hd95"):
        resolve(configure(SMALL | setting))


def test_a_crop_needs_the_size_that_it_is_resized_to():
    with pytest.raises(BadSetting, match=r"input\.crop=foreground .* --image-size 128"):
        resolve(configure(SMALL | {"input.crop": "foreground", "input.image_size": None}))


def test_a_batch_of_one_is_refused_behind_global_pooling_with_batch_norm():
    settings = SMALL | {"model.encoder": "tu-resnest14d"}
    assert resolve(configure(settings | {"train.batch_size": 2})).smallest_batch == 2
    with pytest.raises(BadSetting, match="unet needs a batch of 2 or more"):
        resolve(configure(settings | {"train.batch_size": 1}))


def test_a_prediction_that_is_not_a_number_is_refused_by_patient():
    model = nn.Conv2d(3, 1, 1)
    model.bias.data.fill_(torch.nan)
    predictor = Predictor([model], SliceLoader(tiny_pack(), Input(), torch.device("cpu")), 4)
    for predict in (predictor.probabilities, lambda rows: predictor.counts(rows, 0.5)):
        with pytest.raises(TrainingError, match=r"for P1 \(slice 1, 2 slices in all\) is not a number"):
            predict(np.array([5, 6]))
