"""Who took part in a run, by name and by image, so that nobody is tested on patients that were learnt from."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.data.fingerprints import image_table
from bench.data.pack import Pack
from bench.errors import DataError, StoreError
from bench.tracking import Run, Store, read_table


@dataclass(frozen=True)
class Participants:
    """Everyone of a run, on whatever side of its folds: names, and fingerprints of images before preprocessing.

    With a `salt`, both are hashed and cannot be read. `images` is None for runs of versions that kept none.
    """

    names: frozenset[str]
    images: frozenset[str] | None
    salt: str = ""

    def among(self, pack: Pack) -> list[str]:
        """Patients of a raw pack who have the name of one of these, or an image of one."""
        named = {case for case in pack.cases if _hashed(case, self.salt) in self.names}
        images = image_table(pack)
        shown = images["case"][[_hashed(one, self.salt) in (self.images or ()) for one in images["image"]]]
        return sorted(named | set(shown))

    def sealed(self) -> dict[str, Any]:
        """For a file that others may read: `described` knows them again, and who they are cannot be read there."""
        salt = secrets.token_hex(8)
        known: dict[str, Any] = {"salt": salt, "hashes": sorted(_hashed(name, salt) for name in self.names)}
        if self.images is not None:  # thousands, so on one line
            known["images"] = " ".join(sorted(_hashed(image, salt) for image in self.images))
        return known


def participants_of_run(store: Store, run: Run) -> Participants:
    """Those of a run that is logged. Raises `StoreError`."""
    names, images = frozenset(read_table(store, run, "split")["case"]), images_of(store, run)
    return Participants(names, None if images is None else frozenset(images["image"]))


def images_of(store: Store, run: Run) -> pd.DataFrame | None:
    """The `image_table` of a run; None where a version that kept none has made it."""
    try:
        return read_table(store, run, "images")
    except StoreError:
        return None


def participants_of_export(description: Mapping[str, Any]) -> Participants:
    """Those that a model's own description tells of. Raises `DataError` if it is silent."""
    if (known := description.get("patients")) is None:
        raise DataError(
            "this folder does not say which patients its model has seen: a test needs others. "
            "Name the run, or write the folder with `bench export`."
        )
    names, images = frozenset(known["hashes"]), known.get("images")
    return Participants(names, None if images is None else frozenset(images.split()), known["salt"])


def _hashed(text: str, salt: str) -> str:
    """The text itself where there is no salt."""
    return hashlib.sha256(f"{salt} {text}".encode()).hexdigest()[:16] if salt else text
