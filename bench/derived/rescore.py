"""`bench rescore`: score the logged masks of a run again, at another threshold or cleaned, as a run of its own.

Nothing is trained or predicted. Metrics that need probabilities are left out: they judge a model, not its masks.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.console import Display, console
from bench.derived.base import (
    DerivedRun,
    case_rows,
    derive_fingerprint,
    describe_change,
    log_derived,
    place_of,
    score_masks,
)
from bench.errors import BadSetting
from bench.inference.postprocess import Postprocess, clean
from bench.masks import Masks, above_threshold
from bench.metrics.confusion import dice_of
from bench.text_table import print_frame
from bench.tracking import Run, Store, connect_to_write, find_run, read_masks, read_probabilities, read_table
from bench.tracking.selection import load_run_pack, require_finished
from bench.tracking.tags import CONVENTION, Tag, is_derived
from bench.training.fold_records import slice_table
from bench.training.tasks.segmentation import Segmentation

SHOWN = ("model.name", "model.encoder", "model.weights", "loss.name", "run.seed")  # settings on the leaderboard
UNCHANGED = Postprocess()


def rescore(
    wanted: str,
    *,
    threshold: float | None = None,
    postprocess: Postprocess = UNCHANGED,
    data: Path | None = None,
    name: str | None = None,
    uri: str | None = None,
) -> str:
    """Score a logged run again, log that as a run linked to it, print what has changed, and return its id.

    The masks are the logged ones, or the probabilities above `threshold`, then cleaned. With nothing to change,
    they are scored by the current metrics. `data` is the folder of the data set, by default where the run found
    it. Raises `BenchError`.
    """
    store = connect_to_write(uri)
    source = find_run(store, wanted)
    require_finished(source, "segmentation", "Rescore such a run; `bench leaderboard` shows them.")
    if is_derived(source.data.tags, source.data.params):
        raise BadSetting(f"run {source.info.run_name} was made from other runs. Rescore those runs instead.")
    changes = ", ".join(([] if threshold is None else [f"threshold {threshold:.2f}"]) + postprocess.descriptions)
    chosen = {"run": source.info.run_id, "threshold": threshold, **postprocess.model_dump()}
    shown = {key: source.data.params[key] for key in SHOWN if key in source.data.params}
    with Display() as display:
        pack = load_run_pack(source, data, display)
        masks = _masks(store, source, threshold, postprocess, exclusive=pack.structures.exclusive)
        scores = score_masks(Segmentation(), pack, masks, display.scoring)
        cases = case_rows(scores)
        change = describe_change(cases, read_table(store, source, "cases"), "the run as it was")
        run = DerivedRun(
            origin={Tag.DERIVED: "rescore"},
            title=name or f"{source.info.run_name} rescored" + (f": {changes}" if changes else ""),
            place=place_of(store, source),
            parts=(source,),
            fingerprint=derive_fingerprint("rescored", source.data.tags[Tag.FINGERPRINT], changes),
            scores=scores,
            masks=masks,
            settings=shown | {f"rescore.{key}": str(value) for key, value in chosen.items()},
            facts={
                "Masks": f"of {source.info.run_name}, out of fold; {changes or 'unchanged'}",
                "Compared": change,
                "Not scored": "metrics that need probabilities",
            },
            comparisons=[change],
            tags=_tags(source, changes),
        )
        run_id = log_derived(store, run, pack, display=display)
    table = conventions(cases, slice_table(scores))
    print_frame(console(), "the same masks under other conventions", table, wide=True)
    return run_id


def conventions(cases: pd.DataFrame, slices: pd.DataFrame) -> pd.DataFrame:
    """Return Dice as other projects average it: columns convention, Dice, used by; NaN where it is undefined.

    `cases` has one row per patient and `slices` one per slice, both with pixels tp, fp and fn.
    """
    patient, image = (pd.Series(dice_of(*table[["tp", "fp", "fn"]].to_numpy().T)) for table in (cases, slices))
    tumour = (slices["tp"] + slices["fn"]).to_numpy() > 0
    pooled = float(dice_of(*(int(cases[c].sum()) for c in ("tp", "fp", "fn"))))
    rows = [
        ("mean over patients", patient.mean(), "this benchmark; Buda et al. 2019"),
        ("median over patients", patient.median(), "Buda et al. 2019, beside the mean"),
        ("pooled over all pixels", pooled, "segmentation-models-pytorch, reduction 'micro'"),
        ("mean over slices, both empty = 1", image.fillna(1).mean(), "the same, reduction 'micro-imagewise'"),
        ("mean over slices with tumour", image[tumour].mean(), "MONAI: false positives elsewhere are dropped"),
        ("mean over slices with tumour or prediction", image.mean(), "nnU-Net, where a case is a slice"),
    ]
    return pd.DataFrame(rows, columns=["convention", "Dice", "used by"])


def _masks(store: Store, run: Run, threshold: float | None, rules: Postprocess, *, exclusive: bool) -> Masks:
    if threshold is None:
        return Masks((case, clean(mask, rules)) for case, mask in read_masks(store, run).items())
    probabilities = read_probabilities(store, run)
    return Masks(
        (case, clean(above_threshold(p, threshold, exclusive=exclusive), rules))
        for case, p in probabilities.items()
    )


def _tags(run: Run, changes: str) -> dict[str, str]:
    tags = {Tag.CONVENTION: CONVENTION, Tag.RESCORED: run.info.run_id}
    if not changes and run.data.tags[Tag.CONVENTION] != CONVENTION:
        return tags  # the run itself under the current metrics, so it may be ranked
    return tags | {Tag.POST_HOC: "rescored"}  # chosen after test scores were seen, or a duplicate
