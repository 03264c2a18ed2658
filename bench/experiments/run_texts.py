"""What `bench run` says about an experiment: before it starts, when it is only planned, and on its model card."""

from __future__ import annotations

from collections.abc import Iterator, Set

from bench.formatting import LEAKY_WARNING, SYNTHETIC_WARNING
from bench.training.experiment import Experiment


def announcement(experiment: Experiment) -> Iterator[str]:
    """Yield warnings about the data, then one line on data, folds and model."""
    manifest, index = experiment.pack.manifest, experiment.pack.index
    if manifest.synthetic:
        yield SYNTHETIC_WARNING
    if experiment.leaky:
        yield LEAKY_WARNING
    for note in manifest.notes:
        yield f"note: {note}"
    yield (
        f"{experiment.config.title}: {_patients(experiment)} patients, {len(index)} slices "
        f"({index['positive'].mean():.0%} with tumour), {len(experiment.folds)} folds, "
        f"{experiment.parameters / 1e6:.1f} M parameters, on {experiment.device}"
    )


def plan(experiment: Experiment) -> Iterator[str]:
    """Yield every setting, the size of every fold, and the hashes that identify the run."""
    for key, value in experiment.config.flat().items():
        yield f"{key} = {value}"
    for fold in experiment.folds:
        parts = (("train", fold.train), ("validation", fold.val), ("test", fold.test))
        yield f"fold {fold.number}: " + ", ".join(f"{name} {_size(experiment, cases)}" for name, cases in parts)
    yield (
        f"split {experiment.split_hash} · {experiment.parameters / 1e6:.1f} M parameters · fingerprint "
        f"{experiment.config.fingerprint()}"
    )


def card(experiment: Experiment, only: int | None) -> dict[str, object]:
    """Return the facts for the model card, by heading."""
    manifest, config = experiment.pack.manifest, experiment.config
    rule = "epoch chosen on validation patients, test patients scored once"
    folds = f"{len(experiment.folds)} folds" + ("" if only is None else f", only fold {only}")
    return {
        "Data": f"{manifest.dataset}, {_patients(experiment)} patients, key {manifest.key}"
        + (", SYNTHETIC" if manifest.synthetic else ""),
        "Protocol": f"{config.split.name}, {folds}, split {experiment.split_hash}; "
        + (LEAKY_WARNING if experiment.leaky else rule),
        "Budget": f"{config.train.epochs} epochs of batch {config.train.batch_size}, seed {config.seed}",
        "Model": f"{config.model.name} {config.model.params}, {experiment.parameters / 1e6:.1f} M parameters",
        "Licence of the data": manifest.licence,
        "Limits": f"research software, not for clinical use; one seed, {_patients(experiment)} patients, one data "
        "set, nothing known about other scanners or sites; distances are in pixels, in 2D",
    }


def _patients(experiment: Experiment) -> int:
    """Return the number of patients; the cases of a leaky split are single slices."""
    return int(experiment.pack.index["patient" if experiment.leaky else "case"].nunique())


def _size(experiment: Experiment, cases: Set[str]) -> str:
    """Return the number of patients and slices of one side of a fold."""
    rows = experiment.pack.rows(cases)
    slices = experiment.pack.index.iloc[rows]
    patients = slices["patient" if experiment.leaky else "case"].nunique()
    return f"{patients} patients / {len(rows)} slices ({slices['positive'].mean():.0%} with tumour)"
