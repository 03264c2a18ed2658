"""Write the folds and images of a data set for other tools, and check folds that others made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import cast

import pandas as pd

from bench.config import RunConfig
from bench.console import Display, console
from bench.data.fingerprints import shared_images
from bench.data.mask_units import whole_units
from bench.data.nnunet_export import export_nnunet
from bench.data.pack import Pack
from bench.data.split_files import NNUNET_NOTE, SplitFormat, split_text
from bench.data.splits import split_hash, split_table
from bench.formatting import join_first
from bench.outputs import check_outputs, write_output
from bench.text_table import print_frame
from bench.training.checks import check_folds
from bench.training.experiment import find_folds, raw_pack, source_of
from bench.types import Fold


def export_split(config: RunConfig, how: SplitFormat, out: Path | None) -> Path:
    """Write the folds that a run with these settings has, and return the file. Raises `BenchError`."""
    with Display() as display:
        pack = raw_pack(config, tick=display.packing)
    folds = find_folds(config, pack)
    check_folds(pack, folds, leaky=False)
    name = split_hash(folds)
    path = out or Path("splits_final.json" if how == "nnunet" else f"split-{name}.{how}")
    note = path.with_suffix(".note.txt")
    check_outputs([path, note] if how == "nnunet" else [path])
    write_output(path, split_text(pack.index, folds, how, _image_names(config)))
    lines = [f"split {name}: {len(folds)} folds of {len(pack.cases)} patients are in {path}"]
    if how == "nnunet":
        write_output(note, f"Split {name} of {pack.manifest.dataset}, {len(folds)} folds. {NNUNET_NOTE}\n")
        lines += [f"{NNUNET_NOTE} This note is in {note}."]
    console().print("\n".join(lines), markup=False, soft_wrap=True)
    return path


def _image_names(config: RunConfig) -> dict[str, list[str]]:
    """Return the names of each patient's images in an export for nnU-Net."""
    names = defaultdict[str, list[str]](list)
    for unit in whole_units(source_of(config)):
        names[unit.case].append(unit.names[-1])
    return dict(names)


def export_data(config: RunConfig, out: Path) -> None:
    """Write the data set of a configuration for nnU-Net. Raises `BenchError`."""
    with Display() as display:
        source, pack = source_of(config), raw_pack(config, tick=display.packing)
        tick = partial(display.bar, what="writing", unit="cases")
        cases = export_nnunet(source, pack, out, tick=tick)
    text = (
        f"{cases} cases in nnU-Net's raw format are in {out}. nnU-Net expects it as a folder "
        "Dataset<number>_<name> of $nnUNet_raw; the folds are those of `bench split export --format nnunet`."
    )
    console().print(text, markup=False, soft_wrap=True)


def verify_split(config: RunConfig) -> bool:
    """Print what is wrong with the folds of a configuration, and who is in them. Return whether they can be used.

    Raises `BenchError` where they cannot be read at all.
    """
    with Display() as display:
        pack = raw_pack(config, tick=display.packing)
    folds, out = find_folds(config, pack), console()
    errors = list(_errors(pack, folds))
    for kind, sentences in (("warning", _warnings(pack, folds)), ("error", errors)):
        for sentence in sentences:
            out.print(f"{kind}: {sentence}", markup=False, soft_wrap=True)
    print_frame(out, "patients and slices of each part", count_parts(pack.index, folds).reset_index(), fixed=2)
    name = split_hash(folds)
    out.print(f"split {name}: {len(folds)} folds, {len(errors)} error{'s' * (len(errors) != 1)}", markup=False)
    return not errors


def count_parts(index: pd.DataFrame, folds: Sequence[Fold]) -> pd.DataFrame:
    """Return patients, slices, share of positive slices and patients by institution, of each part of a fold."""
    table = split_table(index, folds)
    groups = table.groupby(["fold", "part"], sort=False)
    counts = groups.agg(patients=("case", "size"), slices=("slices", "sum"), positive=("positive", "sum"))
    counts["positive"] = [f"{share:.0%}" for share in counts["positive"] / counts["slices"]]
    counts["institutions"] = [
        ", ".join(f"{name} {count}" for name, count in cast("pd.Series[int]", of).value_counts(sort=False).items())
        for _, of in groups["institution"]
    ]
    return counts


def _errors(pack: Pack, folds: Sequence[Fold]) -> Iterator[str]:
    """Name patients that are tested twice, and images that lie on two sides of a fold."""
    for one, other in combinations(folds, 2):
        if twice := sorted(one.test & other.test):
            yield f"folds {one.number} and {other.number} both test {join_first(twice)}"
    cases = pack.index["case"].to_numpy()
    owners = {frozenset(cases[rows]) for rows in shared_images(pack)}
    for fold in folds:
        for group in sorted(map(sorted, owners)):
            sides = {part for case in group if (part := fold.part(case))}
            if len(sides) > 1:
                where = " and ".join(sorted(sides))
                yield f"fold {fold.number} has the same image of {join_first(group)} in {where}"


def _warnings(pack: Pack, folds: Sequence[Fold]) -> Iterator[str]:
    """Name patients that no fold tests, or that a fold does not use."""
    everyone = set(pack.cases)
    if untested := sorted(everyone.difference(*(fold.test for fold in folds))):
        yield f"no fold tests {join_first(untested)}"
    for fold in folds:
        if unused := sorted(everyone - fold.train - fold.val - fold.test):
            yield f"fold {fold.number} does not use {join_first(unused)}"
