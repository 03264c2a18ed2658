"""What the commands do that need a store or a model: run, plan, evaluate elsewhere, predict."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile

from bench import registry
from bench.config import RunConfig
from bench.console import Display, console
from bench.datasets.images import find_images, read_slice
from bench.environment import environment
from bench.errors import DataError
from bench.evaluate import score_case
from bench.leaderboard import CONVENTION, boards, summarise
from bench.pack import Pack, Source, packed
from bench.records import Stack
from bench.report import board_table, duration, model_card, side_by_side
from bench.runner import Recipe, cross_validate, estimate_seconds, find_device, resolve
from bench.serving import Segmenter
from bench.tracking import EVALUATION, connect, find_run, model_folders, open_run, parent_of, patients_of, records

SYNTHETIC = "SYNTHETIC DATA: these are drawn phantoms, not patients. No score here says anything about real scans."


def execute(
    config: RunConfig,
    *,
    only: int | None = None,
    uri: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> str:
    """Run one configuration, log it, print the board it stands on. Gives the run's id."""
    store = connect(uri)
    with Display(quiet=quiet, verbose=verbose) as display:
        recipe = resolve(config, only=only, watch=display)
        _announce(recipe, display)
        title, manifest = recipe.config.title, recipe.pack.manifest
        with open_run(store, title, manifest.dataset, _tags(recipe)) as recorder:
            recorder.settings(recipe.config.flat())
            facts = environment(recipe.device)
            recorder.tags({f"env.{k}": v for k, v in facts.items()})
            if "git_commit" in facts:
                recorder.tags({"mlflow.source.git.commit": facts["git_commit"].removesuffix("-dirty")})
            recorder.data(manifest.dataset, manifest.key, _profile(recipe.pack))
            results = cross_validate(recipe, recorder, only=only, watch=display)
            values = summarise(
                pd.DataFrame([{"case": s.case, **s.values, **s.counts} for r in results for s in r.scores])
            )
            recorder.tags({"mlflow.note.content": model_card(title, _card(recipe, only), values)})
    finished = records(store)
    board = next(b for b in boards(finished) if any(row.run_id == recorder.run_id for row in b.rows))
    console().print(board_table(board))
    return recorder.run_id


def dry_run(config: RunConfig, *, only: int | None = None, quiet: bool = False) -> None:
    """Print the resolved configuration, the folds and what they would cost; train nothing."""
    with Display(quiet=quiet) as display:
        recipe = resolve(config, only=only, watch=display)
        _announce(recipe, display)
        out = console()
        for key, value in recipe.config.flat().items():
            out.print(f"{key} = {value}", markup=False)
        index = recipe.pack.index
        for fold in recipe.folds:
            sizes = ", ".join(
                f"{part} {len(cases)} patients / {len(recipe.pack.rows(cases))} slices "
                f"({index['positive'].to_numpy()[recipe.pack.rows(cases)].mean():.0%} with tumour)"
                for part, cases in (("train", fold.train), ("validation", fold.val), ("test", fold.test))
            )
            out.print(f"fold {fold.number}: {sizes}", markup=False)
        seconds = estimate_seconds(recipe, only)
    out.print(
        f"split {recipe.split_hash} · {recipe.parameters / 1e6:.1f} M parameters · fingerprint "
        f"{recipe.config.fingerprint()}\nestimated time on {recipe.device}: {duration(seconds)}",
        markup=False,
    )


def evaluate_external(
    wanted: str, folder: Path, *, fold: int | None, threshold: float | None, device: str, uri: str | None
) -> str:
    """Score the models of a run on another folder, as a child run of it. Gives the child's id."""
    store = connect(uri)
    found = find_run(store, wanted)
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        segmenter = Segmenter(model_folders(store, found, Path(workspace), fold=fold), str(find_device(device)))
        config = segmenter.config
        name = config.dataset.name if "folder" in config.dataset.params else "lgg"
        source: Source = registry.dataset[name].bind({"folder": folder})()
        pack = packed(source, tick=display.packing)
        _fit(segmenter, pack)
        if shared := sorted(patients_of(store, parent_of(store, found)) & set(pack.cases)):
            raise DataError(
                f"{len(shared)} patients of {folder} took part in the run itself ({', '.join(shared[:3])} ...): "
                "an external test needs others. Their out-of-fold scores are on the leaderboard."
            )
        if pack.manifest.synthetic:
            display.say(SYNTHETIC)
        chosen = segmenter.threshold if threshold is None else threshold
        metrics = {n: registry.metric[n].bind({}) for n in registry.metric}
        scores = []
        for number, case in enumerate(pack.cases, 1):
            rows = pack.rows([case])
            stack = Stack(pack.masks[rows].astype(bool), segmenter.predict(pack.images[rows]), chosen)
            scores.append(score_case(case, pack.index["slice"].to_numpy()[rows].tolist(), stack, metrics))
            display.bar(number, len(pack.cases), "evaluating", "patients")
        cases = pd.DataFrame([{"case": s.case, "threshold": chosen, **s.values, **s.counts} for s in scores])
        values = summarise(cases)
        tags = {
            "mlflow.parentRunId": parent_of(store, found).info.run_id,
            "bench.kind": EVALUATION,
            "bench.data": pack.manifest.key,
            "bench.dataset": pack.manifest.dataset,
            "bench.synthetic": str(pack.manifest.synthetic).lower(),
            "bench.convention": CONVENTION,
        }
        title = f"{found.info.run_name} on {folder.resolve().name}"
        experiment = store.client.get_experiment(found.info.experiment_id).name
        with open_run(store, title, experiment, tags) as recorder:
            recorder.settings(
                {
                    "evaluate.run": found.info.run_id,
                    "evaluate.threshold": chosen,
                    "evaluate.models": len(segmenter.models),
                }
            )
            recorder.data(pack.manifest.dataset, pack.manifest.key, _profile(pack))
            recorder.metrics(values)
            recorder.table("cases", cases)
            recorder.table("slices", pd.concat([s.slices for s in scores], ignore_index=True))
    models = "1 model" if len(segmenter.models) == 1 else f"the mean of {len(segmenter.models)} fold models"
    console().print(
        f"{title}: {models}, threshold {chosen:.2f}, {len(cases)} patients\n"
        f"Dice {values['dice']:.3f} (95% interval {values['dice_low']:.3f} to {values['dice_high']:.3f}), "
        f"median {values['dice_median']:.3f}, HD95 {values['hd95']:.1f} px, "
        f"missed slices {values['missed_slices']:.0f}, pooled over all pixels {values['dice_global']:.3f}",
        markup=False,
    )
    return recorder.run_id


def predict_folder(
    wanted: str, path: Path, out: Path, *, fold: int | None, threshold: float | None, device: str, uri: str | None
) -> None:
    """Write `<name>_mask.tif` and `<name>_overlay.png` under `out` for every image, keeping subfolders.

    The images of one folder are one patient: they are normalised together, as in training.
    """
    scans = find_images(path)
    root = path.parent if path.is_file() else path
    with tempfile.TemporaryDirectory() as workspace, Display() as display:
        folders = [Path(wanted)]
        if not (Path(wanted) / "model.json").is_file():
            store = connect(uri)
            folders = model_folders(store, find_run(store, wanted), Path(workspace), fold=fold)
        segmenter = Segmenter(folders, str(find_device(device)))
        chosen = segmenter.threshold if threshold is None else threshold
        flair = segmenter.channels.index("flair") if "flair" in segmenter.channels else 0
        done, of, positive = 0, sum(map(len, scans.values())), 0
        for folder, files in scans.items():
            slices = [read_slice(file, len(segmenter.channels)) for file in files]
            if len({s.shape for s in slices}) > 1:
                raise DataError(f"the images of {folder} differ in size; a folder is one patient on one grid.")
            images = np.stack(slices)
            target = out / folder.relative_to(root)
            target.mkdir(parents=True, exist_ok=True)
            for file, image, probability in zip(files, images, segmenter.predict(images), strict=True):
                mask = probability >= chosen
                positive += bool(mask.any())
                tifffile.imwrite(
                    target / f"{file.stem}_mask.tif", mask.astype(np.uint8) * 255, photometric="minisblack"
                )
                pixels = side_by_side(image[..., flair], mask)
                cv2.imwrite(str(target / f"{file.stem}_overlay.png"), pixels[..., ::-1])
                display.bar(done := done + 1, of, "predicting", "images")
    console().print(
        f"{of} masks and overlays are in {out}; {positive} images show tumour at threshold {chosen:.2f}",
        markup=False,
    )


def _fit(segmenter: Segmenter, pack: Pack) -> None:
    if pack.manifest.channels != segmenter.channels:
        raise DataError(
            f"the model was trained on the channels {', '.join(segmenter.channels)}; "
            f"these data have {', '.join(pack.manifest.channels)}."
        )


def _announce(recipe: Recipe, display: Display) -> None:
    manifest, index = recipe.pack.manifest, recipe.pack.index
    if manifest.synthetic:
        display.say(SYNTHETIC)
    for note in manifest.notes:
        display.say(f"note: {note}")
    display.say(
        f"{recipe.config.title}: {len(recipe.pack.cases)} patients, {len(index)} slices "
        f"({index['positive'].mean():.0%} with tumour), {len(recipe.folds)} folds, "
        f"{recipe.parameters / 1e6:.1f} M parameters, on {recipe.device}"
    )


def _tags(recipe: Recipe) -> dict[str, str]:
    manifest = recipe.pack.manifest
    return {
        "bench.dataset": manifest.dataset,
        "bench.data": manifest.key,
        "bench.split": recipe.split_hash,
        "bench.convention": CONVENTION,
        "bench.fingerprint": recipe.config.fingerprint(),
        "bench.synthetic": str(manifest.synthetic).lower(),
    }


def _profile(pack: Pack) -> dict[str, Any]:
    index = pack.index
    return {
        "patients": len(pack.cases),
        "slices": len(index),
        "positive_slices": int(index["positive"].sum()),
        "institutions": int(index["institution"].nunique()),
        "synthetic": pack.manifest.synthetic,
        "licence": pack.manifest.licence,
    }


def _card(recipe: Recipe, only: int | None) -> dict[str, object]:
    manifest, config = recipe.pack.manifest, recipe.config
    return {
        "Data": f"{manifest.dataset}, {len(recipe.pack.cases)} patients, key {manifest.key}"
        + (", SYNTHETIC" if manifest.synthetic else ""),
        "Protocol": f"{config.split.name}, {len(recipe.folds)} folds"
        + ("" if only is None else f", only fold {only}")
        + f", split {recipe.split_hash}; epoch chosen on validation patients, test patients scored once",
        "Budget": f"{config.train.epochs} epochs of batch {config.train.batch_size}, seed {config.seed}",
        "Model": f"{config.model.name} {config.model.params}, {recipe.parameters / 1e6:.1f} M parameters",
        "Licence of the data": manifest.licence,
        "Not for clinical use": "research software; distances are in pixels, in 2D",
    }
