"""`bench export`: the models of a run as a folder that needs no store, with what is known of them.

The folder knows again who took part in the run, but it cannot be read there who they are (`bench.tracking.participants`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from bench.console import console
from bench.errors import BadSetting
from bench.models.io import DESCRIPTION, load_model, save_model
from bench.tracking import connect, find_run, model_folders, parent_of
from bench.tracking.participants import participants_of_run


def export_run(
    wanted: str, out: Path, *, fold: int | None = None, half: bool = False, uri: str | None = None
) -> None:
    """Write the fold models of a run to `out`/fold-N, and its model card to `out`/README.md.

    With `half`, what layers multiply by is kept in 16 bits, and probabilities differ by about a thousandth. Raises
    `BadSetting` where `out` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadSetting(f"{out} is not empty. Give another --out, or remove it.")
    store = connect(uri)
    found = find_run(store, wanted)
    parent = parent_of(store, found)
    known = participants_of_run(store, parent).sealed()
    with tempfile.TemporaryDirectory() as workspace:
        for folder in model_folders(store, found, Path(workspace), fold=fold):
            model, description = load_model(folder)
            if half:
                halve(model)
            save_model(out / f"fold-{description['fold']}", model, description | {"patients": known})
    card = parent.data.tags.get("mlflow.note.content", f"**{found.info.run_name}**")
    folders = exported(out)
    what = f"{len(folders)} model{'s' * (len(folders) > 1)}, one a fold"
    use = f"`bench predict {out.name} IMAGES --out DIR` takes the mean of their probabilities, "
    use += f"`bench evaluate {out.name} --data DIR` scores it on other patients."
    (out / "README.md").write_text(f"{card}\n\n{what}: {use}\n")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console().print(f"{len(folders)} models, {size / 1e6:.1f} MB, are in {out}", markup=False)


def exported(folder: Path, fold: int | None = None) -> list[Path]:
    """The model folders that an export, or one of its folds, consists of; none where it is neither."""
    if (folder / DESCRIPTION).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"fold-{'*' if fold is None else fold}/{DESCRIPTION}"))


def halve(model: nn.Module) -> None:
    """Weights in float16; biases, scales and running statistics, which are few and may be large, as they are."""
    for weights in model.parameters():
        if weights.ndim > 1:
            weights.data = weights.data.half()
