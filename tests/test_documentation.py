"""README.md and docs/: their commands run on tiny data, and what they name exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.data.datasets.phantom import write_phantom
from bench.reference import run_settings
from tests.fakes import SMALL, write_others, write_volume

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SET_UP = (
    "python -m venv .venv && . .venv/bin/activate && pip install . && bench run --model unet --encoder resnet50",
    "pip install '.[test]' && pytest -n 2",
)
OTHERS = ("python", ".", "pip", "pytest")  # programs that a block may call besides bench: CI calls them
SERVERS = (("ui",), ("demo",), ("data", "download"))  # never end, or need a network: their options are checked

# What makes a command small: an option that is given twice has the last value. FOLDERS are those in the home.
PHANTOM = SMALL | {"institutions": 3}
RUN = ["--epochs", "2", "--image-size", "32", "--batch-size", "4"]
SEARCH = ["--trials", "2", "--inner", "2", "--set", "train.epochs=1", "--set", "split.folds=3"]
SMALL_UNET = ["--set", "model.base=4", "--set", "model.depth=2"]
SMALLER = {"resnet50": "resnet18", "train.freeze_epochs=5": "train.freeze_epochs=1"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    run: bool
    language: str
    text: str

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command, as a shell splits them."""
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for token in (*lexer, "&&"):
                if token not in ("&&", ";"):
                    words.append(token)
                elif words:
                    yield words
                    words = []


def blocks_of(page: Path, *languages: str) -> list[Block]:
    found = BLOCK.findall(page.read_text())
    return [Block(page, not mark, language, text) for mark, language, text in found if language in languages]


SHELL = [block for page in PAGES for block in blocks_of(page, "bash")]
COMMANDS = [words for block in SHELL for words in block.commands()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_readme_is_short_and_holds_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert all(f"\n{command}\n" in text for command in SET_UP)


def test_every_block_has_a_language_and_few_are_not_run():
    languages = {language for page in PAGES for _, language, _ in BLOCK.findall(page.read_text())}
    assert languages <= {"bash", "python", "yaml", "text"}
    assert sum(not block.run for block in SHELL) <= 3
    assert {words[0] for block in SHELL if block.run for words in block.commands()} <= {"bench", *OTHERS}


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "bench"], ids=" ".join)
def test_every_option_of_a_shown_command_exists(words):
    command, rest = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_parser(command.context_class(command)).parse_args(list(rest))  # raises for an unknown option


def test_every_extra_that_a_page_installs_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    shown = {name for page in PAGES for name in re.findall(r"(?:'\.|medseg-bench)\[([\w,]+)\]", page.read_text())}
    assert {extra for names in shown for extra in names.split(",")} <= set(extras)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_links_or_names_exists(page):
    text = page.read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link}
    generated = {f"{name}.md" for name in load_hooks().reference_pages()}
    missing = {link for link in links - {""} if not (page.parent / link).exists()}
    assert {link for link in missing if Path(link).name not in generated} == set()
    named = re.findall(r"benchmarks/[\w/.-]+\.(?:yaml|md|csv|png)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def load_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_setting_and_component():
    pages = load_hooks().reference_pages()
    assert {"## bench run", "## bench data check", "## bench import"} <= set(pages["commands"].splitlines())
    assert "| `--epochs` |" in pages["commands"]
    assert {s.name for s in run_settings() if f"| `{s.name}` |" not in pages["settings"]} == set()
    headings = set(pages["components"].splitlines())
    assert {f"### {name}" for kind in registry.REGISTRIES.values() for name in kind} <= headings


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path):
    pytest.importorskip("material", reason="pip install 'medseg-bench[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(https?:)?//|<link[^>]+rel=\"?(?:stylesheet|preconnect)[^>]+//"
    )
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    assert [page for page in pages if loads.search(page.read_text())] == []


@pytest.fixture
def home(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with the data folders that the pages name, and an empty working folder with a store."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    (tmp_path / "clone" / "benchmarks").symlink_to(ROOT / "benchmarks")
    shutil.copytree(template, tmp_path / "clone" / "mlruns")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("bench_plugin_")]:
        for kind in registry.REGISTRIES.values():
            kind.forget(name)
        del sys.modules[name]


def write_pairs(folder: Path, *levels: Any) -> None:
    """Twelve images, two a patient, with a square of each grey level or colour in their masks."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(12):
        name = f"P{number // 2:02}_{number % 2}.png"
        mask = np.zeros((32, 32, *np.shape(levels[0])), np.uint8)
        for place, level in enumerate(levels):
            mask[4 + 8 * place : 10 + 8 * place, 6:20] = level
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / "images" / name)
        Image.fromarray(mask).save(folder / "masks" / name)


def write_volumes(folder: Path, first: int = 1) -> None:
    """Six volumes of two structures, for training and, without labels, for prediction."""
    rng = np.random.default_rng(first)
    for number in range(first, first + 6):
        labels = np.zeros((4, 32, 32), np.uint8)
        labels[1:3, 6:14, 8:24], labels[1:3, 14:22, 8:24] = 1, 2
        write_volume(
            folder / f"imagesTr/case_{number}.nii.gz", rng.integers(1, 256, labels.shape).astype(np.int16)
        )
        write_volume(folder / f"labelsTr/case_{number}.nii.gz", labels)
    shutil.copytree(folder / "imagesTr", folder / "imagesTs")
    names = '{"labels": {"background": 0, "anterior": 1, "posterior": 2}, "channel_names": {"0": "MRI"}}'
    (folder / "dataset.json").write_text(names)


def write_predictions(folder: Path) -> None:
    """The labels of `write_volumes`, as another tool would predict them."""
    write_volumes(folder.parent / "another")
    shutil.copytree(folder.parent / "another" / "labelsTr", folder)


FOLDERS = {
    "lgg": lambda folder: write_phantom(folder, **SMALL),
    "lgg-88": lambda folder: write_phantom(folder, **SMALL),
    "another-hospital": lambda folder: write_others(folder, **SMALL, seed=7),
    "polyps": lambda folder: write_pairs(folder, 255),
    "organs": lambda folder: write_pairs(folder, 1, 2, 3),
    "colours": lambda folder: write_pairs(folder, (255, 0, 0)),
    "Task03_Liver": write_volumes,
    "Task04_Hippocampus": write_volumes,
    "predictions": write_predictions,
    "Task04_other_hospital": lambda folder: write_volumes(folder, 71),
}


def made_small(words: list[str]) -> list[str]:
    """Return the words of a command of bench with a budget of seconds."""
    words = [SMALLER.get(word, word) for word in words]
    has = set(words)
    match words[0]:
        case "run":
            words += RUN
            if not {"--data", "--dataset"} & has:
                words += [word for key, value in PHANTOM.items() for word in ("--set", f"dataset.{key}={value}")]
            if not {"split=institutions", "split=file"} & has:
                words += ["--folds", "2"]
            if not {"--encoder", "--plugin", "classifier"} & has:
                words += SMALL_UNET
        case "search":
            words += [*SEARCH, *SMALL_UNET, "--set", "input.image_size=32"]
        case "suite" if "--budget" not in has:
            words += ["--budget", "smoke"]
    return words


def run_command(words: list[str], home: Path, *, one_fold: bool = False) -> None:
    """Run one command of a page; make the folder of the home that it names first."""
    if words[0] != "bench" or any(tuple(words[1 : 1 + len(server)]) == server for server in SERVERS):
        return
    for name in {word.split("/")[1] for word in words if word.startswith("~/")} & set(FOLDERS):
        if not (home / name).exists():
            FOLDERS[name](home / name)
    small = made_small(words[1:]) + (["--fold", "0"] if one_fold and words[1] == "run" else [])
    result = CliRunner().invoke(app, [re.sub("^~/", f"{home}/", word) for word in small])
    judged = words[1] == "gate" and isinstance(result.exception, SystemExit)  # 1: the candidate is worse
    assert result.exit_code == 0 or judged, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "bash", "python")], ids=name_of)
def test_the_commands_of_a_page_run_one_after_another(page, home):
    for block in blocks_of(page, "bash", "python", "yaml"):
        if named := re.match(r"# ([\w-]+\.(?:py|yaml))\n", block.text):
            Path(named[1]).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, name_of(page), "exec"), {})
        elif block.language == "bash" and block.run:
            for words in block.commands():
                run_command(words, home, one_fold=page.name == "training.md")  # its runs are not compared
