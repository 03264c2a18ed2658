"""Which files a result depends on: a change to one of them forbids resuming a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.config import RunConfig
from bench.tracking.resume import PRINTING, RESULT_FOLDERS, digest, hash_code

PACKAGE = Path(bench.__file__).parent


def test_results_depend_on_shared_modules_and_on_the_folders_below_tracking():
    files = hash_code(RunConfig())
    assert {
        "config.py",
        "stats.py",
        "data/loader.py",
        "models/unet.py",
        "training/losses/cross_entropy.py",
    } <= files.keys()
    folders = {name.partition("/")[0] for name in files if "/" in name}
    assert folders == set(RESULT_FOLDERS)
    assert {path.name for path in PACKAGE.glob("*.py")} - files.keys() == set(PRINTING)


def test_results_of_a_search_also_depend_on_its_folder():
    own, search = hash_code(RunConfig()), hash_code(RunConfig(), also=("experiments/search",))
    assert "experiments/search/objective.py" in search.keys() - own.keys()
    assert all(name.startswith("experiments/search/") for name in search.keys() - own.keys())


def test_results_depend_on_the_content_of_plugins(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("a = 1")
    before = hash_code(RunConfig(plugins=(str(plugin),)))
    plugin.write_text("a = 2")
    after = hash_code(RunConfig(plugins=(str(plugin),)))
    assert {name for name in after if after[name] != before[name]} == {str(plugin)}
    assert digest(after) != digest(before)


@pytest.mark.slow
def test_results_depend_on_every_module_that_training_imports():
    script = (
        "import sys, bench.training.cross_validation, bench.data.datasets.lgg, bench.training.losses.overlap\n"
        "for name in sorted(sys.modules):\n"
        "    if name.startswith('bench.'): print(name.removeprefix('bench.').replace('.', '/'))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    imported = {f"{name}.py" for name in output.split() if (PACKAGE / f"{name}.py").exists()}
    assert "training/loop.py" in imported
    assert imported - hash_code(RunConfig()).keys() <= set(PRINTING)
