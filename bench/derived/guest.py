"""`bench score`: masks that any tool predicted, scored on the suite's folds and logged as a run of its own kind.

The run stands on the board of the same data, split and convention. What it was trained on was not seen: a mask
does not tell whether its patient was in the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from bench.config import RunConfig, flatten
from bench.console import Display, console
from bench.data.guest_masks import GuestMasks, fold_folders, read_guest_masks
from bench.data.pack import Pack
from bench.data.splits import split_hash, split_table
from bench.derived.base import DerivedRun, Place, derive_fingerprint, log_derived, score_masks
from bench.errors import DataError
from bench.files import check_folder
from bench.formatting import join_first
from bench.masks import Masks, to_hundredths
from bench.overrides import read_yaml
from bench.settings import Settings, first_problem
from bench.tracking import connect_to_write
from bench.tracking.tags import Tag, data_tags
from bench.training.checks import check_folds
from bench.training.experiment import find_folds, raw_pack, source_of
from bench.training.tasks.segmentation import Segmentation
from bench.types import Fold

SECTIONS = ("dataset", "split", "evaluate")  # of the settings, which also hold for masks of another tool
NOT_SEEN = "scored from files; training not seen"

Count = Annotated[float, Field(ge=0, le=1e15)]


class About(Settings):
    """What the author of the masks states; the first ones are names for the leaderboard, the others are totals."""

    model: str = ""
    encoder: str = ""
    loss: str = ""
    weights: str = "not stated"
    tool: str = ""
    version: str = ""
    device: str = ""
    settings: str = ""
    note: str = ""
    seed: int | None = None
    searched: int = Field(0, ge=0)
    epochs: Count | None = None
    images: Count | None = None
    parameters: Count | None = None
    train_seconds: Count | None = None

    @property
    def costs(self) -> dict[str, float]:
        """The costs that are stated, under the names of those of trained runs, summed over folds."""
        named = {key: getattr(self, key) for key in ("epochs", "images", "parameters", "train_seconds")}
        return {key: value for key, value in named.items() if value is not None}


def read_about(path: Path | None) -> About:
    """Return what a YAML file states about masks. Raises `DataError`."""
    if path is None:
        return About()
    try:
        return About.model_validate(read_yaml(path))
    except ValidationError as error:
        known = ", ".join(About.model_fields)
        raise DataError(f"{path} cannot be used ({first_problem(error)}). It may state {known}.") from None


def score_files(
    config: RunConfig,
    folder: Path,
    *,
    name: str,
    by_fold: bool = False,
    about: Path | None = None,
    check_headers: bool = True,
    probabilities: bool = False,
    uri: str | None = None,
) -> str:
    """Score the masks in a folder, log them as a run on the board of their data and split, and return its id.

    With `by_fold`, the folder has a subfolder for each fold, with the masks of the patients that it tests.
    With `probabilities`, those of nnU-Net beside the masks are scored and kept, too. `config` has the data set and
    the split. Raises `BenchError`.
    """
    stated, root = read_about(about), check_folder(folder)
    store = connect_to_write(uri)
    with Display() as display:
        source, pack = source_of(config), raw_pack(config, tick=display.packing)
        folds = find_folds(config, pack)
        check_folds(pack, folds, leaky=False)
        tested = {fold.number: fold.test for fold in folds}
        folders = dict(fold_folders(root, tested)) if by_fold else {root: frozenset().union(*tested.values())}
        found = read_guest_masks(folders, source, pack, check_headers=check_headers, probabilities=probabilities)
        if found.empty:
            display.say(f"warning: nothing is predicted for {join_first(found.empty)}")
        if found.equal:
            display.say(f"warning: masks are equal, pixel for pixel, as if copied: {join_first(found.equal)}")
        run = _guest_run(config, pack, folds, found, name=name, stated=stated)
        run_id = log_derived(store, run, pack, display=display)
    which = "" if by_fold else " Masks do not show whether they come from the right fold."
    console().print(f"{NOT_SEEN}.{which}", markup=False, soft_wrap=True)
    return run_id


def _guest_run(
    config: RunConfig, pack: Pack, folds: Sequence[Fold], found: GuestMasks, *, name: str, stated: About
) -> DerivedRun:
    task = Segmentation(config.evaluate)
    split = split_table(pack.index, folds)
    settings = {key: str(value) for key, value in flatten(config.model_dump(mode="json", include=set(SECTIONS)))}
    author = {key: value for key, value in stated.model_dump().items() if value not in ("", None)}
    settings |= {"guest.name": name, **{f"guest.{key}": str(value) for key, value in author.items()}}
    settings |= {"run.seed": str(stated.seed)} if stated.seed is not None else {}
    hundredths = [(case, to_hundredths(stack)) for case, stack in (found.probabilities or {}).items()]
    return DerivedRun(
        origin={Tag.GUEST: "masks" if found.probabilities is None else "probabilities"},
        title=name,
        place=Place(
            experiment=config.dataset.name,
            tags=data_tags(pack.manifest) | {Tag.SPLIT: split_hash(folds)},
            folds=split.loc[split["part"] == "test", ["case", "fold"]],
            split=split,
            task=task,
        ),
        parts=(),
        fingerprint=derive_fingerprint(
            "guest", name, *(f"{key}={value}" for key, value in sorted(author.items()))
        ),
        scores=score_masks(task, pack, found.masks, probabilities=found.probabilities),
        masks=Masks(found.masks.items(), hundredths),
        settings=settings | {"run.searched": str(stated.searched)},
        facts={
            "Masks": NOT_SEEN,
            "Stated by the author": ", ".join(f"{key} {value}" for key, value in author.items()) or "nothing",
            "Not scored": "nothing" if found.probabilities else "metrics that need probabilities",
        },
        comparisons=(),
        costs=stated.costs,
    )
