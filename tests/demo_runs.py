"""Tiny real runs on a phantom, and its folder, for the tests of the demo."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app

SMALL = {"patients": 6, "size": 32, "slices": 6, "institutions": 2}
SHORT = ["--folds", "3", "--batch-size", "4", "--lr", "0.01", "--quiet"]


@dataclass(frozen=True)
class Home:
    """A folder with a store, a phantom that the runs were made on, and one of other patients."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlruns' / 'mlflow.db'}"

    @property
    def phantom(self) -> Path:
        return self.folder / "phantom"

    @property
    def environment(self) -> dict[str, str]:
        return {"BENCH_CACHE": str(self.folder / "cache"), "MLFLOW_TRACKING_URI": self.uri}


def make_home(folder: Path, template: Path, *names: str) -> Home:
    """A run of each name: of three folds and two epochs, each with another seed."""
    home = Home(folder)
    shutil.copytree(template, folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in home.environment.items():
            patch.setenv(key, value)
        patch.chdir(folder)
        _bench("data", "phantom", home.phantom, *_sets("", SMALL))
        for seed, name in enumerate(names):
            train(name, "--seed", seed)
    return home


def train(name: str, *more: object) -> None:
    """One run on the phantom, in the store of the environment."""
    model = {"base": 4, "depth": 2}
    _bench("run", *_sets("dataset.", SMALL), *_sets("model.", model), *SHORT, "--epochs", 2, "--name", name, *more)


def inside(home: Home, patch: pytest.MonkeyPatch) -> None:
    """Work in this home."""
    for key, value in home.environment.items():
        patch.setenv(key, value)
    patch.chdir(home.folder)


def server_environment(home: Home) -> dict[str, str]:
    return os.environ | home.environment | {"OMP_NUM_THREADS": "1"}


def _sets(prefix: str, values: dict[str, int]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{prefix}{key}={value}")]


def _bench(*words: object) -> None:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
