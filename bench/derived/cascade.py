"""`bench cascade`: segment only the slices that a classifier calls positive, scored as one system.

Both runs tested every patient out of fold on the same split: the classifier's calls of a fold's test patients
gate the masks of the same patients. Nothing is trained or predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bench.console import Display
from bench.data.pack import Pack
from bench.derived.base import (
    DerivedRun,
    case_rows,
    derive_fingerprint,
    describe_change,
    log_derived,
    place_of,
    score_masks,
)
from bench.errors import DataError
from bench.masks import Mask, Masks
from bench.tracking import Tag, connect_to_write, find_run, read_masks, read_table
from bench.tracking.selection import load_run_pack, require_comparable, require_finished
from bench.training.tasks.segmentation import Segmentation

TAKES = "A cascade takes a presence run (bench run --model classifier), then a segmentation run."


def cascade(
    presence: str,
    segmentation: str,
    *,
    data: Path | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    uri: str | None = None,
) -> str:
    """Gate the masks of one run by the calls of another, log the result as a run, and return its id.

    `data` is the folder of the data set, by default where the segmentation run found it. Raises `BenchError`.
    """
    store = connect_to_write(uri)
    gate, model = find_run(store, presence), find_run(store, segmentation)
    require_finished(gate, "presence", TAKES)
    require_finished(model, "segmentation", TAKES)
    require_comparable([gate, model])
    with Display() as display:
        pack = load_run_pack(model, data, display)
        calls = read_table(store, gate, "slices").set_index(["case", "slice"])["called"]
        before = read_masks(store, model)
        masks = Masks(
            (case, mask & _called(pack, calls, case)[:, None, None, None]) for case, mask in before.items()
        )
        scores = score_masks(Segmentation(), pack, masks, display.scoring)
        change = describe_change(case_rows(scores), read_table(store, model, "cases"), "segmentation alone")
        run = DerivedRun(
            origin={Tag.DERIVED: "cascade"},
            title=name or f"cascade of {gate.info.run_name} and {model.info.run_name}",
            place=place_of(store, model),
            parts=(gate, model),
            fingerprint=cascade_fingerprint(*(run.data.tags[Tag.FINGERPRINT] for run in (gate, model))),
            scores=scores,
            masks=masks,
            settings={
                "model.name": "cascade",
                "model.encoder": f"{gate.info.run_name} > {model.info.run_name}",
                "loss.name": model.data.params["loss.name"],
                "run.seed": model.data.params["run.seed"],
                "cascade.presence": gate.info.run_id,
                "cascade.segmentation": model.info.run_id,
            },
            facts={
                "System": f"{model.info.run_name} on slices that {gate.info.run_name} calls positive, out of fold",
                "Against segmentation alone": change,
            },
            comparisons=[change],
            tags=tags or {},
        )
        return log_derived(store, run, pack, display=display)


def cascade_fingerprint(gate: str, model: str) -> str:
    """Return the fingerprint of a cascade, from those of its parts."""
    return derive_fingerprint("cascade", gate, model)


def _called(pack: Pack, calls: pd.Series[bool], case: str) -> Mask:
    """Return bool (S,): whether the classifier calls each slice of a patient positive."""
    numbers = pack.index["slice"].to_numpy()[pack.rows([case])]
    missing = [n for n in numbers if (case, n) not in calls.index]
    if missing:
        raise DataError(f"the classifier has no score for slice {missing[0]} of {case}. Run all of its folds.")
    return np.array([bool(calls[case, n]) for n in numbers])
