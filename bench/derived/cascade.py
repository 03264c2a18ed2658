"""`bench cascade`: segment only the slices that a classifier calls positive, scored as a system.

Both runs have tested every patient out of fold, on the same split: the classifier's calls of a fold's test
patients gate the masks of the same patients. Nothing is trained or predicted anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bench.analysis.run_summary import headline
from bench.config import Evaluate
from bench.console import Display, console
from bench.data.pack import Pack
from bench.derived.base import DerivedRun, case_rows, describe_change, log_derived, score_masks
from bench.errors import DataError
from bench.masks import Mask, Masks
from bench.tracking import Run, connect, find_run, masks_of, read_table
from bench.tracking.run_data import pack_of
from bench.tracking.selection import require_comparable, require_finished
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
    """Gate the masks of one run by the calls of another, log the system as a run of its own. Gives its id.

    `data` is the folder of the data set, by default where the segmentation run found it. Raises `BenchError`.
    """
    store = connect(uri)
    gate, model = find_run(store, presence), find_run(store, segmentation)
    require_finished(gate, "presence", TAKES)
    require_finished(model, "segmentation", TAKES)
    require_comparable([gate, model])
    with Display() as display:
        pack = pack_of(model, data, display)
        calls = read_table(store, gate, "slices").set_index(["case", "slice"])["called"]
        before = masks_of(store, model)
        after = Masks((case, mask & _called(pack, calls, case)[:, None, None]) for case, mask in before.items())
        scores = score_masks(Segmentation(Evaluate(), "auto"), pack, after)
        said = describe_change(case_rows(scores), read_table(store, model, "cases"), "segmentation alone")
        made = DerivedRun(
            title=name or f"cascade of {gate.info.run_name} and {model.info.run_name}",
            source=model,
            parts=(gate, model),
            fingerprint=cascade_fingerprint(*(run.data.tags["bench.fingerprint"] for run in (gate, model))),
            scores=scores,
            masks=after,
            settings=_settings(gate, model),
            facts={
                "System": f"{model.info.run_name} on slices that {gate.info.run_name} calls positive, out of fold",
                "Against segmentation alone": said,
            },
            tags=tags or {},
        )
        run_id, _, values = log_derived(store, made, pack, display=display)
    console().print(f"{made.title}\n{headline(values)}\n{said}", markup=False)
    return run_id


def cascade_fingerprint(gate: str, model: str) -> str:
    """The fingerprint of a cascade, from those of its parts."""
    return hashlib.sha256(f"cascade {gate} {model}".encode()).hexdigest()[:16]


def _called(pack: Pack, calls: pd.Series[bool], case: str) -> Mask:
    numbers = pack.index["slice"].to_numpy()[pack.rows([case])]
    missing = [n for n in numbers if (case, n) not in calls.index]
    if missing:
        raise DataError(f"the classifier has judged no slice {missing[0]} of {case}. Run all of its folds.")
    return np.array([bool(calls[case, n]) for n in numbers])


def _settings(gate: Run, model: Run) -> dict[str, str]:
    return {
        "model.name": "cascade",
        "model.encoder": f"{gate.info.run_name} > {model.info.run_name}",
        "loss.name": model.data.params["loss.name"],
        "run.seed": model.data.params["run.seed"],
        "cascade.presence": gate.info.run_id,
        "cascade.segmentation": model.info.run_id,
    }
