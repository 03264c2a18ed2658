"""A dataset is packed once and reused; a pack is complete or does not exist."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from bench.data import pack as packing
from bench.data.fingerprints import shared_images
from bench.data.pack import load_or_pack, open_pack, pack_in_memory
from bench.data.source import SliceFile, Source
from bench.errors import DataError
from bench.files import cache_folder
from bench.structures import Structures
from tests.fakes import pack_of, refuse_to_write

CASES = {"B": 3, "A": 2}  # patients and how many slices each has
SHAPE = (6, 5, 2)


@dataclass
class Disk:
    """Slices as .npy files, and how often each was read."""

    folder: Path
    reads: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        rng = np.random.default_rng(7)
        for case, count in CASES.items():
            for number in range(1, count + 1):
                np.save(self.folder / f"{case}{number}.npy", rng.integers(0, 256, SHAPE, np.uint8))
                mask = np.zeros(SHAPE[:2], np.uint8)
                mask[: number - 1] = 1
                np.save(self.folder / f"{case}{number}_mask.npy", mask)

    def source(self) -> Source:
        slices = [
            SliceFile(case, n, f"from{case}", self.folder / f"{case}{n}.npy", self.folder / f"{case}{n}_mask.npy")
            for case, count in CASES.items()
            for n in range(1, count + 1)
        ]
        return Source("fake", tuple(slices), self.read, ("pre", "flair"), "CC0", notes=("take care",))

    def read(self, entry: SliceFile) -> tuple[np.ndarray, np.ndarray]:
        self.reads[entry.image.name] += 1
        assert entry.mask is not None
        return np.load(entry.image), np.load(entry.mask)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path / "disk")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def content_of(cache: Path) -> list[str]:
    return sorted(f.name for f in (cache / "packs").iterdir() if f.name != ".lock")


def test_a_pack_keeps_the_millimetres_of_a_pixel_if_they_are_known(disk, cache):
    source = disk.source()
    assert load_or_pack(source, cache).spacing(np.array([0])) is None
    sizes = [(0.75, 0.1 * number) for number in range(1, 6)]
    slices = [replace(s, spacing=mm, number=s.number + 1) for s, mm in zip(source.slices, sizes, strict=True)]
    pack = load_or_pack(replace(source, slices=tuple(slices)), cache)
    assert pack.spacing(np.array([4, 1])).tolist() == [[0.75, 0.5], [0.75, 0.2]]


def test_a_pack_holds_every_slice_in_the_order_of_the_source(disk, cache):
    source = disk.source()
    pack = load_or_pack(source, cache)
    assert pack.images.shape == (5, *SHAPE)
    assert pack.images.dtype == pack.masks.dtype == np.uint8
    for row, entry in enumerate(source.slices):
        image, mask = np.load(entry.image), np.load(entry.mask)
        assert np.array_equal(pack.images[row], image)
        assert np.array_equal(pack.masks[row], mask)
        for channel in range(2):
            assert pack.histograms[row, channel].tolist() == [(image[..., channel] == v).sum() for v in range(256)]
    assert list(pack.index.columns) == ["case", "slice", "institution", "positive", "pixels"]
    assert pack.index["case"].tolist() == ["B", "B", "B", "A", "A"]
    assert pack.index["slice"].tolist() == [1, 2, 3, 1, 2]
    assert pack.index["institution"].tolist() == ["fromB"] * 3 + ["fromA"] * 2
    assert pack.index["pixels"].tolist() == [0, 5, 10, 0, 5]
    assert pack.index["positive"].tolist() == [False, True, True, False, True]


def test_a_manifest_describes_the_pack(disk, cache):
    manifest = load_or_pack(replace(disk.source(), synthetic=True), cache).manifest
    assert (manifest.dataset, manifest.synthetic, manifest.licence) == ("fake", True, "CC0")
    assert (manifest.channels, manifest.notes) == (("pre", "flair"), ("take care",))
    assert set(manifest.sha256) == {"images.npy", "masks.npy", "histograms.npy", "index.csv"}


def test_the_key_of_one_structure_is_a_hash_of_sizes_names_pixels_and_masks_alone(disk, cache):
    """It identifies the data of every run that was logged before data sets had several structures."""
    source = disk.source()
    digest = hashlib.sha256(f"1 {SHAPE}".encode())
    for entry in source.slices:
        digest.update(f"{entry.case}/{entry.number}/{entry.institution}".encode())
        digest.update(np.load(entry.image).tobytes() + np.load(entry.mask).tobytes())
    assert load_or_pack(source, cache).manifest.key == digest.hexdigest()[:16]


def test_a_pack_that_was_written_before_structures_had_names_is_opened(disk, cache):
    pack = load_or_pack(disk.source(), cache)
    manifest = json.loads((pack.folder / "manifest.json").read_text())
    del manifest["structures"], manifest["axis"]
    (pack.folder / "manifest.json").write_text(json.dumps(manifest))
    again = load_or_pack(disk.source(), cache)
    assert again.folder == pack.folder
    assert again.structures == Structures(("tumour",), ((),))


def test_names_that_look_like_numbers_or_missing_values_stay_text(disk, cache):
    odd = ("007", "NA", "1e5", "nan", "None")
    source = disk.source()
    slices = tuple(replace(s, case=name, institution=name) for s, name in zip(source.slices, odd, strict=True))
    pack = load_or_pack(replace(source, slices=slices), cache)
    assert pack.cases == list(odd)
    assert pack.index["institution"].tolist() == list(odd)


def test_rows_of_patients_are_in_the_order_of_the_index(disk, cache):
    pack = load_or_pack(disk.source(), cache)
    assert pack.cases == ["B", "A"]
    assert pack.rows(["A"]).tolist() == [3, 4]
    assert pack.rows(["A", "B"]).tolist() == pack.rows({"B", "A"}).tolist() == [0, 1, 2, 3, 4]
    assert pack.rows([]).tolist() == pack.rows(["C"]).tolist() == []


def test_progress_is_reported_after_each_slice(disk, cache):
    calls = []
    load_or_pack(disk.source(), cache, tick=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


# Reused


def test_an_unchanged_folder_is_not_read_again(disk, cache):
    first = load_or_pack(disk.source(), cache)
    read = disk.reads.copy()
    again = load_or_pack(disk.source(), cache)
    assert disk.reads == read
    assert again.manifest == first.manifest
    assert np.array_equal(again.images, first.images)


def test_the_same_pixels_elsewhere_have_the_same_key(disk, cache, tmp_path):
    first = load_or_pack(disk.source(), cache)
    shutil.copytree(disk.folder, tmp_path / "elsewhere")
    disk.folder = tmp_path / "elsewhere"
    moved = load_or_pack(disk.source(), cache)
    assert moved.manifest.key == first.manifest.key
    assert content_of(cache) == [f"fake-{first.manifest.key}"]


@pytest.mark.parametrize("changed", ["A2.npy", "A2_mask.npy"])
def test_a_changed_file_gives_another_key(disk, cache, changed):
    first = load_or_pack(disk.source(), cache)
    array = np.load(disk.folder / changed)
    array[-1, -1] ^= 1
    np.save(disk.folder / changed, array)
    second = load_or_pack(disk.source(), cache)
    assert second.manifest.key != first.manifest.key
    assert open_pack(first.folder).manifest == first.manifest


def test_masks_replaced_with_equal_size_and_time_give_another_key(disk, cache):
    first = load_or_pack(disk.source(), cache)
    path = disk.folder / "A2_mask.npy"
    before = path.stat()
    np.save(path, 1 - np.load(path))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        second = load_or_pack(disk.source(), cache)
        assert second.manifest.key != first.manifest.key
        assert np.array_equal(second.masks[4], np.load(path))


def test_files_that_only_seem_changed_are_read_once_and_keep_their_pack(disk, cache):
    first = load_or_pack(disk.source(), cache)
    disk.reads.clear()
    for path in disk.folder.iterdir():  # another inode
        shutil.copy2(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
    for _ in range(2):
        assert load_or_pack(disk.source(), cache).manifest == first.manifest
    assert disk.reads["A2.npy"] == 1


def test_a_pack_is_checked_once_after_each_change(disk, cache, monkeypatch):
    folder = load_or_pack(disk.source(), cache).folder
    checks = []
    key_of = packing._content_key
    monkeypatch.setattr(packing, "_content_key", lambda *args: checks.append(1) or key_of(*args))
    load_or_pack(disk.source(), cache)
    assert len(checks) == 0
    os.utime(folder / "masks.npy")
    for _ in range(2):
        load_or_pack(disk.source(), cache)
    assert len(checks) == 1


@pytest.mark.parametrize("fact", [{"case": "C"}, {"number": 9}, {"institution": "X"}])
def test_case_number_and_institution_belong_to_the_key(disk, cache, fact):
    source = disk.source()
    other = replace(source, slices=(replace(source.slices[0], **fact), *source.slices[1:]))
    assert load_or_pack(other, cache).manifest.key != load_or_pack(source, cache).manifest.key


def test_another_variant_of_a_source_is_packed_again(disk, cache):
    load_or_pack(disk.source(), cache)
    load_or_pack(replace(disk.source(), variant="resize=3"), cache)
    assert disk.reads["A2.npy"] == 2


def test_bench_cache_sets_the_folder_of_packs(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("BENCH_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "bench"


def test_a_cache_that_cannot_be_written_raises_a_helpful_error(disk, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to .*file.*Set BENCH_CACHE"):
        load_or_pack(disk.source(), tmp_path / "file")


def test_a_read_only_cache_is_read(disk, cache, monkeypatch):
    folder = load_or_pack(disk.source(), cache).folder
    (folder / "checked.json").unlink()
    refuse_to_write(monkeypatch)
    assert load_or_pack(disk.source(), cache).folder == folder
    with pytest.raises(DataError, match=r"cannot write to the cache: .*Read-only file system\. Set BENCH_CACHE"):
        load_or_pack(replace(disk.source(), variant="resize=3"), cache)


def test_a_full_disk_is_an_error_before_a_slice_is_written(disk, cache, monkeypatch):
    def full(_file, _offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"images\.npy: No space.*; 0 MiB are needed.*set BENCH_CACHE"):
        load_or_pack(disk.source(), cache)
    assert content_of(cache) == []
    assert "A2.npy" not in disk.reads


def test_concurrent_calls_write_one_pack(disk, cache):
    start = Barrier(4)

    def pack(_: int):
        start.wait()
        return load_or_pack(disk.source(), cache)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(pack, range(4)))
    assert len({p.folder for p in made}) == 1
    assert disk.reads["A2.npy"] == 1
    assert content_of(cache) == [made[0].folder.name]


# Refused, interrupted, damaged


def test_a_source_without_slices_is_refused(cache):
    with pytest.raises(DataError, match="'fake' has no slices"):
        load_or_pack(Source("fake", (), Disk.read, (), ""), cache)


def test_slices_of_different_sizes_raise_a_helpful_error(disk, cache):
    np.save(disk.folder / "A1.npy", np.zeros((7, 5, 2), np.uint8))
    with pytest.raises(DataError, match=r"A1\.npy is 7x5 with 2 channels, but B1\.npy is 6x5.*dataset\.resize"):
        load_or_pack(disk.source(), cache)
    assert content_of(cache) == []


def test_an_interrupted_write_leaves_nothing(disk, cache):
    def interrupted(entry):
        if entry.case == "A":
            raise KeyboardInterrupt
        return disk.read(entry)

    with pytest.raises(KeyboardInterrupt):
        load_or_pack(replace(disk.source(), read=interrupted), cache)
    assert content_of(cache) == []


def test_leftovers_of_a_killed_process_are_removed_and_never_used(disk, cache):
    whole = load_or_pack(disk.source(), cache)
    killed = cache / "packs" / ".writing-killed"
    whole.folder.rename(killed)
    again = load_or_pack(disk.source(), cache)
    assert again.manifest.key == whole.manifest.key
    assert content_of(cache) == [whole.folder.name]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "images.npy"),
        lambda folder: cut(folder / "histograms.npy"),
        lambda folder: (folder / "masks.npy").unlink(),
        lambda folder: (folder / "index.csv").write_text(""),
        lambda folder: cut(folder / "manifest.json"),
        lambda folder: edit(folder / "manifest.json", channels=3),
        lambda folder: edit(folder / "manifest.json", channels=["pre", "flair", "post"]),
        lambda folder: edit(folder / "manifest.json", sha256={}),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: np.save(folder / "masks.npy", np.zeros((5, 6, 6), np.uint8)),
        lambda folder: np.save(folder / "images.npy", np.zeros((5, *SHAPE), np.float32)),
        lambda folder: np.save(folder / "histograms.npy", np.zeros((5, 2, 256), object)),
        lambda folder: (folder / "index.csv").write_text("case,slice\n" + 5 * "A,1\n"),
    ],
)
def test_a_damaged_pack_raises_a_helpful_error(disk, cache, damage):
    folder = load_or_pack(disk.source(), cache).folder
    damage(folder)
    for reopen in (lambda: open_pack(folder), lambda: load_or_pack(disk.source(), cache)):
        with pytest.raises(DataError, match=f"{folder} is damaged .* Remove that folder; it will be"):
            reopen()
    shutil.rmtree(folder)
    assert load_or_pack(disk.source(), cache).folder == folder


def test_a_pack_of_another_format_raises_a_helpful_error(disk, cache):
    folder = load_or_pack(disk.source(), cache).folder
    edit(folder / "manifest.json", format=0)
    with pytest.raises(DataError, match=r"was written by another version. Remove it"):
        open_pack(folder)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def overwrite_a_third(path: Path) -> None:
    array = np.load(path, mmap_mode="r+")
    array[: len(array) // 3] ^= 1
    array.flush()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.npy", flip),
        ("index.csv", flip),
        ("histograms.npy", flip),
        ("masks.npy", overwrite_a_third),
        ("manifest.json", lambda path: edit(path, key="0123456789abcdef")),
    ],
)
def test_other_content_than_was_written_is_refused(disk, cache, name, damage):
    folder = load_or_pack(disk.source(), cache).folder
    open_pack(folder, verify=True)
    damage(folder / name)
    for reopen in (lambda: open_pack(folder), lambda: open_pack(folder, verify=True)) * 2:
        with pytest.raises(DataError, match=f"has changed since it was written: {name}"):
            reopen()


@pytest.mark.parametrize(
    "fact", [{"channels": ["t1", "t2"]}, {"synthetic": True}, {"dataset": "x"}, {"notes": []}]
)
def test_a_manifest_that_contradicts_the_dataset_is_refused(disk, cache, fact):
    folder = load_or_pack(disk.source(), cache).folder
    edit(folder / "manifest.json", **fact)
    with pytest.raises(DataError, match=f"manifest.json has other {next(iter(fact))} than the dataset"):
        load_or_pack(disk.source(), cache)


def test_a_damaged_pack_does_not_hinder_another_dataset(disk, cache):
    other = load_or_pack(replace(disk.source(), name="other"), cache)
    (other.folder / "manifest.json").write_text("")
    assert load_or_pack(disk.source(), cache).manifest.dataset == "fake"


# In memory


def test_a_pack_in_memory_is_one_case():
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    pack = pack_in_memory(images, ("pre", "flair"), case="scan")
    assert pack.cases == ["scan"]
    assert pack.rows(["scan"]).tolist() == [0, 1, 2]
    assert pack.index["slice"].tolist() == [1, 2, 3]
    assert pack.images is images
    assert not pack.masks.any()
    assert not pack.index["positive"].any()
    assert pack.histograms.sum(-1).tolist() == [[30, 30]] * 3
    assert pack.histograms[1, 0, images[1, 0, 0, 0]] == (images[1, ..., 0] == images[1, 0, 0, 0]).sum()


def test_a_pack_in_memory_may_have_masks():
    masks = np.zeros((2, 6, 5), np.uint8)
    masks[1, 2, 2:4] = 1
    pack = pack_in_memory(np.zeros((2, *SHAPE), np.uint8), ("pre", "flair"), masks)
    assert pack.index["pixels"].tolist() == [0, 2]
    assert pack.index["positive"].tolist() == [False, True]


def test_images_are_shared_if_every_pixel_is_equal_in_two_patients():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    shuffled = one[::-1]  # the same grey levels, elsewhere
    blank = np.full_like(one, 9)
    images = np.stack([one, one, other, shuffled, blank, blank, one, other])
    pack = pack_of(images, np.zeros((8, 8, 8), np.uint8), list("aaabbccd"))
    assert [group.tolist() for group in shared_images(pack)] == [[0, 1, 6], [2, 7]]


def test_an_image_twice_in_one_patient_is_not_shared():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    assert shared_images(pack_of(np.stack([image, image]), np.zeros((2, 8, 8), np.uint8), ["a", "a"])) == []
