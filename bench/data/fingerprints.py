from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.data.pack import (
    Pack,
)

TELLING = 32  # grey levels from which on a slice is like no other; blank ones are all alike


def fingerprints(histograms: NDArray[np.integer[Any]]) -> list[str]:
    """What each slice is known by, however it is turned, mirrored or named: a digest of its histogram (N, C, 256).

    It is '' for slices of fewer than `TELLING` grey levels.
    """
    telling = (histograms > 0).sum(-1).max(-1) >= TELLING
    digests = (hashlib.blake2b(h.astype(np.uint32).tobytes(), digest_size=6).hexdigest() for h in histograms)
    return [digest if tells else "" for digest, tells in zip(digests, telling, strict=True)]


def image_table(pack: Pack) -> pd.DataFrame:
    """One row a patient and fingerprint of an image of it: who is in a pack, whatever others call them."""
    table = pd.DataFrame({"case": pack.index["case"], "image": fingerprints(pack.histograms)})
    return table[table["image"] != ""].drop_duplicates(ignore_index=True)


def shared_images(pack: Pack) -> list[NDArray[np.int64]]:
    """Rows whose images are the same, pixel for pixel, in more than one patient: a group for each such image.

    Images of one grey level, as at the ends of a stack, are alike everywhere and none of these.
    """
    several = (pack.histograms > 0).sum(-1).max(-1) > 1
    # Equal images have equal histograms, so that hardly any image is read.
    alike = _alike(pack, np.flatnonzero(several), pack.histograms)
    found = [group for rows in alike for group in _alike(pack, rows, pack.images)]
    return sorted(found, key=lambda rows: int(rows[0]))


def _alike(pack: Pack, rows: NDArray[np.int64], content: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Groups of these rows whose content is equal and who are not all of one patient."""
    digests = [hashlib.blake2b(content[row].tobytes(), digest_size=16).digest() for row in rows]
    table = pd.DataFrame({"row": rows, "content": digests, "case": pack.index["case"].to_numpy()[rows]})
    return [group["row"].to_numpy() for _, group in table.groupby("content") if group["case"].nunique() > 1]
