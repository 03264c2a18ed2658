"""`bench export`: the models of a run as a folder that needs no store, with their description.

The folder recognises the patients of the run by hashes of their names and images (`bench.tracking.participants`).
They do not protect a name that can be guessed, and the README of the folder says so.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.console import Display, console
from bench.errors import BadSetting, DataError
from bench.models.io import DESCRIPTION, load_model, read_description, save_model
from bench.tracking import connect, download_models, find_parent, find_run
from bench.tracking.participants import read_participants

PRIVACY = (
    "**Patients.** This folder contains salted hashes of the names and images of all patients of the run. Whoever "
    "guesses a name (names of public data sets and running numbers are easy to guess), or has an image, can check "
    "whether that patient took part. If that must stay secret, do not give the folder to others."
)


def export_run(
    name_or_id: str, out: Path, *, fold: int | None = None, half: bool = False, uri: str | None = None
) -> None:
    """Write the fold models of a run to `out`/fold-N, and its model card to `out`/README.md.

    With `half`, weight matrices are stored in 16 bits, and probabilities differ by about a thousandth. Raises
    `BadSetting` if `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadSetting(f"{out} is not empty. Give another --out, or remove it.")
    store = connect(uri)
    run = find_run(store, name_or_id)
    parent = find_parent(store, run)
    patients = read_participants(store, parent).anonymise()
    out.parent.mkdir(parents=True, exist_ok=True)
    with Display() as display, tempfile.TemporaryDirectory(prefix=".exporting-", dir=out.parent) as workspace:
        made = Path(workspace) / "made"  # a part of the folds must not look like an export
        with display.doing("reading models"):
            folders = download_models(store, run, Path(workspace), fold=fold)
        for number, folder in enumerate(folders, 1):
            model, description = load_model(folder)
            if half:
                for weights in model.parameters():
                    if weights.ndim > 1:  # biases, scales and running statistics are few, and may be large
                        weights.data = weights.data.half()
            save_model(
                made / f"fold-{description['fold']}",
                model,
                description | {"patients": patients, "models": len(folders)},
            )
            display.bar(number, len(folders), "writing", "models")
        card = parent.data.tags.get("mlflow.note.content", f"**{run.info.run_name}**")
        count = f"{len(folders)} model{'s' * (len(folders) > 1)}, one per fold"
        use = f"`bench predict {out.name} IMAGES --out DIR` averages their probabilities. "
        use += f"`bench evaluate {out.name} --data DIR` scores them on other patients."
        (made / "README.md").write_text(f"{card}\n\n{count}. {use}\n\n{PRIVACY}\n", encoding="utf-8")
        made.rename(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console().print(f"{len(folders)} models, {size / 1e6:.1f} MB, are in {out}", markup=False)


def find_exported_models(folder: Path, fold: int | None = None) -> list[Path]:
    """Return the model folders of an export, or of one of its folds; an empty list for any other folder.

    Raises `DataError` if models are missing from an export.
    """
    if (folder / DESCRIPTION).is_file():
        return [folder]
    files = sorted(folder.glob(f"fold-{'*' if fold is None else fold}/{DESCRIPTION}"))
    count = read_description(files[0].parent).get("models") if files and fold is None else None
    if count is not None and len(files) != count:
        raise DataError(
            f"{folder} was exported with {count} models and has {len(files)}. Export it again, or give --fold."
        )
    return [file.parent for file in files]
