"""The output of the `bench data` commands: an audit, a description, a pack."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd

from bench.config import RunConfig
from bench.console import Display, console, frame_table
from bench.data.audit import audit, audit_dataset
from bench.data.audit_layout import Finding
from bench.data.cache import clear_cache, list_cache
from bench.data.describe import describe, median_over_patients
from bench.data.pack import Pack, open_pack
from bench.errors import DataError
from bench.files import cache_folder
from bench.formatting import duration, join_first
from bench.outputs import check_outputs, new_output, write_output
from bench.reports.dataset.figures import draw_figures
from bench.reports.dataset.page import DPI, render_page
from bench.training.experiment import raw_pack, source_of

DAY = 86400.0  # seconds


def show_audit(config: RunConfig, *, verbose: bool = False) -> bool:
    """Audit the data set of a configuration and print the findings. Return whether the data set can be used.

    The files of LGG are checked one by one; for other data sets, what their loader returns is checked. Findings of
    one kind share a line, unless `verbose`.
    """
    with Display() as display:
        tick = partial(display.bar, what="checking")
        if config.dataset.name == "lgg":
            report = audit(Path(config.dataset.params["folder"]), tick=tick)
        else:
            report = audit_dataset(partial(source_of, config), tick=tick)
    out = console()
    for name, value in report.facts.items():
        out.print(f"{name.replace('_', ' ')}: {_fact(value, verbose)}", markup=False, soft_wrap=True)
    shortened = False
    for kind, findings in (("warning", report.warnings), ("error", report.errors)):
        for code in dict.fromkeys(finding.code for finding in findings):
            alike = [finding for finding in findings if finding.code == code]
            shown = alike if verbose else alike[:1]
            shortened |= len(alike) > len(shown)
            for finding in shown:
                others = alike[len(shown) :]
                more = f" And {len(others)} more: {_names(others)}." if others else ""
                text = f"{kind} [{code}] {finding.message}{_unnamed(finding)}{more}"
                out.print(text, markup=False, soft_wrap=True)
    errors, warnings = len(report.errors), len(report.warnings)
    every = "; --verbose prints each" if shortened else ""
    out.print(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}{every}")
    return not report.errors


def show_description(config: RunConfig, out: Path | None, html: Path | None) -> None:
    """Print the tables of a data set.

    Writes all tables (CSV) and figures (PNG) to the folder `out`, and one page with all of it to the file `html`.
    """
    if html is not None and html.is_dir():
        raise DataError(f"{html} is a folder. Give --html the name of a file, such as {html / 'data.html'}.")
    check_outputs([html] if html else [])
    pack = _packed(config)
    with Display() as display, display.doing("measuring every patient"):
        description = describe(pack)
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
        screen.print(frame_table(name, frame))
    if out is None and html is None:
        screen.print("For the table of patients and the figures, add --out FOLDER, or --html FILE for one page.")
        return
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
        screen.print(f"tables and figures are in {out}", markup=False)
    if html is not None:
        write_output(html, render_page(pack, description, figures))
        screen.print(f"the page is {html} ({html.stat().st_size / 2**20:.1f} MiB)", markup=False)


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
    console().print(text, markup=False, soft_wrap=True)


def show_cache(*, clear: bool) -> None:
    """Print what is in the cache with its size and age. `clear` removes what no running process needs."""
    removed = {entry.path: entry.size for entry in (clear_cache() if clear else ())}
    entries = list_cache()
    ages = [duration(e.age) if e.age < 2 * DAY else f"{e.age / DAY:.0f} days" for e in entries]
    rows = [(e.kind, e.path.name, e.size / 2**20, age, e.kept) for e, age in zip(entries, ages, strict=True)]
    out = console()
    title = f"{cache_folder()}: {sum(entry.size for entry in entries) / 2**20:.0f} MiB"
    out.print(frame_table(title, pd.DataFrame(rows, columns=["what", "name", "MiB", "age", "kept"])))
    if clear:
        out.print(f"removed {len(removed)} entries, {sum(removed.values()) / 2**20:.0f} MiB", markup=False)


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
