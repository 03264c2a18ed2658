"""nnU-Net v2's 2D configuration on the folds of this suite, from raw data to a row on the leaderboard.

    pip install '.[nnunet]'
    python -m benchmarks.nnunet --data DIR --out WORK --name nnunet-2d

Exports data and folds, lets nnU-Net plan and preprocess, trains each fold at the stated budget, predicts its
test patients with the final checkpoint, and scores the masks with `bench score`. Repeat the command after an
interruption: what is finished is kept, and a fold continues after its last epoch. nnU-Net trains on our
training and validation patients; its learning rate, augmentation, network and loss are its own.
"""

from __future__ import annotations

import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from bench.derived.guest import score_files
from bench.experiments.other_tools import export_data, export_split
from bench.overrides import configure_data

NUMBER = 501
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
PLANS, CONFIGURATION = "nnUNetPlans", "2d"


def main(
    data: Annotated[Path, typer.Option(help="Data folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the files of nnU-Net.")],
    name: Annotated[str, typer.Option(help="Name of the run.")] = "nnunet-2d",
    dataset: Annotated[str, typer.Option(help="Layout of the folder; `bench list datasets`.")] = "volumes",
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    epochs: Annotated[int, typer.Option(help="nnU-Net's default is 1000.")] = 10,
    iterations: Annotated[int, typer.Option(help="Steps per epoch; nnU-Net's default is 250.")] = 94,
    batch_size: Annotated[int, typer.Option(help="Slices per step, in the place of the planned number.")] = 32,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    processes: Annotated[int, typer.Option(help="Processes of nnU-Net beside the one that trains.")] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, such as split.seed=1.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store.")] = None,
) -> None:
    """Train and score nnU-Net v2 on the folds of this suite."""
    out = out.absolute()
    for variable, folder in FOLDERS.items():  # nnU-Net reads them when it is imported
        os.environ[variable] = str(out / folder)
    os.environ |= dict.fromkeys(("nnUNet_n_proc_DA", "nnUNet_def_n_proc"), str(processes))
    config = configure_data(data, dataset, set_, None, {"split.folds": folds})
    title = f"Dataset{NUMBER}_{data.resolve().name}"
    if not (out / "raw" / title / "patients.csv").exists():  # written last
        export_data(config, out / "raw" / title)
    export_split(config, "nnunet", out / "preprocessed" / title / "splits_final.json")
    _plan(out / "preprocessed" / title, batch_size, processes)
    results = out / "results" / title / f"nnUNetTrainer__{PLANS}__{CONFIGURATION}"
    seconds = sum(
        _train(results / f"fold_{fold}", title, fold, epochs, iterations, device) for fold in range(folds)
    )
    about = {
        "model": "nnU-Net 2D",
        "loss": "Dice and cross-entropy",
        "weights": "scratch",
        "tool": "nnunetv2",
        "version": version("nnunetv2"),
        "device": device,
        "settings": f"{epochs} epochs of {iterations} steps, batch {batch_size}, otherwise as planned",
        "epochs": epochs * folds,
        "images": epochs * iterations * batch_size * folds,
        "train_seconds": round(seconds),
    }
    (out / "about.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    score_files(config, results, name=name, by_fold=True, about=out / "about.yaml", uri=tracking_uri)


def _plan(folder: Path, batch_size: int, processes: int) -> None:
    """Let nnU-Net plan and preprocess, unless it has, and set the batch size in its plans."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess_dataset,
    )

    done, plans = folder / "preprocessing-done", folder / f"{PLANS}.json"
    if not done.exists():
        extract_fingerprints([NUMBER], num_processes=processes, check_dataset_integrity=True)
        plan_experiments([NUMBER])
        preprocess_dataset(NUMBER, PLANS, (CONFIGURATION,), (processes,))
        done.touch()
    content = json.loads(plans.read_text())
    content["configurations"][CONFIGURATION]["batch_size"] = batch_size
    plans.write_text(json.dumps(content, indent=1))


def _train(results: Path, title: str, fold: int, epochs: int, iterations: int, device: str) -> float:
    """Train a fold and predict its test patients, unless that is done. Return the seconds of its epochs."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    spent = results / "seconds.json"
    before: dict[str, Any] = json.loads(spent.read_text()) if spent.exists() else {"seconds": 0.0}
    if (results / "validation" / "summary.json").exists():
        return float(before["seconds"])
    resumes = (results / "checkpoint_latest.pth").exists() or (results / "checkpoint_final.pth").exists()
    trainer = get_trainer_from_args(
        title, CONFIGURATION, fold, continue_training=resumes, device=torch.device(device)
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, iterations
    trainer.num_val_iterations_per_epoch, trainer.save_every = 1, 1  # nothing is chosen by validation
    maybe_load_checkpoint(trainer, resumes, False)
    started = time.perf_counter()
    if trainer.current_epoch < epochs:
        trainer.run_training()
    before["seconds"] += time.perf_counter() - started
    spent.write_text(json.dumps(before))
    trainer.load_checkpoint(str(results / "checkpoint_final.pth"))
    trainer.perform_actual_validation(False)
    return float(before["seconds"])


if __name__ == "__main__":
    typer.run(main)
