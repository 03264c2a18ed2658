"""What the site has besides the files of docs/: references generated from the code, and the pages of results.

MkDocs calls `on_files` and `on_page_markdown`. Links to benchmarks/ are written as the repository needs them.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
RESULTS = {".md", ".png", ".jpg", ".csv"}
COMMANDS = "What `bench COMMAND --help` prints, for every command."
SETTINGS = "Given as `--set NAME=VALUE`, or in a YAML file (`--config`). [Components](components.md) have more."
COMPONENTS = "What `bench list` and `bench show` print. Encoders are many: `bench list encoders`."


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the pages of results."""
    from mkdocs.structure.files import File

    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*")):
        if path.suffix in RESULTS:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links between docs/ and results at their places in the site; MkDocs knows no escaped `<`."""
    to_results = re.sub(r"\]\(\.\./((?:\.\./)*)benchmarks/", r"](\1benchmarks/", markdown)
    return re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", to_results).replace("\\<", "&lt;")


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown, with its stored outputs and a link to the file."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
        shown = filter(None, map(notebook_output, cell.get("outputs", ())))
        for is_page, outputs in groupby(shown, lambda text: text.startswith("<")):
            text = "\n".join(outputs)
            parts.append(text if is_page else f"```text\n{text}\n```")
    title, *others = parts
    return "\n\n".join((title, f"[The notebook as a file]({path.name})", *others)) + "\n"


def notebook_output(output: dict[str, Any]) -> str:
    """Return an output as a picture or table in HTML, or else as lines of text; '' if it is empty."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="output of the cell above" src="data:image/png;base64,{data["image/png"].strip()}">'
    page = "".join(data.get("text/html", ""))
    if "<table" in page:  # without its own style
        return re.sub(r"<table.*?>", "<table>", page[page.index("<table") : page.rindex("</table>")]) + "</table>"
    text = "".join(data.get("text/plain", output.get("text", ""))).strip()
    return "\n".join(textwrap.fill(line, 96) for line in text.splitlines())


def reference_pages() -> dict[str, str]:
    """Return the Markdown of the reference, by the name of the page."""
    tracking = (ROOT / "bench" / "tracking" / "README.md").read_text()
    return {
        "commands": f"# Commands\n\n{COMMANDS}\n\n" + "\n".join(command_sections()),
        "settings": f"# Settings\n\n{SETTINGS}\n\n" + "\n".join(setting_sections()),
        "components": f"# Components\n\n{COMPONENTS}\n\n" + "\n".join(component_sections()),
        "mlflow": "# What a run leaves in MLflow"
        + tracking.partition("# Reference: what runs leave in MLflow")[2],
    }


def command_sections() -> Iterator[str]:
    """Yield one section for each command: its help, its arguments and its options."""
    from bench.cli import app

    def walk(command: Any, name: str) -> Iterator[str]:
        for child, found in getattr(command, "commands", {}).items():
            yield from walk(found, f"{name} {child}")
        if not hasattr(command, "commands"):
            yield f"## {name}\n\n{help_text(command.help)}\n"
            rows = [row for parameter in command.params if (row := parameter_row(parameter))]
            yield table(("option", "default", "meaning"), rows)

    yield from walk(typer.main.get_command(app), "bench")


def help_text(text: str) -> str:
    """Return the help of a command as Markdown: its paragraphs, unwrapped."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def parameter_row(parameter: Any) -> tuple[str, str, str] | None:
    if parameter.name == "help":
        return None
    is_argument = parameter.param_type_name == "argument"
    names = parameter.name.upper() if is_argument else ", ".join((*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    shown = "required" if parameter.required else "" if default in (None, False, ()) else str(default)
    return f"`{names}`", shown, parameter.help or ""


def setting_sections() -> Iterator[str]:
    """Yield one section for each group of the settings that every run has."""
    from bench.reference import Setting, run_settings

    groups: dict[str, list[Setting]] = {}
    for setting in run_settings():
        group, dot, _ = setting.name.partition(".")
        groups.setdefault(group if dot else "Choices, and the run itself", []).append(setting)
    for group, settings in groups.items():
        yield f"## {group}\n"
        rows = [(f"`{s.name}`", s.takes, default_of(s), s.meaning) for s in settings]
        yield table(("setting", "takes", "default", "meaning"), rows)


def component_sections() -> Iterator[str]:
    """Yield one section for each kind of component, with a part for each component."""
    from bench.reference import component_settings
    from bench.registry import REGISTRIES

    for kind, registry in REGISTRIES.items():
        yield f"## {kind}\n"
        for name in registry:
            yield f"### {name}\n\n{help_text(registry[name].doc)}\n"
            rows = [(f"`{s.name}`", s.takes, default_of(s)) for s in component_settings(registry[name])]
            yield table(("setting", "takes", "default"), rows)


def default_of(setting: Any) -> str:
    from bench.overrides import written

    return "required" if setting.default is ... else f"`{written(setting.default)}`"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table, empty without rows."""
    if not rows:
        return ""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
