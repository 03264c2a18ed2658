"""Download the LGG data from Kaggle with kagglehub, or explain how to get it by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.errors import DataError

HANDLE = "mateuszbuda/lgg-mri-segmentation"
BY_HAND = (
    f"By hand: open https://www.kaggle.com/datasets/{HANDLE}, download the archive (about 1 GB, CC BY-NC-SA 4.0), "
    "unpack it, and pass the folder that holds kaggle_3m with --data."
)


def download_lgg(folder: Path) -> Path:
    """Download into `folder` and return the folder kaggle_3m. Raises `DataError` with the manual steps."""
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Use a new folder.")
    try:
        import kagglehub
    except ImportError:
        raise DataError(f"the download needs the extra: pip install 'medseg-bench[data]'. {BY_HAND}") from None
    try:
        cached = Path(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # requests, urllib3, kagglehub and Kaggle's errors have no common base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"the download from Kaggle failed ({reason}). {BY_HAND}") from error
    target = folder / "kaggle_3m"
    shutil.copytree(cached / "kaggle_3m", target)  # the archive holds the tree twice; one copy is enough
    return target
