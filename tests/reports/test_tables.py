"""Boards have the same values in every format, and names cannot inject markup."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise
from math import isnan, nan

import pandas as pd
import pytest
from rich.console import Console

from bench.analysis.board import Board, BoardRow
from bench.analysis.run_summary import headline, model_card
from bench.formatting import between, decimal, duration, letter, p_value, signed, to_json
from bench.reports.html.board_page import boards_page
from bench.reports.tables import (
    board_columns,
    board_csv,
    board_markdown,
    board_values,
    cases_csv,
    frame_markdown,
    legend,
    print_board,
    score_columns,
)
from bench.text_table import TextColumn, fit_columns, frame_columns, print_frame, split_columns
from bench.types import RunRecord

SCORES = {"dice": 0.81234, "dice_median": 0.85, "dice_p5": 0.4149, "dice_under_half": 7.0, "hd95": 6.25}
SCORES |= {"dice_positive_slices": 0.7777, "slice_sensitivity": 0.9, "missed_slices": 42.0, "dice_global": 0.88}
ROW = BoardRow(
    **{"rank": 1, "name": "first", "model": "unet", "encoder": "", "loss": "bce_dice", "weights": "scratch"},
    **{"score": 0.81234, "low": 0.79, "high": 0.83456, "difference": 0.0, "difference_low": 0.0},
    **{"difference_high": 0.0, "p": 1.0, "group": 1, "first": 0.987, "rank_low": 1, "rank_high": 2},
    **{"seeds": 2, "folds": 5, "patients": 110, "budget": "24k x 64 px", "epochs": 12.5, "images": 99000.0},
    **{"parameters": 31_037_633.0, "flops": 1.234e9, "wall_seconds": 3700.0, "device_seconds": 2399.6},
    **{
        "peak_memory_mb": 1024.4,
        "latency_p50_ms": 12.34,
        "latency_p95_ms": 20.06,
        "hardware": "cpu",
        "members": 1,
        "searched": 0,
    },
    **{"seed": "0, 1", "data": "d" * 8, "split": "s" * 12, "synthetic": False, "run_id": "0123456789abcdef"},
    **{"runs": ("0123456789abcdef", "fedcba"), "scores": SCORES, "verdict": "leader", "letters": "A"},
)
SECOND = replace(
    ROW,
    **{"rank": 2, "name": "second", "score": 0.7, "low": 0.65, "high": 0.75, "difference": -0.11234, "p": 0.00012},
    **{"difference_low": -0.15, "difference_high": -0.05, "group": 2, "first": 0.013, "rank_low": 2},
    **{"run_id": "abcdef0123456789", "encoder": "resnet18", "flops": nan, "scores": {"dice": 0.7, "hd95": nan}},
    **{"verdict": "behind", "letters": "AB"},
)
RUN = ["1", "first"]
STANDING = [
    *("0.812", "0.790 to 0.835", "+0.000", "–", "leader", "1.000", "A", "0.99", "1–2"),
    *("0.850", "6.2", "42", "7", "0.415", "0.778", "0.900", "–"),
]
COSTS = [
    *("2 x 5", "scratch", "24k x 64 px", "12.5", "31.0", "1.23", "2400", "1024", "12.3", "20.1", "0"),
    *("1 h 01 min", "cpu", "ssssssss"),
]
ID = ["01234567"]
SECOND_STANDING = [
    *("0.700", "0.650 to 0.750", "-0.112", "-0.150 to -0.050", "behind", "<0.001", "AB", "0.01", "2–2"),
    *("–", "–", "–", "–", "–", "–", "–", "–"),
]


def record(run_id: str, seed: str, dice: list[float]) -> RunRecord:
    cases = pd.DataFrame({"case": ["x,1", "y"], "fold": [0, 1], "dice": dice})
    return RunRecord(run_id, "any", cases, {"run.seed": seed}, {}, {})


def test_cases_csv_lists_every_patient_of_every_run():
    rows = replace(ROW, runs=("a", "b")), replace(SECOND, runs=("c",))
    runs = [record("c", "0", [0.25, nan]), record("b", "1", [0.5, 1 / 3]), record("a", "0", [0.75, 1.0])]
    lines = list(csv.DictReader(io.StringIO(cases_csv([board(*rows), board(rows[1])], runs))))
    rows_of_csv = [(x["board"], x["rank"], x["name"], x["run_id"], x["seed"], x["case"], x["dice"]) for x in lines]
    assert rows_of_csv == [
        ("1", "1", "first", "a", "0", "x,1", "0.75"),
        ("1", "1", "first", "a", "0", "y", "1"),
        ("1", "1", "first", "b", "1", "x,1", "0.5"),
        ("1", "1", "first", "b", "1", "y", "0.333333"),
        ("1", "2", "second", "c", "0", "x,1", "0.25"),
        ("1", "2", "second", "c", "0", "y", ""),
        ("2", "2", "second", "c", "0", "x,1", "0.25"),
        ("2", "2", "second", "c", "0", "y", ""),
    ]
    assert cases_csv([], runs) == ""


def board(*rows: BoardRow, synthetic: bool = False, dataset: str = "lgg", **changes: object) -> Board:
    made = Board(
        **{"task": "segmentation", "primary": "dice", "dataset": dataset, "data_key": "d" * 16},
        **{"split_hash": "s" * 12, "patients": 110, "synthetic": synthetic, "post_hoc": False, "left_out": ()},
        rows=tuple(replace(row, synthetic=synthetic) for row in rows),
    )
    return replace(made, **changes)


SLICES = {
    "auroc": 0.91234,
    "average_precision": 0.8765,
    "accuracy": 0.84,
    "sensitivity": 0.75,
    "specificity": 0.92,
}
SLICES |= {"brier": 0.11, "ece": 0.05, "missed_slices": 4, "false_positive_slices": 3}
PRESENT_ROW = replace(ROW, score=0.91234, scores=SLICES)
PRESENT = board(PRESENT_ROW, PRESENT_ROW, task="presence", primary="auroc")
BOTH = board(ROW, SECOND)


def screen(width: int) -> Console:
    return Console(width=width, record=True, file=io.StringIO(), color_system=None)


def terminal(shown: Board, width: int = 1000, *, wide: bool = True) -> str:
    console = screen(width)
    print_board(console, shown, wide=wide)
    return console.export_text()


def printed(frame: pd.DataFrame, title: str = "", width: int = 1000, **options: object) -> str:
    console = screen(width)
    print_frame(console, title, frame, **options)
    return console.export_text()


def words(text: str) -> list[list[str]]:
    """Return the cells of each line of a table whose cells are at least two spaces apart."""
    return [re.split("  +", line.strip()) for line in text.splitlines()]


def markdown(*shown: Board) -> list[list[list[str]]]:
    """Return the cells of each table, headings first; an escaped bar is no border."""
    text = board_markdown(shown)
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    return [[cells(line) for n, line in enumerate(table) if n != 1] for table in tables]


def cells(line: str) -> list[str]:
    split = re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in split]


class Page(HTMLParser):
    """All tags, the texts by the tag that contains them, and the cells of each table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts[self.tags[-1]][-1] += data
        if self.in_cell:
            self.rows[-1][-1] += data


def html(shown: Board) -> list[list[str]]:
    """Return the cells of the table on the page of a board, headings first."""
    return Page(boards_page([shown])).rows


def json_of(*shown: Board) -> list[dict[str, object]]:
    return json.loads(to_json([board_values(each) for each in shown]))


# Formats


def test_terminal_and_markdown_show_the_same_cells():
    scores, costs = markdown(BOTH)
    assert scores[1:] == [[*RUN, *STANDING, *ID], ["2", "second", *SECOND_STANDING, "abcdef01"]]
    assert costs[1] == [*RUN, *COSTS, *ID]
    assert costs[2][7] == "–"  # unknown GFLOPs
    assert scores[0][:4] == ["#", "run", "Dice", "95% interval"]
    lines = words(terminal(BOTH))
    for score, cost in zip(scores[1:], costs[1:], strict=True):
        assert [*score[:-1], *cost[2:]] in lines


def test_html_shows_scores_and_costs_in_one_table():
    scores, costs = markdown(BOTH)
    assert html(BOTH) == [[*s[:-1], *c[2:]] for s, c in zip(scores, costs, strict=True)]
    assert html(BOTH)[1] == [*RUN, *STANDING, *COSTS, *ID]


def test_a_presence_board_shows_its_scores_in_every_format():
    scores = ["0.876", "0.750", "0.920", "0.840", "4", "3", "0.110", "0.050"]
    expected = [*RUN, "0.912", *STANDING[1:9], *scores]
    assert [*expected, *COSTS, *ID] in words(terminal(PRESENT))
    assert markdown(PRESENT)[0][0][2] == "AUROC"
    assert "Dice" not in markdown(PRESENT)[0][0]
    assert markdown(PRESENT)[0][1] == [*expected, *ID]
    assert html(PRESENT)[1] == [*expected, *COSTS, *ID]


def test_csv_and_json_contain_every_field_at_full_precision():
    (lines, (stored,)) = list(csv.DictReader(io.StringIO(board_csv([BOTH])))), json_of(BOTH)
    for row, line, kept in zip((ROW, SECOND), lines, stored["rows"], strict=True):
        fields = {k: v for k, v in asdict(row).items() if k not in ("runs", "repeats", "scores")}
        for name, value in (fields | row.scores).items():
            if isinstance(value, float) and isnan(value):
                assert (line[name], kept[name]) == ("nan", None)
            else:
                assert (line[name], kept[name]) == (str(value), value)
        assert line["runs"] == kept["runs"] == "0123456789abcdef fedcba"


def test_numbers_in_csv_and_json_round_to_the_cells():
    (line, _), ((kept, _),) = (
        csv.DictReader(io.StringIO(board_csv([BOTH]))),
        [b["rows"] for b in json_of(BOTH)],
    )
    heading = dict(zip(*html(BOTH)[:2], strict=True))
    for name, (heads, digits, scale) in {
        "score": ("Dice", 3, 1),
        "p": ("p", 3, 1),
        "first": ("P(1st)", 2, 1),
        "dice_median": ("median", 3, 1),
        "hd95": ("HD95 px", 1, 1),
        "missed_slices": ("missed", 0, 1),
        "parameters": ("params M", 1, 1e6),
        "flops": ("GFLOPs", 2, 1e9),
        "latency_p95_ms": ("ms p95", 1, 1),
        "device_seconds": ("device-s", 0, 1),
    }.items():
        assert f"{float(line[name]) / scale:.{digits}f}" == f"{kept[name] / scale:.{digits}f}" == heading[heads]


def test_json_contains_the_board_and_its_notes():
    (stored,) = json_of(replace(BOTH, left_out=("a",)))
    assert (stored["task"], stored["primary"], stored["dataset"]) == ("segmentation", "dice", "lgg")
    assert (stored["patients"], stored["left_out"], stored["post_hoc"]) == (110, ["a"], False)
    assert stored["notes"][1:] == [
        "1 patient is left out of every row, as dice is undefined: a. "
        "What other rows got wrong there does not show."
    ]


def test_every_format_contains_title_notes_and_legend():
    noted = replace(BOTH, left_out=("a", "b"), post_hoc=True)
    for text in (
        " ".join(terminal(noted).split()),  # its lines are wrapped
        board_markdown([noted]).replace("\\", ""),
        " ".join((*Page(boards_page([noted])).texts["li"], *Page(boards_page([noted])).texts["p"])),
    ):
        assert "2 patients are left out of every row, as dice is undefined: a, b." in text
        assert "P(1st): probability of leading over resampled patients" in text
    for text in (terminal(noted), board_markdown([noted]), boards_page([noted])):
        assert "RESCORED after the test scores were seen" in text
        assert "lgg" in text
    assert board_markdown([BOTH]).startswith("**lgg · data dddddddd · split ssssssssssss · 110 patients**\n")


@pytest.mark.parametrize(("shown", "test"), [(BOTH, "Wilcoxon"), (PRESENT, "bootstrap")])
def test_the_legend_names_the_statistical_test(shown, test):
    text = legend(score_columns(shown))
    assert f"p: {test} test, Holm corrected over all pairs, against the leader" in text
    assert (
        f"behind in the mean only if the {test} test, Holm corrected over all pairs, does not confirm it" in text
    )


def test_several_boards_are_separate_tables_with_titles():
    two = [BOTH, board(ROW, dataset="phantom", synthetic=True), PRESENT]
    assert len(re.findall(r"^\*\*.*\*\*$", board_markdown(two), re.M)) == 3
    assert len(markdown(*two)) == 6
    lines = list(csv.DictReader(io.StringIO(board_csv(two))))
    assert [line["board"] for line in lines] == ["1", "1", "2", "3", "3"]
    assert [line["task"] for line in lines] == ["segmentation"] * 3 + ["presence"] * 2
    assert [(line["dice"], line["auroc"]) for line in lines[2:]] == [
        ("0.81234", ""),
        ("", "0.91234"),
        ("", "0.91234"),
    ]
    assert [b["dataset"] for b in json_of(*two)] == ["lgg", "phantom", "lgg"]


def test_no_boards_give_empty_output():
    assert (board_markdown([]), json_of(), len(board_csv([]).splitlines())) == ("", [], 1)


def test_csv_marks_a_rescored_board():
    lines = csv.DictReader(io.StringIO(board_csv([BOTH, replace(BOTH, post_hoc=True)])))
    assert [line["post_hoc"] for line in lines] == ["False", "False", "True", "True"]


def test_another_primary_score_comes_first_and_dice_is_kept():
    near = replace(ROW, score=6.25, low=5.04, high=7.5)
    head, _, row = html(board(near, replace(near, rank=2), primary="hd95"))
    assert head[2] == "HD95"
    assert row[2:6] == ["6.2", "5.0 to 7.5", "+0.0", "+0.0 to +0.0"]
    assert dict(zip(head[4:], row[4:], strict=True))["Dice"] == "0.812"


@pytest.mark.parametrize("primary", ["dice", "hd95", "hd95_mm", "assd"])
def test_no_two_columns_share_a_name(primary):
    scores = SCORES | {"hd95_mm": 6.25, "false_positive_patients": 3, "dice[median]": 0.5, "dice[p5]": 0.5}
    columns = board_columns(board(replace(ROW, scores=scores), SECOND, primary=primary))
    assert len({column.heading for column in columns}) == len(columns) > 25
    fields = [column.field for column in columns if column.field not in ("", "score")]
    assert primary not in fields
    assert len(set(fields)) == len(fields)


def test_false_positive_patients_have_a_column_if_there_are_any_scores():
    alarmed = replace(ROW, scores=ROW.scores | {"false_positive_patients": 3})
    shown = board(alarmed, SECOND)
    assert [line[-2] for line in markdown(shown)[0]] == ["FP patients", "3", "–"]
    assert "FP patients" not in terminal(BOTH)


def test_undefined_values_are_a_dash_or_null():
    lost = dict.fromkeys(("score", "low", "difference", "difference_high", "p", "first", "wall_seconds"), nan)
    undefined = board(replace(ROW, **lost), SECOND)
    row = dict(zip(*html(undefined)[:2], strict=True))
    names = ("Dice", "95% interval", "vs leader", "vs leader, 95%", "p", "P(1st)", "wall")
    assert [row[name] for name in names] == ["–"] * 7
    (stored, _) = json_of(undefined)[0]["rows"]
    assert {stored[name] for name in lost} == {None}
    (line, _) = csv.DictReader(io.StringIO(board_csv([undefined])))
    assert isnan(float(line["score"]))


def test_synthetic_data_is_marked_in_every_row_and_in_the_title():
    shown = board(ROW, SECOND, synthetic=True)
    for text in (terminal(shown), board_markdown([shown]).replace("\\", ""), boards_page([shown])):
        assert "SYNTHETIC, not patients" in text
        assert "first [synthetic]" in text
        assert "second [synthetic]" in text
    assert {line["synthetic"] for line in csv.DictReader(io.StringIO(board_csv([shown])))} == {"True"}
    assert "ynthetic" not in terminal(BOTH)


# The width of the terminal

NAMES = ("larger-and-two-longer-flips", "evening-modality-dropout-flips", "unet")
VERDICTS = ("leader", "tied with the leader", "behind in the mean only")
THREE = board(
    *(
        replace(SECOND, rank=rank, name=name, verdict=verdict, scores=SCORES)
        for rank, (name, verdict) in enumerate(zip(NAMES, VERDICTS, strict=True), 1)
    )
)


def headings(text: str) -> str:
    """Return the words above the first line of a table, without spaces."""
    return "".join(text.split("──")[0].split())


@pytest.mark.parametrize(
    ("width", "shown", "dropped"),
    [
        (80, ("#", "Dice", "vsleader,", "verdict"), ("95% interval", "median", "id")),
        (100, ("95%interval", "vsleader,", "verdict"), ("median", "HD95 px", "P(1st)", "id")),
        (140, ("95%interval", "verdict", "median", "HD95", "missed", "<0.5"), ("sens.", "P(1st)", "id")),
    ],
)
def test_columns_are_dropped_by_priority_and_named(width, shown, dropped):
    text = terminal(THREE, width, wide=False)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert all(heading in headings(text) for heading in shown)
    named = " ".join(text.split("Not shown: ")[1].split("\n", 8)).split("Add --wide for all columns.")[0]
    assert all(f"{name}," in named or f"{name}." in named for name in dropped)
    for row in ("+0.000", "-0.150 to -0.050", "0.700", "0.650 to 0.750", "0.850"):
        assert row not in text or any(row in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100, 140, 300])
@pytest.mark.parametrize("wide", [False, True])
def test_no_number_is_wrapped_at_any_width(width, wide):
    lines = words(terminal(THREE, width, wide=wide))
    rows = [line for line in lines if line[0] in ("1", "2", "3")]
    numbers = {*STANDING, *SECOND_STANDING, *COSTS, *RUN, *ID, "2", "3", "abcdef01", *NAMES, *VERDICTS}
    pieces = {word for name in (*NAMES, *VERDICTS) for word in (name, *re.split("(?<=-)| ", name))}
    for row in rows:
        for cell in row:
            assert cell in numbers or set(re.split("(?<=-)| ", cell)) <= pieces | {""}
    assert len({line[0] for line in rows}) == 3


def test_a_wider_terminal_shows_all_columns_of_a_narrower_one():
    columns = frame_columns(pd.DataFrame({f"column {n}": ["x" * n, "y"] for n in range(1, 12)}))
    kept = [set(fit_columns(columns, width)) for width in range(10, 200)]
    assert all(narrow <= wide for narrow, wide in pairwise(kept))
    assert kept[0] == {0}
    assert kept[-1] == set(range(11))


def test_wide_prints_every_column_in_parts_that_begin_with_the_run():
    text = terminal(THREE, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "Not shown" not in text
    heads = [line for line in text.splitlines() if line.split()[:2] == ["#", "run"]]
    assert len(heads) > 3
    for value in ("2 x 5", "24k x 64 px", "31.0", "abcdef01", "<0.001", "AB"):
        assert value in text


def test_p_and_letters_are_shown_only_with_wide():
    text = terminal(THREE, 1000, wide=False)
    assert "Not shown: vs leader, p, letters. Add --wide for all columns." in text
    assert "Holm" in text  # the verdict is explained


def test_a_board_of_one_row_has_no_verdict():
    assert "verdict" not in terminal(board(ROW))
    assert "0.790 to 0.835" in terminal(board(ROW), 60, wide=False)


def test_words_make_room_for_columns_that_are_kept():
    columns = [TextColumn("run", ["x" * 30], fixed=True), TextColumn("n", ["1.00"], number=True)]
    assert fit_columns(columns, 26) == [0, 1]
    assert fit_columns(columns, 25) == [0]
    optional = [columns[0], replace(columns[1], drop=1)]
    assert fit_columns(optional, 35) == [0]
    assert fit_columns(optional, 36) == [0, 1]
    assert list(split_columns([*columns, columns[1]], 26)) == [[0, 1], [0, 2]]


def test_names_are_wrapped_at_hyphens():
    frame = pd.DataFrame({"run": ["evening-modality-dropout-flips"], "score": [0.25]})
    assert "evening-modality-\n" in re.sub(" +\n", "\n", re.sub("  +0.25", "", printed(frame, width=27)))


# Hostile names

MARKUP = ["[bold]x[/bold]", "\\[red]x", "x[/]", "[link=http://x]y", "a|b", "*a*", "a*b_c`d`<b>[f](g)\\", "&amp;"]
MARKUP += ["</td><script>alert(1)</script>", '" onclick="x', "<!--", "a\\|b", "\\"]


@pytest.mark.parametrize("name", MARKUP)
def test_names_are_shown_unchanged_in_every_format(name):
    shown = board(replace(ROW, name=name, hardware=name), SECOND, dataset=name)
    assert [RUN[0], name, *STANDING, *COSTS[:-2], name, COSTS[-1], *ID] in words(terminal(shown))
    assert f"{name} · data" in terminal(shown)
    assert html(shown)[1][1] == html(shown)[1][-3] == name
    assert Page(boards_page([shown])).texts["h2"][0].startswith(f"{name} · data")
    assert Page(boards_page([shown])).tags == Page(boards_page([board(ROW, SECOND)])).tags
    assert markdown(shown)[0][1] == [RUN[0], name, *STANDING, *ID]


def test_markdown_escapes_cell_borders_and_styles():
    row = board_markdown([board(replace(ROW, name="a|b*c*_d_`e`<b>[f](g)\\"))])
    assert r"| a\|b\*c\*\_d\_\`e\`\<b\>\[f\](g)" + "\\\\ |" in row
    assert board_markdown([board(ROW, dataset="x**y")]).startswith(r"**x\*\*y ·")


@pytest.mark.parametrize("name", ["\x1b[2Jx", "a\nb", "a\rb", "a\x07", "\u202eabc"])
def test_control_characters_are_replaced_in_every_format(name):
    cleaned = "".join(c if c.isprintable() else "?" for c in name)
    removed = set(name) - set(cleaned)
    for hostile in (board(replace(ROW, name=name)), board(ROW, dataset=name), board(ROW, left_out=(name,))):
        plain, tidy = board_markdown([hostile]), board_markdown([board(ROW, left_out=hostile.left_out and ("x",))])
        assert cleaned in terminal(hostile)
        assert cleaned in plain.replace("\\", "")
        assert len(plain.splitlines()) == len(tidy.splitlines())
        for text in (terminal(hostile), plain, boards_page([hostile])):
            assert not removed & set(text.replace("\n", ""))
    (line,) = csv.DictReader(io.StringIO(board_csv([board(replace(ROW, name=name))]), newline=""))
    assert line["name"] == cleaned


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "?=1"),
        ("a\r\n=1", "a??=1"),
    ],
)
def test_names_that_look_like_formulas_are_quoted_in_csv(name, cell):
    shown = board(replace(ROW, name=name, difference=-1.0))
    (line,) = csv.DictReader(io.StringIO(board_csv([shown]), newline=""))
    assert (line["name"], line["difference"]) == (cell, "-1.0")


def test_csv_keeps_commas_and_quotes():
    name = 'a,"b"'
    (line,) = csv.DictReader(io.StringIO(board_csv([board(replace(ROW, name=name))])))
    assert line["name"] == name


def test_brackets_in_a_frame_are_not_read_as_markup():
    shown = printed(pd.DataFrame({"[x]": ["cannot read [/data/x.tif]", "[red]p[/red]"]}), "[b]runs")
    for part in ("[b]runs", "[x]", "cannot read [/data/x.tif]", "[red]p[/red]"):
        assert part in shown


# Sentences and cells


def test_frame_markdown_leaves_out_empty_columns():
    frame = pd.DataFrame({"a": ["x|y", "z"], "empty": ["", ""], "b": [1, 2]})
    assert frame_markdown(frame) == "| a | b |\n|---|---|\n| x\\|y | 1 |\n| z | 2 |"


def test_a_model_card_contains_the_headline_and_the_facts():
    card = model_card("u*net", {"loss": "bce_dice"}, {"dice": 0.8, "dice_low": 0.75, "dice_high": 0.85})
    assert card.startswith(r"**u\*net**: per-patient Dice **0.800** (95% interval 0.750 to 0.850)")
    assert r"- loss: bce\_dice" in card.splitlines()
    assert "**–**" in model_card("x", {}, {})


def test_a_model_card_uses_the_headline_of_its_task():
    values = {"auroc": 0.912, "auroc_low": 0.85, "auroc_high": 0.96}
    assert "**net**: AUROC of slices **0.912** (95% interval 0.850 to 0.960)" in model_card("net", {}, values)


def test_a_classifier_headline_names_undefined_scores():
    values = SLICES | {"auroc_low": 0.85, "auroc_high": 0.96}
    values |= {"patient_sensitivity": 1.0, "patient_specificity": nan, "patient_auroc": nan}
    text = headline(values)
    assert "AUROC 0.912 (95% interval 0.850 to 0.960), average precision 0.876, sensitivity 0.750" in text
    assert "by patient: sensitivity 1.000, specificity and AUROC undefined: no negative patients" in text
    some = headline(values | {"patient_specificity": 0.5, "patient_auroc": 0.75})
    assert "specificity and AUROC 0.500 and 0.750" in some
    assert "undefined" not in some


def test_a_segmentation_headline_is_its_dice():
    text = headline({"dice": 0.81, "dice_low": 0.75, "dice_high": 0.9, "dice_median": 0.85, "missed_slices": 3.0})
    assert text.startswith("Dice 0.810 (95% interval 0.750 to 0.900), median 0.850, HD95 – px, missed slices 3")
    assert headline({"dice": nan}).startswith("Dice – (95% interval – to –)")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3599.6, "1 h 00 min")),
        *((3700, "1 h 01 min"), (90000, "25 h 00 min"), (nan, "–")),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, "1.000"), (0.05, "0.050"), (0.001, "0.001"), (0.00099, "<0.001"), (0.0, "<0.001"), (nan, "–")],
)
def test_a_p_value_is_never_printed_as_zero(p, text):
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("group", "letters"),
    [(1, "A"), (2, "B"), (26, "Z"), (27, "AA"), (52, "AZ"), (53, "BA"), (702, "ZZ"), (703, "AAA")],
)
def test_groups_are_numbered_with_letters(group, letters):
    assert letter(group) == letters


def test_numbers_signs_intervals_and_undefined_values_are_formatted():
    assert (decimal(0.12345), decimal(6.25, 1), decimal(1e9, 0), decimal(nan)) == (
        "0.123",
        "6.2",
        "1000000000",
        "–",
    )
    assert (signed(0.1), signed(-0.1), signed(0.0), signed(nan)) == ("+0.100", "-0.100", "+0.000", "–")
    assert (between(0.1, 0.25), between(-1, 2, signed)) == ("0.100 to 0.250", "-1.000 to +2.000")
    assert between(nan, 1) == between(1, nan) == "–"
