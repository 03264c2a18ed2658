"""`bench rescore`: the logged masks of a run, under another threshold or cleaned, scored anew as a run of its own.

Nothing is trained or predicted. Metrics that need probabilities are left out: they judge a model, not its masks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from bench.analysis.run_summary import headline
from bench.config import Evaluate
from bench.console import Display, console, frame_table
from bench.derived.base import DerivedRun, case_rows, describe_change, log_derived, score_masks
from bench.errors import BadSetting
from bench.inference.postprocess import Postprocess, cleaned
from bench.masks import Masks, above_threshold
from bench.metrics.confusion import dice_of
from bench.tracking import Run, Store, connect, find_run, masks_of, probabilities_of, read_table
from bench.tracking.run_data import pack_of
from bench.tracking.selection import require_finished
from bench.tracking.tags import CONVENTION
from bench.training.fold import slice_table
from bench.training.tasks.segmentation import Segmentation

KEPT = ("model.name", "model.encoder", "model.weights", "loss.name", "run.seed")  # what the leaderboard shows


AS_IT_IS = Postprocess()


def rescore(
    wanted: str,
    *,
    threshold: float | None = None,
    postprocess: Postprocess = AS_IT_IS,
    data: Path | None = None,
    name: str | None = None,
    uri: str | None = None,
) -> str:
    """Score a logged run anew, log that as a run linked to it, and print what has changed. Gives its id.

    The masks are the logged ones, or what reaches `threshold`, then cleaned. With nothing to change, they are
    scored by the metrics as these are now. `data` is the folder of the data set, by default where the run found
    it. Raises `BenchError`.
    """
    store = connect(uri)
    run = find_run(store, wanted)
    require_finished(run, "segmentation", "Only such a run is rescored; `bench leaderboard` shows them.")
    if "dataset.name" not in run.data.params:
        raise BadSetting(f"run {run.info.run_name} is made of other runs. Rescore those that it is made of.")
    changes = ", ".join(([] if threshold is None else [f"threshold {threshold:.2f}"]) + postprocess.words)
    masks = _masks(store, run, threshold, postprocess)
    with Display() as display:
        pack = pack_of(run, data, display)
        scores = score_masks(Segmentation(Evaluate(), "auto"), pack, masks)
        cases = case_rows(scores)
        said = describe_change(cases, read_table(store, run, "cases"), "the run as it was")
        made = DerivedRun(
            title=name or f"{run.info.run_name} rescored" + (f": {changes}" if changes else ""),
            source=run,
            parts=(run,),
            fingerprint=fingerprint(run.data.tags["bench.fingerprint"], changes),
            scores=scores,
            masks=masks,
            settings=_settings(run, threshold, postprocess),
            facts={
                "Masks": f"of {run.info.run_name}, out of fold; {changes or 'as they were'}",
                "Compared": said,
                "Not scored": "metrics that need probabilities",
            },
            tags=_tags(run, changes),
        )
        run_id, _, values = log_derived(store, made, pack, display=display)
    console().print(f"{made.title}\n{headline(values)}\n{said}", markup=False)
    console().print(frame_table("the same masks under other conventions", conventions(cases, slice_table(scores))))
    return run_id


def fingerprint(source: str, changes: str) -> str:
    """That of a rescored run, from the fingerprint of its source and what was changed."""
    return hashlib.sha256(f"rescored {source} {changes}".encode()).hexdigest()[:16]


def conventions(cases: pd.DataFrame, slices: pd.DataFrame) -> pd.DataFrame:
    """Dice as others average it: columns convention, Dice, used by. NaN where there is nothing to average.

    A row a patient and a row a slice are asked for, with pixels tp, fp and fn.
    """
    patient, image = (pd.Series(dice_of(*table[["tp", "fp", "fn"]].to_numpy().T)) for table in (cases, slices))
    tumour = (slices["tp"] + slices["fn"]).to_numpy() > 0
    pooled = float(dice_of(*(int(cases[c].sum()) for c in ("tp", "fp", "fn"))))
    rows = [
        ("mean over patients", patient.mean(), "this benchmark; Buda et al. 2019"),
        ("median over patients", patient.median(), "Buda et al. 2019, beside the mean"),
        ("pooled over all pixels", pooled, "segmentation-models-pytorch, reduction 'micro'"),
        ("mean over slices, both empty = 1", image.fillna(1).mean(), "the same, reduction 'micro-imagewise'"),
        ("mean over slices with tumour", image[tumour].mean(), "MONAI: false alarms elsewhere are dropped"),
        ("mean over slices with tumour or prediction", image.mean(), "nnU-Net, where a case is a slice"),
    ]
    return pd.DataFrame(rows, columns=["convention", "Dice", "used by"])


def _masks(store: Store, run: Run, threshold: float | None, rules: Postprocess) -> Masks:
    if threshold is None:
        return Masks((case, cleaned(mask, rules)) for case, mask in masks_of(store, run).items())
    given = probabilities_of(store, run)
    return Masks((case, cleaned(above_threshold(values, threshold), rules)) for case, values in given.items())


def _settings(run: Run, threshold: float | None, rules: Postprocess) -> dict[str, str]:
    chosen = {"run": run.info.run_id, "threshold": threshold, **rules.model_dump()}
    kept = {key: run.data.params[key] for key in KEPT if key in run.data.params}
    return kept | {f"rescore.{key}": str(value) for key, value in chosen.items()}


def _tags(run: Run, changes: str) -> dict[str, str]:
    tags = {"bench.convention": CONVENTION, "bench.rescored": run.info.run_id}
    if not changes and run.data.tags["bench.convention"] != CONVENTION:
        return tags  # the run itself, as it would be scored today
    return tags | {"bench.post_hoc": "rescored"}  # chosen after test scores were seen, or there already
