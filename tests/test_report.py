"""The same values in every form, nothing that a name can smuggle in, and outlines where they belong."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from math import isnan, nan

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from rich.console import Console

from bench.leaderboard import Board, Row
from bench.report import (
    PREDICTION,
    SEGMENTATION,
    TRUTH,
    board_csv,
    board_json,
    board_markdown,
    board_table,
    curves,
    duration,
    model_card,
    outline,
    overlay,
    overlays,
    side_by_side,
)
from tests.packs import tiny_pack

ROW = Row(
    **{"rank": 1, "name": "first", "model": "unet", "encoder": "", "loss": "bce_dice", "dice": 0.81234},
    **{"low": 0.79, "high": 0.83, "median": 0.85, "p5": 0.41, "under_half": 7, "positive_slices": 0.77},
    **{"hd95": 6.25, "missed_slices": 42, "dice_global": 0.88, "patients": 110, "epochs": 50, "images": 99000},
    **{"parameters": 31_037_633, "wall_seconds": 3700.0, "weights": "scratch", "seed": "0", "data": "d" * 8},
    **{"split": "s" * 12, "synthetic": False, "run_id": "0123456789abcdef"},
)


def board(*rows: Row, synthetic: bool = False, dataset: str = "lgg") -> Board:
    return Board(
        "segmentation",
        dataset,
        "d" * 16,
        "s" * 12,
        110,
        synthetic,
        tuple(replace(r, synthetic=synthetic) for r in rows),
    )


def terminal(shown: Board) -> str:
    console = Console(width=400, record=True, file=io.StringIO(), color_system=None)
    console.print(board_table(shown))
    return console.export_text()


def cells(line: str) -> list[str]:
    """The cells of a Markdown row; an escaped bar is no border."""
    return [c.strip().replace("\0", "|") for c in line.replace("\\|", "\0").strip("|").split("|")]


# Boards


def test_table_and_markdown_show_the_same_cells():
    expected = [
        *("1", "first", "0.812", "0.790–0.830", "0.850", "0.410", "7", "6.2", "42", "0.770", "50", "31.0"),
        *("1 h 01 min", "ssssssss", "01234567"),
    ]
    title, _, head, rule, row, *_ = board_markdown([board(ROW)]).splitlines()
    assert title == "**lgg · data dddddddd · split ssssssssssss · 110 patients**"
    assert len(cells(head)) == len(cells(rule)) == len(SEGMENTATION)
    assert cells(row) == expected
    shown = terminal(board(ROW))
    assert all(cell in shown for cell in expected)


def test_csv_and_json_hold_every_field_at_full_precision():
    (line,) = csv.DictReader(io.StringIO(board_csv([board(ROW)])))
    ((stored,),) = [b["rows"] for b in json.loads(board_json([board(ROW)]))]
    for field in Row.__annotations__:
        assert stored[field] == getattr(ROW, field)
        assert line[field] == str(getattr(ROW, field))


def test_boards_follow_one_another_under_their_titles():
    two = [board(ROW), board(replace(ROW, name="second"), dataset="phantom", synthetic=True)]
    assert board_markdown(two).count("**") == 4
    assert len(board_csv(two).splitlines()) == 3
    assert [b["dataset"] for b in json.loads(board_json(two))] == ["lgg", "phantom"]
    assert board_markdown([]) == ""


def test_what_is_not_defined_is_a_dash_or_null():
    undefined = replace(ROW, dice=nan, hd95=nan, wall_seconds=nan)
    row = cells(board_markdown([board(undefined)]).splitlines()[4])
    assert (row[2], row[7], row[12]) == ("–", "–", "–")
    ((stored,),) = [b["rows"] for b in json.loads(board_json([board(undefined)]))]
    assert (stored["dice"], stored["hd95"], stored["wall_seconds"]) == (None, None, None)
    (line,) = csv.DictReader(io.StringIO(board_csv([board(undefined)])))
    assert isnan(float(line["dice"]))


def test_synthetic_is_said_on_every_row_and_in_the_title():
    shown = board(ROW, replace(ROW, name="second"), synthetic=True)
    for text in (terminal(shown), board_markdown([shown]).replace("\\", "")):
        assert "SYNTHETIC, not patients" in text
        assert "first [synthetic]" in text
        assert "second [synthetic]" in text
    assert {line["synthetic"] for line in csv.DictReader(io.StringIO(board_csv([shown])))} == {"True"}
    assert "ynthetic" not in terminal(board(ROW))


# Names that mean harm


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "\\[red]x", "x[/]", "[link=http://x]y", "a|b", "*a*"])
def test_a_terminal_shows_names_as_they_are(name):
    assert name in terminal(board(replace(ROW, name=name)))
    assert name in terminal(board(ROW, dataset=name))


@pytest.mark.parametrize("name", ["\x1b[2Jx", "a\nb", "a\rb", "a\x07", "\u202eabc"])
def test_control_characters_reach_neither_terminal_nor_markdown(name):
    harmless = "".join(c if c.isprintable() else "?" for c in name)
    for harmed in (board(replace(ROW, name=name)), board(ROW, dataset=name)):
        assert harmless in terminal(harmed)
        assert not set(name) - set(harmless) & set(board_markdown([harmed]).replace("\n", ""))
        assert len(board_markdown([harmed]).splitlines()) == len(board_markdown([board(ROW)]).splitlines())


def test_markdown_names_cannot_end_a_cell_or_start_a_style():
    name = "a|b*c*_d_`e`<b>[f](g)\\"
    row = board_markdown([board(replace(ROW, name=name))]).splitlines()[4]
    assert len(cells(row)) == len(SEGMENTATION)
    assert r"a\|b\*c\*\_d\_\`e\`\<b\>\[f\](g)" + "\\\\" in row
    assert board_markdown([board(ROW, dataset="x**y")]).startswith(r"**x\*\*y ·")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "?=1"),
        ("a\r\n=1", "a??=1"),
    ],
)
def test_a_spreadsheet_does_not_run_a_name(name, said):
    (line,) = csv.DictReader(io.StringIO(board_csv([board(replace(ROW, name=name, dice=-1.0))]), newline=""))
    assert line["name"] == said
    assert line["dice"] == "-1.0"


def test_csv_survives_commas_and_quotes():
    name = 'a,"b"'
    (line,) = csv.DictReader(io.StringIO(board_csv([board(replace(ROW, name=name))])))
    assert line["name"] == name


def test_a_model_card_says_the_headline_and_the_facts():
    card = model_card("u*net", {"loss": "bce_dice"}, {"dice": 0.8, "dice_low": 0.75, "dice_high": 0.85})
    assert card.startswith(r"**u\*net**: per-patient Dice **0.800** (95% interval 0.750 to 0.850)")
    assert r"- loss: bce\_dice" in card.splitlines()
    assert "**–**" in model_card("x", {}, {})


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3599.6, "1 h 00 min")),
        *((3700, "1 h 01 min"), (90000, "25 h 00 min"), (nan, "–")),
    ],
)
def test_durations_are_said_in_two_units(seconds, said):
    assert duration(seconds) == said


# Figures


def near(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Where the colour is, bool (H, W); antialiasing blends it with what is around."""
    return np.abs(pixels.astype(int) - np.array([round(255 * c) for c in to_rgb(colour)])).max(-1) < 40


def drawn(truth: np.ndarray | None, prediction: np.ndarray) -> np.ndarray:
    """The outlines on a black slice that fills the figure: 10 pixels for each of the slice."""
    height, width = prediction.shape
    figure = Figure(figsize=(width / 10, height / 10), dpi=100)
    outline(figure.add_axes((0, 0, 1, 1)), np.zeros(prediction.shape, np.uint8), 1, truth, prediction)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def box(top: int, left: int, side: int = 6, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(("top", "left"), [(4, 5), (0, 0), (26, 26), (10, 26)])
def test_an_outline_runs_around_its_mask_also_at_the_border(top, left):
    """Of each side of the 6 x 6 box, the middle of its edge is coloured, and nothing far from the edge is."""
    seen = near(drawn(None, box(top, left)), PREDICTION)
    middle_y, middle_x = 10 * top + 30, 10 * left + 30
    for y, x in [
        (10 * top, middle_x),
        (10 * top + 60, middle_x),
        (middle_y, 10 * left),
        (middle_y, 10 * left + 60),
    ]:
        assert seen[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any(), (y, x)
    rows, columns = np.nonzero(seen)
    assert rows.min() >= 10 * top - 3
    assert columns.min() >= 10 * left - 3
    assert rows.max() <= 10 * top + 63
    assert columns.max() <= 10 * left + 63
    assert not seen[10 * top + 5 : 10 * top + 55, 10 * left + 5 : 10 * left + 55].any()


def test_truth_and_prediction_have_their_own_colours():
    pixels = drawn(box(2, 2), box(20, 20))
    truth, prediction = near(pixels, TRUTH), near(pixels, PREDICTION)
    assert truth[:160, :160].any()
    assert prediction[160:, 160:].any()
    assert not truth[160:].any()
    assert not prediction[:160].any()


@pytest.mark.parametrize("mask", [np.zeros((32, 32), bool), np.ones((32, 32), bool), box(0, 0, 1)])
def test_empty_full_and_tiny_masks_are_drawn_without_a_warning(mask):
    pixels = drawn(mask, mask)
    assert near(pixels, PREDICTION).any() == mask.any()


PACK = tiny_pack(cases=3, slices=6)
NOTHING = np.zeros((6, 32, 32), bool)


def test_an_overlay_shows_truth_and_prediction_as_rgb_pixels():
    found = overlay(PACK, "P1", PACK.masks[PACK.rows(["P1"])].astype(bool), "found")
    missed = overlay(PACK, "P1", NOTHING, "missed")
    for pixels in (found, missed):
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
    slices = np.s_[: missed.shape[0] * 8 // 10]  # above the legend
    assert near(missed[slices], TRUTH).any()
    assert not near(missed[slices], PREDICTION).any()
    assert near(found[slices], PREDICTION).any()


def test_an_overlay_of_a_patient_without_tumour_is_drawn():
    empty = replace(PACK, masks=np.zeros_like(PACK.masks))
    assert overlay(empty, "P0", NOTHING, "empty").shape[2] == 3


def test_an_overlay_of_synthetic_data_says_so():
    synthetic = replace(PACK, manifest=replace(PACK.manifest, synthetic=True))
    said, silent = (overlay(pack, "P0", NOTHING, "title") for pack in (synthetic, PACK))
    heading = np.s_[: said.shape[0] // 25]
    dark = [(pixels[heading] < 128).all(-1).sum() for pixels in (said, silent)]
    assert dark[0] > 1.5 * dark[1]


def test_overlays_are_of_the_worst_the_median_and_the_best_patient():
    """Only the patient shown needs a prediction: a wrong choice would not find one."""
    cases = pd.DataFrame({"case": ["P0", "P1", "P2", "P9"], "dice": [0.9, 0.2, 0.5, nan]})
    predictions = {case: NOTHING for case in ("P0", "P1", "P2")}
    made = overlays(PACK, cases, predictions, "dice")
    assert list(made) == ["worst", "median", "best"]
    expected = {"worst": "P1, dice 0.200", "median": "P2, dice 0.500", "best": "P0, dice 0.900"}
    for name, said in expected.items():
        assert np.array_equal(made[name], overlay(PACK, said[:2], NOTHING, f"{name}: {said}"))
    assert overlays(PACK, cases.assign(dice=nan), predictions, "dice") == {}
    far = overlays(PACK, cases.rename(columns={"dice": "hd95"}), predictions, "hd95", sign=-1)
    assert np.array_equal(far["worst"], overlay(PACK, "P0", NOTHING, "worst: P0, hd95 0.900"))


def test_curves_and_pairs_are_rgb_pixels():
    history = pd.DataFrame({"epoch": [1, 2, 3], "train/loss": [3.0, 2.0, 1.5], "val/dice": [0.1, nan, 0.4]})
    shown = curves(history, "dice")
    assert shown.dtype == np.uint8
    assert near(shown[:, : shown.shape[1] // 2], "#4059ad").any()
    assert near(shown[:, shown.shape[1] // 2 :], "#d1495b").any()
    pair = side_by_side(PACK.images[1, ..., 1], PACK.masks[1].astype(bool))
    half = pair.shape[1] // 2
    assert not near(pair[:, :half], PREDICTION).any()
    assert near(pair[:, half:], PREDICTION).any()
