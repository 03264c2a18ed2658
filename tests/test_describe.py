"""The tables of a pack, against pandas on arrays that were made by hand, and its figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from bench.datasets.describe import describe, figures
from bench.pack import Pack, SliceFile, Source, packed

# case, institution, tumour pixels of its slices
CASES = [("p1", "AA", [0, 4, 9]), ("p2", "AA", [1, 0]), ("p3", "BB", [0, 0, 0, 16])]


def pixels(entry: SliceFile) -> tuple[np.ndarray, np.ndarray]:
    """An image and a square of tumour in the corner."""
    rng = np.random.default_rng([int(entry.case[1]), entry.number])
    image = rng.integers(0, 60 * int(entry.case[1]), (10, 10, 2), dtype=np.uint8)
    side = int(np.sqrt({c: areas for c, _, areas in CASES}[entry.case][entry.number - 1]))
    mask = np.zeros((10, 10), np.uint8)
    mask[:side, :side] = 1
    return image, mask


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("pack")
    (folder / "file").write_text("only its size and time count")
    slices = tuple(
        SliceFile(case, number, institution, folder / "file", None)
        for case, institution, areas in CASES
        for number in range(1, len(areas) + 1)
    )
    return packed(Source("toy", slices, pixels, ("pre", "flair"), "none"), folder)


def test_counts(pack):
    (row,) = describe(pack).counts.to_dict("records")
    assert row == {
        "patients": 3, "slices": 9, "positive_slices": 4, "empty_slices": 5, "positive_share": 4 / 9,
        "tumour_pixels": 30, "tumour_share": 30 / 900,
    }  # fmt: skip


def test_institutions(pack):
    table = describe(pack).institutions
    assert table.loc["AA"].to_dict() == {
        "patients": 2, "slices": 5, "positive_slices": 3, "positive_share": 0.6, "median_tumour_area": 4,
    }  # fmt: skip
    assert table.loc["BB", ["patients", "slices", "median_tumour_area"]].tolist() == [1, 4, 16]


def test_patients(pack):
    table = describe(pack).patients
    assert table.index.tolist() == ["p1", "p2", "p3"]
    assert table.loc["p1"].tolist() == ["AA", 3, 2, 13, 9]
    assert table.loc["p3"].tolist() == ["BB", 4, 1, 16, 16]


def test_tumour_quantiles_are_over_positive_slices(pack):
    table = describe(pack).tumours
    assert table.loc["min"].tolist() == [1, 0.01, 1]
    assert table.loc["median"].tolist() == [6.5, 0.065, 13]  # of 1, 4, 9, 16 and of 13, 1, 16
    assert table.loc["max"].tolist() == [16, 0.16, 16]


def test_intensity_is_that_of_the_whole_volume(pack):
    table = describe(pack).intensity
    for case in pack.cases:
        for c, channel in enumerate(pack.manifest.channels):
            volume = pack.images[pack.rows([case])][..., c].astype(float).ravel()
            row = table.loc[(case, channel)]
            assert row["mean"] == pytest.approx(volume.mean())
            assert row["sd"] == pytest.approx(volume.std())
            assert row["zeros"] == pytest.approx((volume == 0).mean())
            for name, share in (("p1", 0.01), ("median", 0.5), ("p99", 0.99)):
                assert row[name] == np.quantile(volume, share, method="inverted_cdf")


def test_figures_show_what_the_tables_say(pack, tmp_path):
    drawn = figures(pack)
    assert list(drawn) == ["tumour_area", "tumour_location", "intensity", "class_balance"]
    for name, figure in drawn.items():
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    heights = [bar.get_height() for bar in drawn["tumour_area"].axes[0].patches]
    assert sum(heights) == 4
    (image,) = drawn["tumour_location"].axes[0].images
    location = image.get_array()
    assert location[0, 0] == pytest.approx(100)  # every positive slice has tumour in the corner
    assert location[3, 3] == pytest.approx(25)  # only the 4 x 4 square reaches this far
    assert location[4, 4] == 0
    means = sorted(describe(pack).intensity.xs("flair", level="channel")["mean"])
    assert sorted(bar.get_height() for bar in drawn["intensity"].axes[0].patches) == pytest.approx(means)
    assert sum(bar.get_width() for bar in drawn["class_balance"].axes[0].patches) == 9


def test_a_pack_without_tumour_is_described_too(tmp_path: Path):
    (tmp_path / "file").write_text("x")

    def empty(entry: SliceFile) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)

    source = Source("none", (SliceFile("p1", 1, "AA", tmp_path / "file", None),), empty, ("t2",), "none")
    pack = packed(source, tmp_path)
    tables = describe(pack)
    assert tables.counts["positive_slices"].tolist() == [0]
    assert tables.tumours["slice_area"].isna().all()
    for name, figure in figures(pack).items():
        figure.savefig(tmp_path / f"{name}.png")
