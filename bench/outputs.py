"""Writing the files that a user asks for, without replacing any file that this suite did not write.

Every folder with outputs has a list of them, `.bench-files`, in the format of `sha256sum`. A file is replaced only
if it is as it was written; what lists it as an output keeps it from being read as an input.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import BadSetting
from bench.files import file_sha256, naming

LIST = ".bench-files"


def check_outputs(paths: Iterable[Path]) -> None:
    """Raise `BadSetting` if two results have the same name, or if one would replace a file of someone else.

    Call it before anything is computed.
    """
    absolute = list(map(Path, map(os.path.abspath, paths)))
    theirs = set(without_outputs(path for path in absolute if path.is_file()))
    seen = set[Path]()
    for path in absolute:
        if path in seen:
            raise BadSetting(
                f"two results would be written to {path}. Rename one of the files they are made from."
            )
        seen.add(path)
        if path.exists() and not path.is_file():
            raise BadSetting(f"{path} is not a file, so nothing can be written to it. Give another name.")
        if path in theirs:
            raise BadSetting(
                f"{path} exists, and bench did not write it or it has changed since. "
                "Give another name, or remove it."
            )


@contextmanager
def new_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix to write to; it gets its own name once it is complete.

    Creates the folder. Raises `BadSetting` as `check_outputs` does.
    """
    check_outputs([path])
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f".writing-{path.name}")
    try:
        with naming(path):
            yield writing
        with (path.parent / LIST).open("a", encoding="utf-8") as file:  # first, so that a listed file may be old
            file.write(f"{file_sha256(writing)}  {path.name}\n")
        writing.replace(path)
    finally:
        writing.unlink(missing_ok=True)


def write_output(path: Path, content: str | bytes) -> None:
    """Write one file for the user, text as UTF-8. Raises `BadSetting` as `check_outputs` does."""
    with new_output(path) as writing:
        writing.write_bytes(content.encode() if isinstance(content, str) else content)


def without_outputs(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are not outputs of this suite as they were written, in their order."""
    lists: dict[Path, dict[str, set[str]]] = {}
    kept = []
    for path in paths:
        if path.parent not in lists:
            lists[path.parent] = _read_list(path.parent)
        digests = lists[path.parent].get(path.name)
        if digests is None or file_sha256(path) not in digests:
            kept.append(path)
    return kept


def _read_list(folder: Path) -> dict[str, set[str]]:
    """Return `{name: the digests of all its versions}`; an interrupted command may have left an older version."""
    written = defaultdict[str, set[str]](set)
    if (folder / LIST).is_file():
        for line in (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            written[name].add(digest)
    return written
