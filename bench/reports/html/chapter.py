"""One board as a chapter of the page: who leads, the table, and every figure with what it says and leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from bench.analysis.board import Board
from bench.analysis.significance import mean_ranks
from bench.analysis.strata import GroupMeans, strata
from bench.formatting import between, decimal, p_value
from bench.reports.dataset.page import SOURCES, UNSTATED
from bench.reports.html import figures
from bench.reports.html import gallery_controls as stage
from bench.reports.html.board_table import board_columns, name_cell, sortable_table
from bench.reports.html.evidence import BoardData
from bench.reports.html.figures import score_name, score_said
from bench.reports.html.svg import said
from bench.reports.tables import legend

FEW = 5  # patients: the mean of fewer is faint


Part = tuple[str, str]  # a heading and what is below


def chapter(number: int, found: BoardData) -> str:
    """A section; its ids begin with board-<number>."""
    board, name = found.board, f"board-{number}"
    parts = [*_standings(found)]
    if board.task == "presence":
        parts += _slices(found)
    else:
        parts += [*_training(found), *_patients(found), *_groups(found), *_trust(found), *_gallery(name, found)]
    links = "".join(f'<li><a href="#{name}-{at}">{said(head)}</a></li>' for at, (head, _) in enumerate(parts))
    body = "".join(f'<h3 id="{name}-{at}">{said(head)}</h3>\n{html}\n' for at, (head, html) in enumerate(parts))
    notes = "".join(f"<li>{said(note)}</li>" for note in board.notes)
    notes = notes and f'<ul class="notes">{notes}</ul>\n'
    return (
        f'<section>\n<h2 id="{name}">{said(board.title)}</h2>\n<p class="finding">{said(finding(board))}</p>\n'
        f"{notes}{definitions(_facts(found))}\n"
        f"<nav><ul>{links}</ul></nav>\n{body}</section>"
    )


def finding(board: Board) -> str:
    """Who leads, and who cannot be told from it."""
    value, (best, *others) = partial(score_said, board), board.rows
    judged = board.patients - len(board.left_out)
    told = (
        f"{best.name} {'leads with' if others else 'has'} {score_name(board)} {value(best.score)} "
        f"(95% interval {between(best.low, best.high, value)}) over {judged} patients."
    )
    ties = [row.name for row in others if row.group == best.group]
    if ties:
        more = f" and {len(ties) - 4} more" if len(ties) > 4 else ""
        return f"{told} It cannot be told from {', '.join(ties[:4])}{more}."
    return f"{told} Every other row can be told from it." if others else told


def definitions(told: Mapping[str, object]) -> str:
    return f"<dl>{''.join(f'<dt>{said(k)}</dt><dd>{said(v)}</dd>' for k, v in told.items())}</dl>"


def _facts(found: BoardData) -> dict[str, str]:
    board, counts = found.board, found.counts
    licence = str(counts.get("licence", UNSTATED))
    slices = (
        f", {counts['slices']:,} slices, {counts['positive_slices']:,} with tumour" if "slices" in counts else ""
    )
    return {
        "Data": f"{board.dataset}, key {board.data_key}",
        "Source": UNSTATED if licence == UNSTATED else SOURCES.get(board.dataset, UNSTATED),
        "Licence of the data": licence,
        "Patients": f"{board.patients}{slices}",
        "Split": f"{board.rows[0].folds} folds over patients, hash {board.split_hash}",
        "Runs made with": ", ".join(f"{k} {v}" for k, v in found.versions.items()) or UNSTATED,
    }


def _standings(found: BoardData) -> Iterator[Part]:
    board, name, scores = found.board, score_name(found.board), found.defined
    meaning = (
        f"<details><summary>What the headings mean</summary><p>{said(legend(board_columns(board)))}</p></details>"
    )
    yield "Leaderboard", f"<p>Click a heading to sort; costs are to the right.</p>{sortable_table(board)}{meaning}"
    if len(board.rows) < 2:
        return
    words = (
        f"{name} of each row (dot) with its 95% interval over patients. Shaded rows cannot be told from the "
        "leader, rows of one letter not from the best of that letter. Beside it the 95% interval of the rank and "
        "the probability of leading, for patients drawn anew."
    )
    yield "Ranks", _figure(figures.rank_plot(board), words)
    if scores.size and board.task != "presence":
        ranks = mean_ranks(scores, found.told, higher=found.higher)
        friedman = (
            "" if len(board.rows) < 3 else f" Friedman's test that all rows are alike: p {_p(ranks.friedman)}."
        )
        words = (
            f"Mean rank of each row over {scores.shape[1]} patients, 1 being the best (critical-difference "
            "diagram, Demsar 2006). Rows with a dot on one bar cannot be told apart. Bars follow the paired "
            "Wilcoxon tests of the leaderboard, Holm corrected over all pairs, and the intervals of differences, "
            "at 5%, instead of Nemenyi's test."
            f"{'' if ranks.bars else ' There is none: all rows can be told apart.'}{friedman}"
        )
        yield "Critical differences", _figure(figures.rank_diagram(_names(found), ranks), words)


def _slices(found: BoardData) -> Iterator[Part]:
    if found.slices:
        names = {at: name for at, name in enumerate(_names(found)) if at in found.slices}
        words = (
            "Share of slices with tumour against the probability that was given, in bins; on the dotted line "
            "probabilities mean what they say. Dots grow with the slices that they stand for."
        )
        yield "Reliability", _figure(figures.reliability_plot(names, found.slices, "slices"), words)


def _training(found: BoardData) -> Iterator[Part]:
    lost = _without(found, [at for at, each in enumerate(found.histories) if each], "No training was logged of")
    words = (
        "Score of the validation patients after each epoch: every fold faint, their mean bold as far as all folds "
        "of the row have gone. The epoch was chosen by it: it is no result."
    )
    if any(found.histories):
        yield "Training", _figure(figures.training_curves(_names(found), found.histories), f"{words}{lost}")
    else:
        yield "Training", _paragraph(lost)


def _patients(found: BoardData) -> Iterator[Part]:
    if not np.isfinite(found.scores).any():
        return
    linked = found.pictured is not None and bool(found.pictured.portraits)
    drawn = figures.heat_map(
        found.board, found.cases, found.homes, found.scores, higher=found.higher, linked=linked
    )
    words = (
        f"{score_name(found.board)} of each patient (column) by each row. Patients stand from the hardest to the "
        "easiest, by the mean over rows; dark is bad, white is not defined; above is the institution."
        f"{' A cell leads to its patient in the gallery.' if linked else ''}"
    )
    told = [
        (case, [score_said(found.board, value) for value in values])
        for case, values in zip(found.cases, found.scores.T.tolist(), strict=True)
    ]
    table = _table(("patient", *_names(found)), told, "tall")
    yield "Every patient", f"{_figure(drawn, words)}<details><summary>The numbers</summary>{table}</details>"


def _groups(found: BoardData) -> Iterator[Part]:
    groups = strata(found.scores, found.groups)
    if not groups:
        return
    missing = "" if found.pictured else "The data were not at hand: missing sequences are left out."
    if any(group.kind == "missing sequences" for group in groups):
        missing = "A missing sequence is one that FLAIR stands in for."
    words = (
        f"Mean {score_name(found.board)} of patients who have something in common, and how many they are. "
        f"Exploratory: groups are small and many, so there is no test; means of fewer than {FEW} patients are "
        f"faint. Tumour size is that of the truth over all slices, in thirds of the patients. {missing}"
    )
    yield "Groups of patients", f"{_group_table(found.board, groups)}{_paragraph(words)}"


def _group_table(board: Board, groups: Sequence[GroupMeans]) -> str:
    width = {kind: sum(g.kind == kind for g in groups) for kind in dict.fromkeys(g.kind for g in groups)}
    kinds = "".join(f'<th scope="colgroup" colspan="{n}">{said(kind)}</th>' for kind, n in width.items())
    heads = "".join(f'<th scope="col">{said(g.name)}<br>n&nbsp;=&nbsp;{g.n}</th>' for g in groups)
    faint = [g.n < FEW for g in groups]
    body = "".join(
        f"<tr>{name_cell(row.name)}{_cells([score_said(board, float(g.means[at])) for g in groups], faint)}</tr>"
        for at, row in enumerate(board.rows)
    )
    return (
        f'<div class="wide"><table class="groups"><thead><tr class="kinds"><td></td>{kinds}</tr>'
        f'<tr><th scope="col">run</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _trust(found: BoardData) -> Iterator[Part]:
    trust = found.pictured.trust if found.pictured else {}
    lost = _without(found, trust, "Probabilities are not at hand, or were not kept, of")
    if not trust:
        yield "Trust in probabilities", _paragraph(lost)
        return
    names = {at: row.name for at, row in enumerate(found.board.rows) if at in trust}
    drawn = _figure(
        figures.trust_plot(names, trust),
        "Left: share of pixels with tumour against the probability that they were given, in bins of a tenth; on "
        "the dotted line probabilities mean what they say. Only pixels within 5 pixels of truth or prediction "
        "count, of all patients together: elsewhere any model is right. Dots grow with their pixels. Right: mean "
        "Dice of the patients of whom a row is surest, against their share. How sure it is of a patient is the "
        "Dice that it expects: 2 Σ pm / (Σ p + Σ m), of its probability p and its mask m over all pixels (soft "
        f"Dice confidence, Borges et al. 2024).{lost}",
    )
    judged = []
    for at, each in trust.items():
        logged = (found.board.rows[at].scores.get(score, np.nan) for score in ("brier", "ece"))
        values = (*logged, 1 - each.blind, each.aurc, each.perfect, each.blind)
        judged.append((names[at], [decimal(value) for value in values]))
    table = _table(
        ("run", "Brier", "ECE", "mean Dice", "AURC", "AURC if perfect", "AURC if blind"), judged, "wide"
    )
    words = (
        "Brier score and ECE: means over patients, of the same pixels. AURC: area under the risk-coverage curve, "
        "the mean of 1 - Dice over all coverages (Geifman and El-Yaniv 2017), less is better; it would be "
        "perfect, if patients came in the order of their Dice, and blind, if they came in none."
    )
    yield "Trust in probabilities", f"{drawn}{table}{_paragraph(words)}"


def _gallery(name: str, found: BoardData) -> Iterator[Part]:
    if found.pictured is None:
        yield "Gallery", _paragraph("There is no gallery: the data were not at hand when this was made.")
        return
    lost = _without(found, found.pictured.rows, "Masks were not kept of")
    if not found.pictured.portraits:
        yield "Gallery", _paragraph(f"There is no gallery.{lost}")
        return
    rows = [found.board.rows[at].name for at in found.pictured.rows]
    words = _paragraph(f"{stage.order(len(rows) > 1)}{lost}")
    yield "Gallery", words + stage.stage(f"{name}-gallery", rows, found.pictured.portraits)


def _names(found: BoardData) -> list[str]:
    return [row.name for row in found.board.rows]


def _without(found: BoardData, there: Iterable[int], words: str) -> str:
    """A sentence that names the rows that are not there, if any."""
    kept = set(there)
    lost = [name for at, name in enumerate(_names(found)) if at not in kept]
    return f" {words} {', '.join(lost)}." if lost else ""


def _table(heads: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]], box: str) -> str:
    """Names and what is said of them, in a box that scrolls."""
    head = "".join(f'<th scope="col">{said(name)}</th>' for name in heads)
    body = "".join(f"<tr>{name_cell(name)}{_cells(texts)}</tr>" for name, texts in rows)
    return f'<div class="{box}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(texts: Sequence[str], faint: Sequence[bool] | None = None) -> str:
    classes = [' class="few"' if few else "" for few in faint or [False] * len(texts)]
    return "".join(f"<td{kind}>{said(text)}</td>" for kind, text in zip(classes, texts, strict=True))


def _figure(drawn: str, words: str) -> str:
    return f"<figure>{drawn}<figcaption>{said(words)}</figcaption></figure>"


def _paragraph(words: str) -> str:
    return f"<p>{said(words.strip())}</p>"


def _p(p: float) -> str:
    told = p_value(p)
    return told if told.startswith("<") else f"= {told}"
