"""The cache can be listed and cleared; what a process uses and what is not ours stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from bench.data.cache import clear_cache, list_cache
from bench.data.datasets.phantom import phantom
from bench.data.pack import load_or_pack, open_pack
from bench.errors import DataError
from bench.reports.dataset.printing import show_cache

SETTINGS = {"patients": 4, "size": 32, "slices": 6, "institutions": 2}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache with a pack and its phantom, what killed processes left, checkpoints, and a file of the user."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    load_or_pack(phantom(**SETTINGS))
    for name in ("packs/.writing-a", ".phantom-b", "unfinished/0123"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("plans.json", "mine.npy", "packs/.writing-a/images.npy"):
        (tmp_path / name).write_bytes(bytes(2**20))
    return tmp_path


def test_everything_is_listed_with_size_and_age(cache, capsys):
    (pack,) = (folder for folder in (cache / "packs").glob("phantom-*"))
    for path in (cache / "plans.json", *pack.iterdir(), pack):
        os.utime(path, (0, 0))
    listed = {entry.kind: entry for entry in list_cache()}
    assert list(listed) == [
        "pack",
        "phantom",
        "execution plans",
        "unfinished pack",
        "unfinished phantom",
        "checkpoints",
    ]
    assert listed["pack"].path == pack
    assert listed["pack"].size > 24 * 32 * 32 * 4
    assert listed["execution plans"].size == 2**20
    assert listed["phantom"].age < 1000
    assert listed["pack"].age > 1e9
    show_cache(clear=False)
    text = capsys.readouterr().out
    assert pack.name in text
    assert " days " in text


def test_clearing_leaves_checkpoints_and_files_of_the_user(cache, capsys):
    show_cache(clear=True)
    assert "removed 5 entries, 2 MiB" in capsys.readouterr().out
    assert [entry.kind for entry in list_cache()] == ["checkpoints"]
    assert (cache / "mine.npy").exists()
    assert clear_cache() == []
    assert len(load_or_pack(phantom(**SETTINGS)).index) == 24


def test_a_pack_stays_while_it_is_open(cache):
    pack = load_or_pack(phantom(**SETTINGS))
    images = pack.images[:2]
    folder = pack.folder
    del pack  # a part of its images is still in use
    assert folder not in [entry.path for entry in clear_cache()]
    assert len(open_pack(folder).index) == 24
    del images
    assert [entry.kind for entry in clear_cache()] == ["pack"]


@pytest.mark.parametrize("name", ["packs/.lock", "phantom-*.lock"])
def test_nothing_is_removed_while_a_process_writes(cache, name):
    (lock,) = cache.glob(name)
    with FileLock(lock), pytest.raises(DataError, match=r"a process is writing to .* Repeat the command"):
        clear_cache()
    assert len(list_cache()) == 6


def test_a_cache_that_does_not_exist_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "none"))
    assert list_cache() == clear_cache() == []
    assert not (tmp_path / "none").exists()
