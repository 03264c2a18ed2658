"""Signatures of components: read from the source, without the libraries that a component computes with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import registry
from bench.errors import BadSetting
from bench.signatures import declare_components, is_declared, load_function

SOURCE = '''
"""A module whose import fails."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from bench.errors import BadSetting
from bench.registry import loss
import no_such_library

SMALLEST = 3
Share = Annotated[float, Field(ge=0, le=1)]


def check_even(value: int) -> int:
    if value % 2:
        raise BadSetting(f"{value} is odd; the least is {SMALLEST}")
    return value


def computed() -> float:
    return no_such_library.pi


@loss(least=SMALLEST + 1)
def declared_loss(
    logits: no_such_library.Tensor,
    target: "no_such_library.Tensor",
    power: int = 2,
    *,
    share: Share = 0.5,
    even: Annotated[int, AfterValidator(check_even)] = 4,
) -> no_such_library.Tensor:
    """Measures nothing.

    `share` is a share.
    """
    return no_such_library.compute(logits)


@computed
def not_a_component(): ...
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working folder; what it registers is removed afterwards."""
    (tmp_path / "declared_only.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "declared_only"
    registry.loss.forget("declared_only")
    sys.modules.pop("declared_only", None)


def test_a_component_is_declared_without_importing_its_module(module):
    declare_components(module)
    entry = registry.loss["declared_loss"]
    assert module not in sys.modules
    assert entry.doc == "Measures nothing.\n\n`share` is a share."
    assert entry.facts == {"least": 4}
    assert entry.fixed == ("power",)
    assert entry.module == module
    assert entry.settings({"share": "0.25"}) == {"share": 0.25, "even": 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 2}, "share = 2 is refused: input should be less than or equal to 1"),
        ({"even": 5}, "5 is odd; the least is 3"),
        ({"shape": 1}, "has no setting 'shape'; it has share, even"),
    ],
)
def test_settings_of_a_declared_component_are_validated(module, settings, message):
    declare_components(module)
    with pytest.raises(BadSetting, match=message):
        registry.loss["declared_loss"].settings(settings)


def test_the_function_of_a_declared_component_is_imported_when_needed(module, tmp_path):
    declare_components(module)
    entry = registry.loss["declared_loss"]
    assert is_declared(entry.declared)
    with pytest.raises(NotImplementedError):
        entry.declared(1, 2)
    (tmp_path / "no_such_library.py").write_text("pi = 3\ndef compute(x): return x + 1\n")
    source = SOURCE.replace("@computed\n", "")
    (tmp_path / "declared_only.py").write_text(source)
    assert entry.bind({})(1, 2) == 2
    assert registry.loss["declared_loss"].declared is sys.modules[module].declared_loss
    assert load_function(entry.fn) is entry.fn
    sys.modules.pop("no_such_library")


def in_new_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


READ_ALL = """
import json, sys
from bench.registry import REGISTRIES
from bench.settings import describe_field
def state():
    return {
        f"{kind.kind} {name}": [
            entry.doc, repr(entry.facts), list(entry.fixed), entry.built_in, repr(entry.settings({
            name: "x" for name in ("folder", "path") if name in entry.schema.model_fields})),
            {n: f"{describe_field(f)} {f.description}" for n, f in entry.schema.model_fields.items()},
        ]
        for kind in REGISTRIES.values() for name in kind for entry in [kind[name]] if name != "albumentations"
    }
declared = state()
heavy = sorted({"torch", "numpy", "pandas", "timm", "cv2", "matplotlib", "mlflow"} & set(sys.modules))
"""


def test_settings_of_all_components_are_read_without_heavy_imports():
    components, heavy = json.loads(in_new_process(f"{READ_ALL}print(json.dumps([len(declared), heavy]))"))
    assert components > 60
    assert heavy == []


@pytest.mark.slow
def test_declared_components_equal_the_imported_ones():
    code = """
for kind in REGISTRIES.values():
    for name in kind:
        kind[name].fn
        assert kind[name].declared is kind[name].fn, name
different = [name for name, each in state().items() if each != declared[name]]
print(json.dumps([len(declared), different]))
"""
    assert json.loads(in_new_process(READ_ALL + code))[1] == []
