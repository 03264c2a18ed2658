"""What the `bench data` commands print: an audit, a description, a pack."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.config import RunConfig
from bench.console import Display, console, frame_table
from bench.data.audit import Finding, audit, audit_source
from bench.data.describe import describe
from bench.data.pack import Pack, open_pack
from bench.errors import DataError
from bench.reports.dataset.figures import figures
from bench.reports.dataset.page import DPI, page
from bench.training.experiment import raw_pack, source_of

SHOWN = 5  # names a finding prints; the rest is counted


def check(config: RunConfig) -> bool:
    """Audit the data set of a configuration and print what was found. Gives whether it can be used.

    LGG's layout is looked at file by file; of others, what their loader has found.
    """
    with Display() as display:

        def tick(done: int, of: int) -> None:
            display.bar(done, of, "checking")

        if config.dataset.name == "lgg":
            found = audit(Path(config.dataset.params["folder"]), tick=tick)
        else:
            found = audit_source(source_of(config), tick=tick)
    out = console()
    for name, value in found.facts.items():
        out.print(f"{name.replace('_', ' ')}: {value}", markup=False)
    for kind, findings in (("warning", found.warnings), ("error", found.errors)):
        for finding in findings:
            out.print(f"{kind} [{finding.code}] {finding.message}{_where(finding)}", markup=False, soft_wrap=True)
    errors, warnings = len(found.errors), len(found.warnings)
    out.print(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return not found.errors


def show_description(config: RunConfig, out: Path | None, html: Path | None) -> None:
    """Print the tables of a data set; `out` gets tables (CSV) and figures (PNG), `html` all of it as one page."""
    if html is not None and html.is_dir():
        raise DataError(f"{html} is a folder. Give --html the name of a file, such as {html / 'data.html'}.")
    pack = _packed(config)
    about = describe(pack)
    screen = console()
    for name, frame in (
        ("counts", about.counts),
        ("institutions", about.institutions),
        ("tumour size in pixels", about.tumours),
        ("grey levels, median over patients", _by_channel(about.intensity)),
        ("tumour against the rest of the head, median over patients", _by_channel(about.contrast)),
    ):
        screen.print(frame_table(name, frame))
    if out is None and html is None:
        screen.print("every patient and the figures: add --out FOLDER, or --html FILE for one page")
        return
    drawn = figures(pack, about)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, frame in about.tables.items():
            frame.to_csv(out / f"{name}.csv")
        for name, figure in drawn.items():
            figure.savefig(out / f"{name}.png", dpi=DPI)
        screen.print(f"tables and figures are in {out}", markup=False)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(pack, about, drawn), encoding="utf-8")
        screen.print(f"the page is {html} ({html.stat().st_size / 2**20:.1f} MiB)", markup=False)


def _by_channel(table: pd.DataFrame) -> pd.DataFrame:
    """Medians over patients."""
    return table.groupby(level="channel", sort=False).median()


def show_pack(config: RunConfig, *, verify: bool) -> None:
    """Pack a data set, or find its pack again, and print what it is."""
    pack = _packed(config)
    if verify:
        open_pack(pack.folder, verify=True)
    size = (pack.images.nbytes + pack.masks.nbytes) / 2**20
    shape = "x".join(map(str, pack.images.shape[1:]))
    console().print(
        f"{pack.folder}: {len(pack.cases)} patients, {len(pack.index)} slices of {shape}, {size:.0f} MiB, "
        f"key {pack.manifest.key}{', verified' if verify else ''}",
        markup=False,
        soft_wrap=True,
    )


def _packed(config: RunConfig) -> Pack:
    with Display() as display:
        pack = raw_pack(config, tick=display.packing)
        for note in pack.manifest.notes:
            display.say(f"note: {note}")
    return pack


def _where(finding: Finding) -> str:
    """The files and patients that the message itself does not name."""
    others = [name for name in finding.where if name not in finding.message]
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return f" ({', '.join(others[:SHOWN])}{more})" if others else ""
