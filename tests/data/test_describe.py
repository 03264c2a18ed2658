"""Tables against arrays made by hand, figures against the tables, and the HTML page."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench.data.datasets.lgg import lgg
from bench.data.datasets.phantom import write_phantom
from bench.data.describe import (
    REST,
    TUMOUR,
    Description,
    auroc_of_histograms,
    count_pixels,
    describe,
    otsu_threshold,
    segment_head,
)
from bench.data.pack import Pack, load_or_pack, pack_in_memory
from bench.data.source import SliceFile, Source
from bench.errors import DataError
from bench.overrides import configure
from bench.reports.dataset.figures import choose_example_patients, draw_figures, share_by_depth
from bench.reports.dataset.page import CAPTIONS, format_cells, render_page
from bench.reports.dataset.printing import describe_config, print_description
from bench.structures import COLOURS, Structures, join_bits
from tests.fakes import pack_of, tiny_pack

# case, institution, tumour pixels of its slices
CASES = [("p1", "AA", [0, 4, 9]), ("p2", "AA", [1, 0]), ("p3", "BB", [0, 0, 0, 16])]
NAMES = [
    "class_balance", "patient_balance", "tumour_area", "tumour_location", "tumour_levels", "intensity", "examples",
]  # fmt: skip


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
    return load_or_pack(Source("toy", slices, pixels, ("pre", "flair"), "none"), folder)


@pytest.fixture(scope="module")
def about(pack: Pack) -> Description:
    return describe(pack)


@pytest.fixture(scope="module")
def drawn(pack: Pack, about: Description) -> dict[str, Figure]:
    return draw_figures(pack, about)


@pytest.fixture(scope="module", autouse=True)
def few_pixels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.reports.dataset.page.DPI", 30)
        yield


# --- tables


def test_counts_are_those_of_the_toy_data(about):
    (row,) = about.counts.to_dict("records")
    assert row == {
        "patients": 3, "slices": 9, "positive_slices": 4, "empty_slices": 5, "positive_share": 4 / 9,
        "tumour_pixels": 30, "tumour_share": 30 / 900,
    }  # fmt: skip


def test_institutions_are_those_of_the_toy_data(about):
    table = about.institutions
    assert table.loc["AA"].to_dict() == {
        "patients": 2, "slices": 5, "positive_slices": 3, "positive_share": 0.6, "median_tumour_area": 4,
    }  # fmt: skip
    assert table.loc["BB", ["patients", "slices", "median_tumour_area"]].tolist() == [1, 4, 16]


def test_patients_are_those_of_the_toy_data(about):
    assert about.patients.index.tolist() == ["p1", "p2", "p3"]
    assert about.patients.loc["p1"].tolist() == ["AA", 3, 2, 13, 9, 2 / 3]
    assert about.patients.loc["p3"].tolist() == ["BB", 4, 1, 16, 16, 1 / 4]


def test_tumour_quantiles_are_over_positive_slices(about):
    assert about.tumours.loc["min"].tolist() == [1, 0.01, 1]
    assert about.tumours.loc["median"].tolist() == [6.5, 0.065, 13]  # of 1, 4, 9, 16 and of 13, 1, 16
    assert about.tumours.loc["max"].tolist() == [16, 0.16, 16]


def test_intensity_is_that_of_the_whole_volume(pack, about):
    for case in pack.cases:
        for c, channel in enumerate(pack.manifest.channels):
            volume = pack.images[pack.rows([case])][..., c].astype(float).ravel()
            row = about.intensity.loc[(case, channel)]
            assert row["mean"] == pytest.approx(volume.mean())
            assert row["sd"] == pytest.approx(volume.std())
            assert row["zeros"] == pytest.approx((volume == 0).mean())
            for name, share in (("p1", 0.01), ("median", 0.5), ("p99", 0.99)):
                assert row[name] == np.quantile(volume, share, method="inverted_cdf")


# --- pixel counts: a head of 4 x 4 pixels in the dark, with a cavity, and tumour in its upper left


def toy_head() -> Pack:
    """Two patients of two slices of 8 x 8; the second patient is twice as bright and has no tumour."""
    images, masks = np.full((4, 8, 8, 2), 3, np.uint8), np.zeros((4, 8, 8), np.uint8)
    images[:, 2:6, 2:6, 0] = 100
    images[:, 3, 3, 0] = 0  # a cavity, as dark as what is outside
    masks[1, 2, 2:4] = 1
    images[1, 2, 2:4, 0] = [100, 140]
    images[2:] *= 2
    return pack_of(images, masks, ["a", "a", "b", "b"], ["AA", "AA", "BB", "BB"])


def test_the_head_is_the_bright_region_with_its_holes_filled():
    pack = toy_head()
    head = np.zeros((8, 8), bool)
    head[2:6, 2:6] = True
    assert np.array_equal(segment_head(pack.images[0], [3, 255]), head)
    assert not segment_head(pack.images[0], [255, 255]).any()
    assert np.array_equal(count_pixels(pack).head, 4 * head)
    assert count_pixels(pack).tumour.tolist() == pack.masks.sum(0).tolist()


def test_grey_levels_are_counted_for_tumour_and_the_rest_of_the_head():
    levels = count_pixels(toy_head()).levels
    assert levels.shape == (2, 2, 2, 256)
    first = {kind: {level: n for level, n in enumerate(levels[0, 0, kind]) if n} for kind in (REST, TUMOUR)}
    assert first == {
        TUMOUR: {100: 1, 140: 1},
        REST: {0: 2, 100: 28},
    }  # two slices of 15 bright pixels and a cavity
    assert levels[1, 0, REST, 200] == 30
    assert levels[1, 0, TUMOUR].sum() == 0
    assert levels[0, 1, REST, 3] == 30  # the other channel is dark: counted, but not part of the outline


def test_a_structure_outside_the_bright_region_is_compared_with_the_whole_slice():
    """As in a close crop, where Otsu's threshold divides the tissue: 8 pixels are darker than the 4 marked."""
    images, masks = np.full((1, 4, 4, 1), 10, np.uint8), np.zeros((1, 4, 4), np.uint8)
    images[0, 0], images[0, 3] = 210, 50
    masks[0, 3] = 1
    about = describe(pack_of(images, masks, ["a"]))
    assert about.pixel_counts.region == "slice"
    assert about.contrast["auroc"].item() == pytest.approx(8 / 12)
    assert about.contrast["rest_mean"].item() == pytest.approx((4 * 210 + 8 * 10) / 12)


def test_contrast_is_that_of_the_counted_pixels():
    table = describe(toy_head()).contrast
    assert table.loc[("a", "pre"), "tumour_mean"] == 120
    assert table.loc[("a", "pre"), "rest_mean"] == pytest.approx(2800 / 30)
    # Of 2 x 30 pairs, 100 beats the 2 zeros and ties with 28, and 140 beats all 30.
    assert table.loc[("a", "pre"), "auroc"] == pytest.approx((2 + 14 + 30) / 60)
    assert table.loc[("a", "flair")].tolist() == [3, 3, 0.5]
    assert table.loc[("b", "pre")].isna().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("some", "others", "share"), [([9], [1], 1), ([1], [9], 0), ([4, 4], [4], 0.5), ([1, 9], [5, 9], 3 / 8)]
)
def test_the_auroc_of_histograms_counts_pairs(some, others, share):
    assert auroc_of_histograms(np.bincount(some, minlength=256), np.bincount(others, minlength=256)) == share


def test_the_otsu_threshold_minimises_the_variance_within_classes():
    rng = np.random.default_rng(3)
    for _ in range(20):
        values = np.concatenate([rng.integers(0, 40, 60), rng.integers(30, 256, 30)])
        within = [
            sum(len(v) * v.var() for v in (values[values <= t], values[values > t]) if len(v)) for t in range(256)
        ]
        assert within[otsu_threshold(np.bincount(values, minlength=256))] == pytest.approx(min(within))
    assert otsu_threshold(np.bincount([7, 7, 7], minlength=256)) == 255


# --- figures


def test_figures_show_the_values_of_the_tables(drawn):
    assert list(drawn) == NAMES
    assert all(isinstance(figure, Figure) for figure in drawn.values())
    for axes, counted in zip(drawn["tumour_area"].axes, (4, 3), strict=True):  # slices, and patients with tumour
        assert sum(bar.get_height() for bar in axes.patches) == counted
    (image,) = drawn["tumour_location"].axes[0].images
    location = image.get_array()
    assert location[0, 0] == pytest.approx(100)  # every positive slice has tumour in the corner
    assert location[3, 3] == pytest.approx(25)  # only the 4 x 4 square reaches this far
    assert location[4, 4] == 0
    assert sum(bar.get_width() for bar in drawn["class_balance"].axes[0].patches) == 9
    red = [bar.get_height() for bar in drawn["patient_balance"].axes[0].patches if bar.get_y() == 0]
    assert sorted(red) == pytest.approx([1 / 4, 1 / 2, 2 / 3])


def test_every_patient_is_a_dot_at_the_mean_level_of_its_head(pack, about, drawn):
    panels = drawn["intensity"].axes
    for axes, channel in zip(panels, pack.manifest.channels, strict=True):
        dots = [y for cloud in axes.collections if (o := cloud.get_offsets()).size for y in np.asarray(o)[:, 1]]
        means = about.contrast["rest_mean"].xs(channel, level="channel")
        assert set(means.round(6)) <= set(np.round(dots, 6))


def test_every_patient_has_the_same_weight_in_the_pooled_levels():
    def lone(level: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Slices with a bright head, whose upper half is tumour of one level."""
        images, masks = np.zeros((count, 8, 8, 1), np.uint8), np.zeros((count, 8, 8), np.uint8)
        images[:, 2:6, 2:6], images[:, 2:4, 2:6] = 240, level
        masks[:, 2:4, 2:6] = 1
        return images, masks

    few, many = lone(100, 1), lone(200, 9)
    images, masks = (np.concatenate(parts) for parts in zip(few, many, strict=True))
    pack = pack_of(images, masks, ["a"] + 9 * ["b"])
    raw = draw_figures(pack, describe(pack))["tumour_levels"].axes[0]
    rest, _, tumour, _ = [stairs.get_data() for stairs in raw.patches]
    assert {int(edge): share for edge, share in zip(tumour.edges, tumour.values, strict=False) if share} == {
        100: 0.5,
        200: 0.5,
    }
    assert rest.values[60] == 1


def test_the_relative_depth_does_not_depend_on_the_number_of_slices(pack):
    (share,) = share_by_depth(pack, describe(pack).pixel_counts.areas)
    assert share[0] == pytest.approx(1 / 3)  # only p2 has tumour on its first slice
    assert share[-1] == pytest.approx(2 / 3)  # p1 and p3 on their last
    assert share[20] == pytest.approx(2 / 3)  # half way: the second of three, the first of two (rounded to even)


def test_examples_are_the_largest_slices_of_small_median_and_large_tumours(about, drawn):
    assert choose_example_patients(about.patients) == {"small": "p2", "median": "p1", "large": "p3"}
    axes = drawn["examples"].axes
    masks = [np.asarray(a.images[0].get_array())[..., 0].sum() for a in axes[2:12:4]]
    assert masks == [1, 9, 16]
    assert "tumour: 13 px\nslice 3: 9 px" in axes[4].get_ylabel()


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [([0, 5], {"median": "P1"}), ([5, 7], {"median": "P0", "large": "P1"}), ([0, 0], {})],
)
def test_no_patient_is_an_example_twice(about, sizes, chosen):
    few = about.patients.iloc[:2].set_axis(["P0", "P1"]).assign(tumour_pixels=sizes)
    assert choose_example_patients(few) == chosen


def test_a_pack_without_tumour_can_be_described(tmp_path: Path):
    (tmp_path / "file").write_text("x")

    def empty(entry: SliceFile) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)

    source = Source("none", (SliceFile("p1", 1, "AA", tmp_path / "file", None),), empty, ("t2",), "none")
    pack = load_or_pack(source, tmp_path)
    about = describe(pack)
    assert about.counts["positive_slices"].tolist() == [0]
    assert about.tumours["slice_area"].isna().all()
    drawn = draw_figures(pack, about)
    assert list(drawn) == NAMES[:-1]
    assert read(render_page(pack, about, drawn)).figures == len(NAMES) - 1


# --- the page


class Reader(HTMLParser):
    """A strict parser: tags must be closed in order."""

    VOID = ("meta", "img", "link", "br", "hr", "input", "source")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def figures(self) -> int:
        return self.tags.count("figure")

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def whole(pack: Pack, about: Description, drawn: dict[str, Figure]) -> str:
    return render_page(pack, about, drawn)


def test_the_page_is_self_contained(whole):
    reader = read(whole)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "poster", "data", "style"):
            assert (tag, name) == ("img", "src")
            assert value.startswith("data:image/png;base64,")
    assert "http:" not in whole
    assert "https:" not in whole
    assert not re.search(r"url\(|@import|@font-face", whole)


def test_the_page_has_every_figure_with_its_caption(whole):
    assert list(CAPTIONS) == NAMES
    reader = read(whole)
    images = [value for tag, name, value in reader.attributes if (tag, name) == ("img", "src")]
    assert len(images) == reader.figures == reader.tags.count("figcaption") == len(NAMES)
    assert all(base64.b64decode(image.partition(",")[2]).startswith(b"\x89PNG") for image in images)
    for number, (title, sentence) in enumerate(CAPTIONS.values(), start=1):
        assert f"Figure {number}. {title}." in reader.words
        assert sentence.partition("{")[0] in reader.words
        assert sentence.endswith(".")
    assert "small: p2 of AA, median: p1 of AA, large: p3 of BB" in reader.words


def test_the_page_shows_the_values_of_the_tables(whole, pack):
    words = read(whole).words
    assert "3 patients, 9 slices" in words
    assert "Licence none Images 10 × 10 pixels (rows × columns) of 8 bits Channels pre, flair" in words
    assert f"Content key {pack.manifest.key}" in words
    assert "44.4% share of slices with tumour" in words
    assert "AA 2 5 3 60.0% 4" in words
    assert "p3 BB 4 1 16 16 25.0%" in words
    assert "its share of the image 1.0%" in words


def test_numbers_are_formatted_for_reading(about):
    table = format_cells(about.tumours, "tumour")
    assert table.loc["median"].tolist() == ["6.5", "6.5%", "13"]
    tiny = about.counts.assign(tumour_share=0.0004, tumour_pixels=1234567.5, positive_share=np.nan)
    (row,) = format_cells(tiny, "tumour").to_dict("records")
    assert row["share of pixels with tumour"] == "0.04%"
    assert row["tumour pixels"] == "1,234,568"
    assert row["share of slices with tumour"] == "–"


HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> {patients} $a$ & co"


def test_names_from_the_data_cannot_become_html():
    clean = tiny_pack(cases=3)
    index = clean.index.assign(case=clean.index["case"] + HOSTILE, institution=HOSTILE)
    manifest = replace(
        clean.manifest, dataset=HOSTILE, licence=HOSTILE, notes=(HOSTILE,), channels=(HOSTILE, "b", "c")
    )
    pack = replace(clean, index=index, manifest=manifest)
    about = describe(pack)
    text = render_page(pack, about, draw_figures(pack, about))
    reader = read(text)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert reader.figures == len(NAMES)
    for said in ("The data set ", "Licence ", "Channels ", "small: P0"):
        assert f"{said}{HOSTILE}" in reader.words


@pytest.mark.slow
def test_a_synthetic_dataset_is_marked_on_the_page_and_in_every_figure():
    real = tiny_pack()
    made = replace(real, manifest=replace(real.manifest, synthetic=True))
    about = describe(made)
    drawn = draw_figures(made, about)
    assert all("SYNTHETIC" in figure.get_suptitle() for figure in drawn.values())
    assert "Synthetic: drawn phantoms, not patients." in read(render_page(made, about, drawn)).words
    assert "ynthetic" not in render_page(real, about, draw_figures(real, about))


@pytest.mark.slow
def test_the_citation_is_only_for_known_data_not_for_a_folder_of_its_name():
    real = tiny_pack()
    about = describe(real)

    def words(licence: str) -> str:
        pack = replace(real, manifest=replace(real.manifest, dataset="lgg", licence=licence))
        return read(render_page(pack, about, draw_figures(pack, about))).words

    assert "Mazurowski" in words("CC BY-NC-SA 4.0")
    assert "Source not stated" in words("not stated")


# --- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(
        tmp_path_factory.mktemp("data") / "heads <b>", patients=4, size=32, slices=6, institutions=2
    )


@pytest.mark.slow
def test_the_command_writes_the_page_and_prints_its_path(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "new" / "data.html"
    config = configure({"dataset": "lgg", "dataset.folder": str(folder)})
    print_description(describe_config(config, tmp_path / "out", file), tmp_path / "out", file)
    assert read(file.read_text(encoding="utf-8")).figures == len(NAMES)
    assert {f.stem for f in (tmp_path / "out").glob("*.png")} == set(NAMES)
    assert {f.stem for f in (tmp_path / "out").glob("*.csv")} == {
        "counts", "institutions", "patients", "tumours", "intensity", "contrast",
    }  # fmt: skip
    assert f"the page is {file} (" in capsys.readouterr().out


def test_a_page_cannot_replace_a_folder(folder, tmp_path):
    with pytest.raises(DataError, match=r"is a folder\. Give --html the name of a file"):
        describe_config(configure({"dataset": "lgg", "dataset.folder": str(folder)}), None, tmp_path)


@pytest.mark.slow
def test_the_real_data_is_described_in_seconds_on_a_small_page(lgg_folder):
    pack = load_or_pack(lgg(folder=lgg_folder))
    started = time.process_time()
    about = describe(pack)
    assert time.process_time() - started < 4 * max(len(pack.index) / 1000, 1)
    assert 0.7 < about.contrast["auroc"].xs("flair", level="channel").median() < 1
    text = render_page(pack, about, draw_figures(pack, about))
    assert len(text) < 3e6
    assert read(text).figures == len(NAMES)


def test_each_structure_is_described_on_the_own_grid_of_its_slices():
    """One patient of two slices of 4 x 4 pixels, padded to 8 x 8: core has 2 and 0 pixels, rim 4 and 4."""
    two = Structures(("core", "rim"), ((1,), (2,)))
    images, masks = np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 2, 8, 8), bool)
    images[:, :4, :4] = 100 * np.eye(4, dtype=np.uint8)[..., None]
    masks[0, 0, 0, :2] = masks[:, 1, 1, :4] = True
    pack = pack_in_memory(images, ("flair",), join_bits(masks, two), "P", two)
    about = describe(replace(pack, index=pack.index.assign(height=4, width=4)))
    counts = about.counts[["patients", "positive_slices", "structure_pixels", "structure_share"]]
    assert counts.loc["any"].tolist() == [1, 2, 10, 10 / 32]
    assert counts.loc["core"].tolist() == [1, 1, 2, 2 / 32]
    assert counts.loc["rim"].tolist() == [1, 2, 8, 8 / 32]
    assert about.tumours.loc[("core", "max")].tolist() == [2, 2 / 16, 2]
    assert about.tumours.loc[("rim", "median")].tolist() == [4, 4 / 16, 8]
    assert about.patients.loc["P", ["pixels[core]", "pixels[rim]"]].tolist() == [2, 8]
    assert about.contrast.loc[("rim", "P", "flair"), "structure_mean"] == 25


def test_each_structure_has_its_own_colour_in_figures_and_row_in_tables():
    """One patient of two slices: core has 2 and 0 pixels, rim 4 and 4."""
    two = Structures(("core", "rim"), ((1,), (2,)))
    images, masks = np.full((2, 4, 4, 1), 9, np.uint8), np.zeros((2, 2, 4, 4), bool)
    images[:, :2] = 90
    masks[0, 0, 0, :2] = masks[:, 1, 1] = True
    pack = pack_in_memory(images, ("flair",), join_bits(masks, two), "P", two)
    about = describe(pack)
    drawn = draw_figures(pack, about)
    slices = drawn["tumour_area"].axes[0]
    counted = [sum(bar.get_height() for bar in bars) for bars in slices.containers]
    assert (slices.get_legend_handles_labels()[1], counted) == (["core", "rim"], [1, 2])
    core, rim = (line.get_ydata() for line in drawn["tumour_location"].axes[1].lines)
    assert (core[0], core[-1], rim[0], rim[-1]) == (1, 0, 1, 1)
    truth = np.asarray(drawn["examples"].axes[2].images[0].get_array())
    assert [to_hex(colour) for colour in (truth[0, 0], truth[1, 0], truth[3, 0])] == [*COLOURS[:2], "#000000"]
    text = render_page(pack, about, drawn)
    assert "umour" not in re.sub(r"data:image/png;base64,[^\"]*|<style>.*?</style>", "", text, flags=re.DOTALL)
    row = '<th scope="row">core</th><th scope="row">structure area of a positive slice (pixels)</th><td>2</td>'
    assert row in text
