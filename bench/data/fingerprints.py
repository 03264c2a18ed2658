"""Recognise images by their pixels, whatever their patients are called."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.data.pack import Pack

MIN_GREY_LEVELS = 32  # slices with fewer levels are nearly blank, and so alike in all patients


def fingerprints(histograms: NDArray[np.integer[Any]]) -> list[str]:
    """Return a digest of the histogram (N, C, 256) of each slice, which survives rotation, mirroring and renaming.

    The digest is '' for slices with fewer than `MIN_GREY_LEVELS` grey levels.
    """
    distinctive = (histograms > 0).sum(-1).max(-1) >= MIN_GREY_LEVELS
    digests = (hashlib.blake2b(h.astype(np.uint32).tobytes(), digest_size=6).hexdigest() for h in histograms)
    return [digest if keep else "" for digest, keep in zip(digests, distinctive, strict=True)]


def image_table(pack: Pack) -> pd.DataFrame:
    """Return one row (case, image) per patient and fingerprint of one of its images."""
    table = pd.DataFrame({"case": pack.index["case"], "image": fingerprints(pack.histograms)})
    return table[table["image"] != ""].drop_duplicates(ignore_index=True)


def shared_images(pack: Pack) -> list[NDArray[np.int64]]:
    """Return one group of rows for each image that occurs, pixel for pixel, in more than one patient.

    Images of one grey level, as at the ends of a stack, are equal in all patients and are left out.
    """
    not_blank = (pack.histograms > 0).sum(-1).max(-1) > 1
    # Equal images have equal histograms, so hardly any image has to be read.
    candidates = _equal_groups(pack, np.flatnonzero(not_blank), pack.histograms)
    groups = [group for rows in candidates for group in _equal_groups(pack, rows, pack.images)]
    return sorted(groups, key=lambda rows: int(rows[0]))


def _equal_groups(pack: Pack, rows: NDArray[np.int64], content: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Group rows with equal content; keep the groups with more than one patient."""
    digests = [hashlib.blake2b(content[row].tobytes(), digest_size=16).digest() for row in rows]
    table = pd.DataFrame({"row": rows, "content": digests, "case": pack.index["case"].to_numpy()[rows]})
    return [group["row"].to_numpy() for _, group in table.groupby("content") if group["case"].nunique() > 1]
