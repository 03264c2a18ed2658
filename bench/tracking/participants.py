"""The patients of a run, by name and by image, so that no model is tested on patients that it was trained on."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.data.fingerprints import image_table
from bench.data.pack import Pack
from bench.errors import DataError
from bench.tracking import Run, Store, read_table


@dataclass(frozen=True)
class Participants:
    """All patients of a run, in whichever part: names, and fingerprints of images before preprocessing.

    With a `salt`, both are hashes, by which whoever guesses a name or has an image can check it. A slower hash
    would not prevent that: at a tenth of a second each, a thousand names take two minutes, and the 3,000 images of
    `find_in` five. `images` is None for runs of versions that kept none.
    """

    names: frozenset[str]
    images: frozenset[str] | None
    salt: str = ""

    def find_in(self, pack: Pack) -> list[str]:
        """Return the patients of a raw pack that share a name or an image with these."""
        named = {case for case in pack.cases if _hash(case, self.salt) in self.names}
        images = image_table(pack)
        known = [_hash(image, self.salt) in (self.images or ()) for image in images["image"]]
        return sorted(named | set(images["case"][known]))

    def anonymise(self) -> dict[str, Any]:
        """Return salted hashes for a file that others may read; `read_exported_participants` reads them."""
        salt = secrets.token_hex(8)
        hashed: dict[str, Any] = {"salt": salt, "hashes": sorted(_hash(name, salt) for name in self.names)}
        if self.images is not None:  # thousands, so on one line
            hashed["images"] = " ".join(sorted(_hash(image, salt) for image in self.images))
        return hashed


def read_participants(store: Store, run: Run) -> Participants:
    """Return the participants of a logged run. Raises `StoreError`."""
    names, images = frozenset(read_table(store, run, "split")["case"]), read_image_table(store, run)
    return Participants(names, None if images is None else frozenset(images["image"]))


def read_image_table(store: Store, run: Run) -> pd.DataFrame | None:
    """Return the `image_table` of a run; None if its version did not log one. Raises `StoreError` if damaged."""
    logged = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    return read_table(store, run, "images") if "images.csv" in logged else None


def read_exported_participants(description: Mapping[str, Any]) -> Participants:
    """Return the participants that the description of an exported model holds. Raises `DataError` without any."""
    if (hashed := description.get("patients")) is None:
        raise DataError(
            "this folder does not say which patients its model has seen, and a test needs other patients. "
            "Name the run, or write the folder with `bench export`."
        )
    names, images = frozenset(hashed["hashes"]), hashed.get("images")
    return Participants(names, None if images is None else frozenset(images.split()), hashed["salt"])


def _hash(text: str, salt: str) -> str:
    """Return the salted hash of the text, or the text itself without a salt."""
    return hashlib.sha256(f"{salt} {text}".encode()).hexdigest()[:16] if salt else text
