"""Readers refuse what they would read wrongly, before pixels are in memory, and find every folder."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from bench.data.readers.headers import MAX_PIXELS
from bench.data.readers.images import find_images, list_images, read_mask, read_pixels
from bench.data.readers.patient_folders import read_patients, scan_folder
from bench.data.source import BadFile
from bench.errors import DataError
from tests import fakes

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack((GREY, GREY + 50, GREY + 100), -1)
STACK = np.stack([np.kron(GREY, np.ones((4, 4), np.uint8))] * 5)
MASK = np.uint8(GREY % 3 == 0) * 255


def png_claiming(path: Path, side: int) -> None:
    """A PNG of 57 bytes whose header claims side x side RGB pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def jpeg_claiming(path: Path, side: int) -> None:
    Image.fromarray(GREY).save(path)
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 5  # after marker, length and depth: height and width
    path.write_bytes(content[:at] + struct.pack(">HH", side, side) + content[at + 4 :])


def half(path: Path) -> None:
    Image.fromarray(np.kron(COLOUR, np.ones((32, 32, 1), np.uint8))).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(COLOUR).save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.png", lambda p: png_claiming(p, 9_000), "a.png claims 9000x9000 pixels of 3 channels"),
        ("a.png", lambda p: png_claiming(p, 12_000), "a.png is too large (Image size (144000000 pixels)"),
        ("a.png", lambda p: png_claiming(p, 40_000), "a.png is too large (Image size (1600000000 pixels)"),
        ("a.jpg", lambda p: jpeg_claiming(p, 60_000), "a.jpg is too large (Image size (3600000000 pixels)"),
        ("a.tif", lambda p: fakes.giant(p, 9_000), "a.tif claims 9000x9000 pixels of 3 channels"),
        ("a.png", half, "a.png cannot be read as an 8-bit image"),
        ("a.jpg", half, "a.jpg cannot be read as an 8-bit image (image file is truncated"),
        ("a.jpg", turned, "a.jpg is stored turned or mirrored (orientation 6)"),
        ("a.png", turned, "a.png is stored turned or mirrored (orientation 6)"),
        ("a.tif", turned, "a.tif is stored turned or mirrored (orientation 6)"),
        ("a.jpg", lambda p: Image.fromarray(COLOUR).convert("CMYK").save(p), "a.jpg holds CMYK colours"),
        ("a.tif", lambda p: Image.fromarray(GREY).convert("P").save(p), "a.tif holds colours of a palette"),
        ("a.tif", lambda p: tifffile.imwrite(p, STACK, truncate=True), "a.tif has 5 pages"),
        ("a.tif", lambda p: tifffile.imwrite(p, STACK, truncate=True, imagej=True), "a.tif has 5 pages"),
        (
            "a.tif",
            lambda p: tifffile.imwrite(p, np.zeros((16, 32, 32), "u1"), volumetric=True),
            "a.tif has 16 pages",
        ),
        ("a.png", lambda p: cv2.imwrite(str(p), COLOUR.astype(np.uint16)), "a.png holds uint16 pixels"),
        ("a.png", lambda p: os.mkfifo(p), "a.png is no file, or a link to none"),
        ("a.tif", lambda p: p.symlink_to("nowhere.tif"), "a.tif is no file, or a link to none"),
    ],
)
def test_files_that_would_be_read_wrongly_are_refused(name, make, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises(BadFile, match=re.escape(message)):
        read_pixels(tmp_path / name)


def test_all_formats_have_one_limit(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pixels were read")

    side = int(MAX_PIXELS**0.5) + 1
    files = {"a.png": png_claiming, "a.jpg": jpeg_claiming, "a.tif": fakes.giant}
    for name, make in files.items():
        make(tmp_path / name, side)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for name in files:
        with pytest.raises(BadFile) as caught:
            read_pixels(tmp_path / name)
        assert caught.value.code == "giant"


@pytest.mark.parametrize("compression", ["tiff_lzw", "zstd", "packbits", "tiff_adobe_deflate"])
def test_compressed_tiff_is_read_as_it_was_written(compression, tmp_path):
    for pixels in (GREY, COLOUR):
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
        np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif").squeeze(), pixels)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.tif", {"compression": "jpeg"}), ("a.jpg", {"quality": 50}), ("a.jpg", {"quality": 95})],
)
def test_a_jpeg_is_read_as_opencv_reads_it(name, options, tmp_path):
    smooth = cv2.GaussianBlur(np.kron(COLOUR, np.ones((8, 8, 1), np.uint8)), (0, 0), 3)
    Image.fromarray(smooth).save(tmp_path / name, **options)
    np.testing.assert_array_equal(read_pixels(tmp_path / name), cv2.imread(str(tmp_path / name))[..., ::-1])


def test_a_mask_that_stores_white_as_0_is_read_as_it_looks(tmp_path):
    for compression in (None, "deflate"):
        tifffile.imwrite(tmp_path / "a.tif", ~MASK, photometric="miniswhite", compression=compression)
        np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), MASK // 255)


# Folders


def test_links_to_folders_are_followed_and_hidden_folders_are_left_out(tmp_path):
    fakes.write_case(tmp_path / "store", "P1")
    data = tmp_path / "data"
    fakes.write_case(data, "P2")
    fakes.write_case(data, ".ipynb_checkpoints")
    (data / "P1").symlink_to(tmp_path / "store" / "P1")
    (data / "P2" / "again").symlink_to(data)  # leads back: followed for ever
    assert list(scan_folder(data).scans) == ["P1", "P2"]
    assert {path.parent.name for path in list_images(data)} == {"P1", "P2"}


def test_masks_are_not_predicted_by_name_or_folder(tmp_path):
    for name in ("images/a.png", "masks/a.png", "b_seg.png", "c_gt.png", "labelsTr/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / name)
    assert find_images(tmp_path) == {tmp_path / "images": [tmp_path / "images/a.png"]}
    with pytest.raises(DataError, match=r"b_seg\.png is named like a mask"):
        find_images(tmp_path / "b_seg.png")
    (tmp_path / "images/a.png").rename(tmp_path / "images/a_mask.png")
    with pytest.raises(DataError, match="holds no images other than masks"):
        find_images(tmp_path)


def test_an_archive_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.zip is an archive\. Unpack it and pass the folder"):
        scan_folder(tmp_path / "data.zip")
    with pytest.raises(DataError, match=r"data\.zip is no image.* Unpack an archive and pass its folder"):
        find_images(tmp_path / "data.zip")


def test_a_table_names_the_patient_of_each_image(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("\ufeffimage;patient\nISIC_1.jpg;007\na/ISIC_2;007\nISIC_3;8\nother;9\n", encoding="utf-8")
    assert read_patients(table, ["ISIC_1", "a/ISIC_2", "b/ISIC_3"]) == {
        "ISIC_1": "007", "a/ISIC_2": "007", "b/ISIC_3": "8",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"has no row for 2 image\(s\): a/ISIC_3, b/ISIC_3"):
        read_patients(table, ["a/ISIC_3", "b/ISIC_3"])  # one name of two images
    table.write_text("image,patient\nISIC_1,7\nISIC_1,8\n")
    with pytest.raises(DataError, match=r"names several patients for 1 image\(s\): ISIC_1"):
        read_patients(table, ["ISIC_1"])
    table.write_text("name,patient\nISIC_1,7\n")
    with pytest.raises(DataError, match="has no column 'image'; it has name, patient"):
        read_patients(table, ["ISIC_1"])
