"""The names of all encoders, read from the sources of smp and timm, because importing these takes seconds."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

_SMP = re.compile(r'^(?:\w+_encoders = \{|    "([\w.-]+)": \{)', re.MULTILINE)
_TIMM = re.compile(r"^@register_model\s+def (\w+)", re.MULTILINE)


def list_encoders() -> list[tuple[str, str]]:
    """Return every encoder as (name, source), where the source is 'smp' or 'timm (tu-)'."""
    smp = _find("segmentation_models_pytorch", "encoders", _SMP)
    return [*((n, "smp") for n in smp), *((f"tu-{n}", "timm (tu-)") for n in _find("timm", "models", _TIMM))]


def _find(package: str, folder: str, pattern: re.Pattern[str]) -> list[str]:
    spec = find_spec(package)
    sources = (Path(spec.origin).parent / folder).glob("*.py") if spec and spec.origin else ()
    return sorted({name for source in sources for name in pattern.findall(source.read_text()) if name})
