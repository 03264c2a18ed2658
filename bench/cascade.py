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

from bench import registry
from bench.config import Evaluate, configure
from bench.console import Display, console
from bench.errors import BadSetting, DataError
from bench.leaderboard import summarise
from bench.masks import Mask, Masks
from bench.pack import Pack, Source, packed
from bench.report import headline, model_card
from bench.stats import paired
from bench.tasks.segmentation import Segmentation
from bench.tracking import KIND, PARENT, Run, connect, find_run, masks_of, open_run, read_table, settings_of

SHARED = ("bench.data", "bench.split", "bench.convention")  # what two runs must have in common


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
    _check(gate, model)
    with Display() as display:
        pack = _pack(model, data, display)
        calls = read_table(store, gate, "slices").set_index(["case", "slice"])["called"]
        before = masks_of(store, model)
        after = Masks((case, mask & _called(pack, calls, case)[:, None, None]) for case, mask in before.items())
        task = Segmentation(Evaluate(), "auto")
        cases, slices = scored(task, pack, after)
        folds = read_table(store, model, "cases")[["case", "fold"]]
        cases = folds.merge(cases, on="case")
        title = name or f"cascade of {gate.info.run_name} and {model.info.run_name}"
        shared = {t: model.data.tags[t] for t in (*SHARED, "bench.dataset", "bench.synthetic")}
        own = {"bench.task": task.name, "bench.fingerprint": fingerprint(gate, model), KIND: PARENT}
        experiment = store.client.get_experiment(model.info.experiment_id).name
        with open_run(store, title, experiment, shared | own | dict(tags or {}), say=display.say) as recorder:
            recorder.settings(_settings(gate, model))
            values = summarise(cases)
            recorder.metrics(values | _costs(gate, model))
            recorder.table("cases", cases)
            recorder.table("slices", slices)
            recorder.table("split", read_table(store, model, "split"))
            for picture, pixels in task.pictures(pack, cases, slices, after).items():
                recorder.image(picture, pixels)
            alone = read_table(store, model, "cases")
            said = _compared(cases, alone)
            facts = {
                "System": f"{model.info.run_name} on slices that {gate.info.run_name} calls positive, out of fold",
                "Against segmentation alone": said,
            }
            recorder.tags({"mlflow.note.content": model_card(title, facts, values)})
    console().print(f"{title}\n{headline(values)}\n{said}", markup=False)
    return recorder.run_id


def fingerprint(gate: Run, model: Run) -> str:
    """What the system depends on: both its parts."""
    return joined(gate.data.tags["bench.fingerprint"], model.data.tags["bench.fingerprint"])


def joined(gate: str, model: str) -> str:
    """The fingerprint of a cascade, from those of its parts."""
    return hashlib.sha256(f"cascade {gate} {model}".encode()).hexdigest()[:16]


def scored(task: Segmentation, pack: Pack, masks: Mapping[str, Mask]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a patient and a row a slice, by all metrics that need no probability."""
    numbers = pack.index["slice"].to_numpy()
    scores = []
    for case, mask in masks.items():
        rows = pack.rows([case])
        scores.append(task.score_mask(case, numbers[rows].tolist(), pack.masks[rows].astype(bool), mask))
    cases = pd.DataFrame([{"case": s.case, **s.values, **s.counts} for s in scores])
    return cases, pd.concat([s.slices for s in scores], ignore_index=True)


def _check(gate: Run, model: Run) -> None:
    for run, task in ((gate, "presence"), (model, "segmentation")):
        found = run.data.tags.get("bench.task", "segmentation")
        if run.data.tags.get(KIND) != PARENT or found != task or run.info.status != "FINISHED":
            raise BadSetting(
                f"run {run.info.run_name} ({run.info.run_id[:8]}) is no finished {task} cross-validation. A "
                "cascade takes a presence run (bench run --model classifier), then a segmentation run."
            )
    for tag in SHARED:
        if gate.data.tags[tag] != model.data.tags[tag]:
            raise BadSetting(
                f"the two runs differ in {tag.removeprefix('bench.')} ({gate.data.tags[tag]} and "
                f"{model.data.tags[tag]}): what one has learnt from, the other would be tested on. Run both alike."
            )


def _pack(model: Run, data: Path | None, display: Display) -> Pack:
    config = configure(settings_of(model), {} if data is None else {"dataset.folder": str(data)})
    source: Source = registry.dataset[config.dataset.name].bind(config.dataset.params)()
    pack = packed(source, tick=display.packing)
    if pack.manifest.key != model.data.tags["bench.data"]:
        raise DataError(
            f"the data are not those of run {model.info.run_name}. Give --data the folder it was run on."
        )
    return pack


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


def _costs(gate: Run, model: Run) -> dict[str, float]:
    """Both have to be trained and to be run."""
    added = ("wall_seconds", "train_seconds", "images", "epochs", "parameters")
    return {f"cost/{n}": sum(run.data.metrics[f"cost/{n}"] for run in (gate, model)) for n in added}


def _compared(after: pd.DataFrame, before: pd.DataFrame) -> str:
    """One sentence: what the gate has changed, patient by patient."""
    both = after.merge(before, on="case", suffixes=("", "_alone")).dropna(subset=["dice", "dice_alone"])
    found = paired(both["dice"], both["dice_alone"])
    changes = ", ".join(
        f"{name.replace('_', ' ')} {before[name].sum():.0f} to {after[name].sum():.0f}"
        for name in ("false_positive_slices", "missed_slices")
    )
    return (
        f"against segmentation alone: Dice {found.difference:+.3f} (95% interval {found.interval.low:+.3f} to "
        f"{found.interval.high:+.3f}), better in {found.wins:.0%} of {found.n} patients, "
        f"Wilcoxon p = {found.p:.2g}; {changes}"
    )
