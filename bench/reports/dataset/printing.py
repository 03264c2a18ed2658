"""The output of the `bench data` commands: an audit, a description, a pack."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from bench.config import RunConfig
from bench.console import Display, console, print_text
from bench.data.audit import Audit, audit, audit_dataset
from bench.data.audit_layout import Finding
from bench.data.cache import clear_cache, list_cache
from bench.data.describe import Description, describe, median_over_patients
from bench.data.pack import Pack, open_pack
from bench.errors import DataError
from bench.files import cache_folder
from bench.formatting import duration, join_first
from bench.outputs import check_outputs, new_output, write_output
from bench.reports.dataset.figures import draw_figures
from bench.reports.dataset.page import DPI, render_page
from bench.text_table import print_frame
from bench.training.experiment import raw_pack, source_of

DAY = 86400.0  # seconds


def audit_config(config: RunConfig) -> Audit:
    """Audit the data set of a configuration.

    The files of LGG are checked one by one; for other data sets, what their loader returns is checked.
    """
    with Display() as display:
        tick = partial(display.bar, what="checking")
        if config.dataset.name == "lgg":
            return audit(Path(config.dataset.params["folder"]), tick=tick)
        return audit_dataset(partial(source_of, config), tick=tick)


def print_audit(report: Audit, *, verbose: bool = False) -> None:
    """Print the findings of an audit. Those of one kind share a line, unless `verbose`."""
    for name, value in report.facts.items():
        if value in ({}, []):
            continue  # nothing was read
        print_text(f"{name.replace('_', ' ')}: {_fact(value, verbose)}")
    shortened = False
    for kind, findings in (("warning", report.warnings), ("error", report.errors)):
        for code in dict.fromkeys(finding.code for finding in findings):
            alike = [finding for finding in findings if finding.code == code]
            shown = alike if verbose else alike[:1]
            shortened |= len(alike) > len(shown)
            for finding in shown:
                others = alike[len(shown) :]
                more = f" And {len(others)} more: {_names(others)}." if others else ""
                print_text(f"{kind} [{code}] {finding.message}{_unnamed(finding)}{more}")
    errors, warnings = len(report.errors), len(report.warnings)
    every = "; --verbose prints each" if shortened else ""
    print_text(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}{every}")


def describe_config(config: RunConfig, out: Path | None, html: Path | None) -> Description:
    """Describe the data set of a configuration.

    Writes all tables (CSV) and figures (PNG) to the folder `out`, and one page with all of it to the file `html`.
    """
    if html is not None and html.is_dir():
        raise DataError(f"{html} is a folder. Give --html the name of a file, such as {html / 'data.html'}.")
    check_outputs([html] if html else [])
    pack = _packed(config)
    with Display() as display, display.doing("measuring every patient"):
        description = describe(pack)
    if out is None and html is None:
        return description
    with Display() as display, display.doing("drawing figures"):
        figures = draw_figures(pack, description)
    if out is not None:
        csvs = {out / f"{name}.csv": frame for name, frame in description.tables.items()}
        pngs = {out / f"{name}.png": figure for name, figure in figures.items()}
        check_outputs([*csvs, *pngs])
        for path, frame in csvs.items():
            write_output(path, frame.to_csv())
        for path, figure in pngs.items():
            with new_output(path) as png:
                figure.savefig(png, dpi=DPI)
    if html is not None:
        write_output(html, render_page(pack, description, figures))
    return description


def print_description(
    description: Description, out: Path | None, html: Path | None, *, wide: bool = False
) -> None:
    """Print the tables of a data set, the columns that fit the terminal or all, and where the files are."""
    screen, noun = console(), description.noun
    for name, frame in (
        ("counts", description.counts),
        ("institutions", description.institutions),
        (f"{noun} size in pixels", description.tumours),
        ("grey levels, median over patients", median_over_patients(description.intensity)),
        (
            f"{noun} against the rest of the {description.pixel_counts.region}, median over patients",
            median_over_patients(description.contrast),
        ),
    ):
        print_frame(screen, name, frame, wide=wide)
        screen.print()
    if out is None and html is None:
        print_text("For the table of patients and the figures, add --out FOLDER, or --html FILE for one page.")
    if out is not None:
        print_text(f"tables and figures are in {out}")
    if html is not None:
        print_text(f"the page is {html} ({html.stat().st_size / 2**20:.1f} MiB)")


def description_values(description: Description) -> dict[str, object]:
    """Return all tables of a description as lists of rows."""
    return {name: frame.reset_index().to_dict("records") for name, frame in description.tables.items()}


def show_pack(config: RunConfig, *, verify: bool) -> None:
    """Pack a data set, or find its existing pack, and print a summary. `verify` compares checksums."""
    pack = _packed(config)
    if verify:
        with Display() as display:
            open_pack(pack.folder, verify=True, tick=partial(display.bar, what="verifying"))
    size = (pack.images.nbytes + pack.masks.nbytes) / 2**20
    shape = "x".join(map(str, pack.images.shape[1:]))
    text = f"{pack.folder}: {len(pack.cases)} patients, {len(pack.index)} slices of {shape}, {size:.0f} MiB"
    text += f", key {pack.manifest.key}{', verified' if verify else ''}"
    print_text(text)


def show_cache(*, clear: bool) -> None:
    """Print what is in the cache with its size and age. `clear` removes what no running process needs."""
    removed = {entry.path: entry.size for entry in (clear_cache() if clear else ())}
    entries = list_cache()
    ages = [duration(e.age) if e.age < 2 * DAY else f"{e.age / DAY:.0f} days" for e in entries]
    rows = [(e.kind, e.path.name, e.size / 2**20, age, e.kept) for e, age in zip(entries, ages, strict=True)]
    title = f"{cache_folder()}: {sum(entry.size for entry in entries) / 2**20:.0f} MiB"
    frame = pd.DataFrame(rows, columns=["what", "name", "MiB", "age", "kept"])
    print_frame(console(), title, frame, wide=True)
    if clear:
        print_text(f"removed {len(removed)} entries, {sum(removed.values()) / 2**20:.0f} MiB")


def _packed(config: RunConfig) -> Pack:
    with Display() as display:
        pack = raw_pack(config, tick=display.packing)
        for note in pack.manifest.notes:
            display.say(f"note: {note}")
    return pack


def _fact(value: object, verbose: bool) -> str:
    """Return a fact of an audit in words: counts by name, a list, or the least, the median and the most."""
    if isinstance(value, tuple):
        least, median, most = value
        return f"{least:g} to {most:g}, median {median:g}"
    if isinstance(value, dict):
        value = [f"{name} ({count})" for name, count in value.items()]
    if isinstance(value, list):
        return join_first(value, len(value) if verbose else 5)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _unnamed(finding: Finding) -> str:
    """List the files and patients that the message itself does not name."""
    others = [name for name in finding.where if name not in finding.message]
    return f" ({join_first(others)})" if others else ""


def _names(findings: list[Finding]) -> str:
    """Return what each finding is about: its file or patient."""
    return join_first(
        dict.fromkeys(finding.where[0] if finding.where else finding.message.rstrip(".") for finding in findings)
    )
