"""Write a data set in the raw format of nnU-Net: a NIfTI file for each channel and label, and dataset.json.

Images are those that the suite trains on: 8 bits, from black to white as packed. Volumes keep the grid,
position and direction of their files. The slices of other data sets are stacked by patient; how far they are
apart is unknown and set to five pixels, so that nnU-Net takes them as the slices of its 2D configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from bench.data.mask_units import whole_units
from bench.data.pack import Pack
from bench.data.readers import itk
from bench.data.source import Source
from bench.errors import BadSetting
from bench.outputs import check_outputs, new_output, write_output

BETWEEN_SLICES = 5.0  # pixels


def export_nnunet(source: Source, pack: Pack, folder: Path, *, tick: Callable[[int, int], None]) -> int:
    """Write the data set to a folder, and return the number of its cases. Raises `BenchError`.

    Labels are 1, 2, 3 ... in the order of the structures. `patients.csv` has the patient of each case.
    """
    structures = source.structures
    if not structures.exclusive:
        raise BadSetting(
            "structures that overlap have no label map, which nnU-Net trains on. Name regions that exclude each "
            "other in dataset.structures, such as rim and core."
        )
    units = whole_units(source)
    channels = range(len(source.channels))
    ends = [f"_{c:04}.nii.gz" for c in channels]
    files = [
        [*(folder / "imagesTr" / f"{name}{end}" for end in ends), folder / "labelsTr" / f"{name}.nii.gz"]
        for name in (unit.names[-1] for unit in units)
    ]
    description, table = folder / "dataset.json", folder / "patients.csv"
    check_outputs([*(path for of_unit in files for path in of_unit), description, table])
    for done, (unit, (*images, label)) in enumerate(zip(units, files, strict=True), 1):
        own = ..., *pack.own_grid(unit.rows)
        masks = pack.truth(unit.rows)[own]
        labels = (masks * np.arange(1, len(structures) + 1, dtype=np.uint8)[:, None, None]).sum(1, dtype=np.uint8)
        stacks = [np.moveaxis(pack.images[unit.rows], -1, 0)[c][own] for c in channels]
        spacing = pack.spacing(unit.rows[:1])
        row, column = (1.0, 1.0) if spacing is None else map(float, spacing[0])
        like = unit.label or (column, row, BETWEEN_SLICES * max(row, column))
        for path, stack in zip((*images, label), (*stacks, labels), strict=True):
            with new_output(path) as writing:
                itk.write_stack(writing, stack, like, axis=source.axis)
        tick(done, len(units))
    about = {
        "name": source.name,
        "licence": source.licence,
        "channel_names": {str(number): name for number, name in enumerate(source.channels)},
        "labels": {"background": 0, **{name: k for k, name in enumerate(structures.names, 1)}},
        "numTraining": len(units),
        "file_ending": ".nii.gz",
    }
    write_output(description, json.dumps(about, indent=1))
    rows = [{"image": unit.names[-1], "patient": unit.case} for unit in units]
    write_output(table, pd.DataFrame(rows).to_csv(index=False))
    return len(units)
