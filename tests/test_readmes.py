"""Every folder of the package says what belongs there, shortly, and names only files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_documentation import load_hooks

PACKAGE = Path(__file__).parents[1] / "bench"
FOLDERS = sorted({file.parent for file in PACKAGE.rglob("*.py")})
LONG = {PACKAGE: 60, PACKAGE / "tracking": 250}  # how the package is built; the reference of all that a run logs


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE.parent)))
def test_the_readme_of_a_folder_is_short_and_names_files_that_exist(folder):
    text = (folder / "README.md").read_text()
    assert len(text.splitlines()) <= LONG.get(folder, 20)
    named = re.findall(r"`([\w/]+\.(?:py|css|js))`", text)
    assert named
    assert [
        name for name in named if not any((root / name).exists() for root in (folder, PACKAGE, PACKAGE.parent))
    ] == []


def test_links_between_pages_and_results_are_those_of_the_site():
    page = load_hooks().on_page_markdown
    assert page("[a](../../benchmarks/results/x.md)") == "[a](../benchmarks/results/x.md)"
    assert page("[n](../../../docs/numbers.md#ties) \\<0.5") == "[n](../../../numbers.md#ties) &lt;0.5"
