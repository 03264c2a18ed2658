"""The reference in bench/tracking/README.md lists exactly what runs leave in MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bench
from bench import registry
from bench.derived.rescore import rescore
from bench.experiments.run import execute
from bench.metrics.classification import SCORES
from bench.overrides import configure
from bench.tracking import Store, Tag, connect, find_folds, find_run
from tests.fakes import SMALL, inside, make_home

PACKAGE = Path(bench.__file__).parent
README = (PACKAGE / "tracking" / "README.md").read_text()
PRESENCE = {
    "name": "calls",
    "dataset": {"name": "phantom", **SMALL},
    "split.folds": 3,
    "model": {"name": "classifier", "encoder": "resnet18", "weights": None},
    "train": {"epochs": 1, "batch_size": 4},
}
WILDCARDS = {"metric": "|".join(registry.metric), "score": "|".join(SCORES)}  # any other: text without a slash


@dataclass(frozen=True)
class Entry:
    """One name of a table of the reference."""

    section: str
    name: str
    runs: frozenset[str]

    def matches(self, section: str, name: str) -> bool:
        parts = re.split(r"<(\w+)>", self.name)
        pattern = "".join(
            f"({WILDCARDS.get(part, '[^/]+')})" if place % 2 else re.escape(part)
            for place, part in enumerate(parts)
        )
        return section == self.section and re.fullmatch(pattern, name) is not None


def read_reference() -> Iterator[Entry]:
    for section in README.partition("# Reference")[2].split("\n## ")[1:]:
        title = "Files" if section.startswith(("Tables", "Images")) else section.partition("\n")[0]
        for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
            names, runs, _ = row.split(" | ", 2)
            for name in re.findall("`([^`]+)`", names):
                yield Entry(title, name, frozenset(runs.split(", ")))


REFERENCE = list(read_reference())


def artifacts(store: Store, run_id: str, folder: str | None = None) -> Iterator[str]:
    for file in store.client.list_artifacts(run_id, folder):
        if file.is_dir:
            yield from artifacts(store, run_id, file.path)
        else:
            yield file.path


def logged_names(store: Store, run: Any) -> dict[str, set[str]]:
    return {
        "Tags": set(run.data.tags),
        "Params": set(run.data.params),
        "Metrics": set(run.data.metrics),
        "Files": set(artifacts(store, run.info.run_id)),
    }


@pytest.fixture(scope="module")
def logged(template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, set[str]]]]:
    """What a segmentation run, a presence run, a rescored run and their folds have logged, by kind of run."""
    home = make_home(tmp_path_factory.mktemp("home"), template, "outlines")
    with pytest.MonkeyPatch.context() as patch:
        inside(home, patch)
        execute(configure(PRESENCE), quiet=True)
        rescore("outlines", name="rescored")
    store = connect(home.uri)
    found = []
    for name, kind in (("outlines", "parent"), ("calls", "parent"), ("rescored", "derived")):
        run = find_run(store, name)
        found += [(kind, logged_names(store, run))]
        found += [("fold", logged_names(store, fold)) for fold in find_folds(store, run).values()]
    return found


@pytest.mark.slow
def test_everything_that_a_run_logs_is_in_the_reference(logged):
    missing = {
        (kind, section, name)
        for kind, sections in logged
        for section, names in sections.items()
        for name in names
        if not any(e.matches(section, name) and e.runs & {kind, "all"} for e in REFERENCE)
    }
    assert not missing


@pytest.mark.slow
def test_everything_in_the_reference_is_logged_or_in_the_code(logged):
    source = "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))

    def is_logged(entry: Entry) -> bool:
        return any(
            entry.runs & {kind, "all"}
            and any(entry.matches(entry.section, name) for name in sections[entry.section])
            for kind, sections in logged
        )

    def is_in_the_code(entry: Entry) -> bool:
        return all(part in source for part in re.split(r"<\w+>|[/.]", entry.name))

    assert not [entry for entry in REFERENCE if not is_logged(entry) and not is_in_the_code(entry)]


def test_the_reference_lists_every_tag():
    tags = {value for name, value in vars(Tag).items() if name.isupper() and not value.endswith(".")}
    assert not [tag for tag in tags if not any(entry.matches("Tags", tag) for entry in REFERENCE)]
