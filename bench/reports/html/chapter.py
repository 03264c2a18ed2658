"""One board as a chapter of the page: a summary, the table, and the figures with their explanations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from bench.analysis.board import Board
from bench.analysis.significance import mean_ranks
from bench.analysis.strata import GroupMeans, mean_by_group
from bench.formatting import between, decimal, join_first, p_value
from bench.reports.dataset.page import SOURCES, UNSTATED
from bench.reports.html import figures
from bench.reports.html.board_data import BoardData
from bench.reports.html.board_page import board_notes, board_section
from bench.reports.html.board_table import name_cell
from bench.reports.html.figures import format_score, score_name
from bench.reports.html.gallery import explain_order, gallery_html
from bench.reports.html_document import definition_list, escaped

FEW = 5  # means of fewer patients are in italics
Part = tuple[str, str]  # a heading and the HTML below it


def render_chapter(number: int, data: BoardData) -> str:
    """Return the section of a board; all ids in it begin with board-<number>."""
    board, name = data.board, f"board-{number}"
    parts = [*_ranking(data)]
    if board.rules.by_patient:
        parts += (
            *_structures(data),
            *_training(data),
            *_patients(data),
            *_groups(data),
            *_trust(data),
            *_gallery(name, data),
        )
    else:
        parts += _slices(data)
    links = "".join(f'<li><a href="#{name}-{at}">{escaped(head)}</a></li>' for at, (head, _) in enumerate(parts))
    body = "".join(f'<h3 id="{name}-{at}">{escaped(head)}</h3>\n{html}\n' for at, (head, html) in enumerate(parts))
    summary = f'<p class="finding">{escaped(summarise(board))}</p>'
    return (
        f'<section>\n<h2 id="{name}">{escaped(board.title)}</h2>\n{summary}\n{board_notes(board)}'
        f"{definition_list(_facts(data))}\n<nav><ul>{links}</ul></nav>\n{body}</section>"
    )


def summarise(board: Board) -> str:
    """Name the leader, and the rows that cannot be distinguished from it."""
    value, (best, *others) = partial(format_score, board), board.rows
    scored = board.patients - len(board.left_out)
    text = (
        f"{best.name} {'leads with' if others else 'has'} {score_name(board)} {value(best.score)} "
        f"(95% interval {between(best.low, best.high, value)}) over {scored} patients."
    )
    if ties := [row.name for row in others if row.tied]:
        return f"{text} It cannot be distinguished from {join_first(ties, 4)}."
    return f"{text} Every other row can be distinguished from it." if others else text


def _facts(data: BoardData) -> dict[str, str]:
    board, counts = data.board, data.counts
    licence = str(counts.get("licence", UNSTATED))
    sizes = [counts[name] for name in ("slices", "positive_slices") if "slices" in counts]
    slices = ", {:,} slices, {:,} with {}".format(*sizes, board.noun) if sizes else ""
    return {
        "Data": f"{board.dataset}, key {board.data_key}",
        "Source": UNSTATED if licence == UNSTATED else SOURCES.get(board.dataset, UNSTATED),
        "Licence of the data": licence,
        "Patients": f"{board.patients}{slices}",
        "Split": f"{board.rows[0].folds} folds over patients, hash {board.split_hash}",
        "Software and device": ", ".join(f"{k} {v}" for k, v in data.versions.items()) or UNSTATED,
        **({"Not shown": "; ".join(absent)} if (absent := _absent(data)) else {}),
    }


def _absent(data: BoardData) -> list[str]:
    """Name the parts for which the runs of a board hold nothing, each with the reason."""
    if not data.board.rules.by_patient:
        return []
    parts = [] if any(data.histories) else ["training curves, because no run has logged its training"]
    if data.masks is None:
        return [*parts, "trust in probabilities and gallery, because the data set is not available (give --data)"]
    parts += [] if data.masks.trust else ["trust in probabilities, because no run has logged them"]
    return parts + ([] if data.masks.patients else ["gallery, because no run has logged masks"])


def _ranking(data: BoardData) -> Iterator[Part]:
    board, scores = data.board, data.defined_scores
    yield "Leaderboard", f"<p>Click a heading to sort. Costs are on the right.</p>{board_section(board)}"
    if len(board.rows) < 2:
        return
    caption = (
        f"{score_name(board)} of each row (dot) with its 95% interval over patients. Shaded rows cannot be "
        "distinguished from the leader. Rows without a common letter can be distinguished, and so can all rows "
        "that are farther apart. On the right are the 95% interval of the rank and the probability of leading, "
        "over resampled patients."
    )
    yield "Ranks", _figure(figures.draw_rank_plot(board), caption)
    if scores.size and board.task != "presence":
        ranks = mean_ranks(scores, data.distinguishable, higher=board.higher_is_better)
        p = p_value(ranks.friedman)
        p = p if p.startswith("<") else f"= {p}"
        friedman = f" Friedman's test that all rows are equal: p {p}." if len(board.rows) > 2 else ""
        caption = (
            f"Mean rank of each row over {scores.shape[1]} patients, where 1 is the best (critical-difference "
            "diagram, Demsar 2006). Rows with a dot on the same bar cannot be distinguished. The bars are based "
            "on the paired Wilcoxon tests of the leaderboard (Holm corrected over all pairs) and on the intervals "
            "of the differences, at 5%, instead of Nemenyi's test."
            f"{'' if ranks.bars else ' There is no bar: all rows can be distinguished.'}{friedman}"
        )
        yield "Critical differences", _figure(figures.draw_rank_diagram(_names(data), ranks), caption)


def _slices(data: BoardData) -> Iterator[Part]:
    if data.slices:
        names = {at: name for at, name in enumerate(_names(data)) if at in data.slices}
        caption = (
            "Share of slices with tumour against the predicted probability, in bins. On the dotted line the "
            "probabilities are perfectly calibrated. Larger dots represent more slices."
        )
        yield "Reliability", _figure(figures.draw_reliability(names, data.slices, "slices"), caption)


def _structures(data: BoardData) -> Iterator[Part]:
    if data.board.structures:
        caption = (
            "Mean Dice of each structure over the patients for whom it is defined, with its 95% interval over "
            "patients, and over seeds if the row has several. Rows are in the order of the leaderboard, which "
            "ranks by the mean over structures."
        )
        yield "Structures", _figure(figures.draw_structures(data.board, data.dice_intervals), caption)


def _training(data: BoardData) -> Iterator[Part]:
    logged = [at for at, folds in enumerate(data.histories) if folds]
    if not logged:
        return
    missing = _name_missing(data, logged, "No training was logged for")
    caption = (
        "Score of the validation patients after each epoch. Folds are faint; their mean is bold and ends with the "
        "shortest fold of the row. These scores chose the epoch, so they are not results."
    )
    yield "Training", _figure(figures.draw_training_curves(_names(data), data.histories), f"{caption}{missing}")


def _patients(data: BoardData) -> Iterator[Part]:
    if not np.isfinite(data.scores).any():
        return
    linked = data.masks is not None and bool(data.masks.patients)
    institutions = [str(name) for name in data.groups["institution"]]
    heat_map = figures.draw_heat_map(data.board, data.cases, institutions, data.scores, linked=linked)
    caption = (
        f"{score_name(data.board)} of each patient (column) in each row. Patients are sorted from the hardest to "
        "the easiest by their mean over rows. Dark is bad, and white is undefined."
        f"{' The strip on top is the institution.' if figures.known_institutions(institutions) else ''}"
        f"{' Click a cell to see its patient in the gallery.' if linked else ''}"
    )
    columns = [(name, values) for name, values in zip(_names(data), data.scores, strict=True)]
    for at, name in enumerate(_names(data)):
        columns += [(f"{name}: {structure}", values[at]) for structure, values in data.by_structure.items()]
    scores = [
        (case, [format_score(data.board, float(values[at])) for _, values in columns])
        for at, case in enumerate(data.cases)
    ]
    table = _table(("patient", *(name for name, _ in columns)), scores, "tall")
    yield "Every patient", f"{_figure(heat_map, caption)}<details><summary>The numbers</summary>{table}</details>"


def _groups(data: BoardData) -> Iterator[Part]:
    groups = mean_by_group(data.scores, data.groups)
    if not groups:
        return
    sequences = "" if data.masks else "Missing sequences are left out, because the data set was not available."
    if any(group.kind == "missing sequences" for group in groups):
        sequences = "A sequence is missing if the data set contains a copy of FLAIR in its place."
    noun = data.board.noun
    explanation = (
        f"Mean {score_name(data.board)} of groups of patients, and their size n. This is exploratory: the groups "
        f"are small and many, so nothing is tested. Means of fewer than {FEW} patients are in italics. "
        f"{noun.capitalize()} size is the number of true {noun} pixels over all slices, in thirds of the "
        f"patients. {sequences}"
    )
    yield "Groups of patients", f"{_group_table(data.board, groups)}{_paragraph(explanation)}"


def _group_table(board: Board, groups: Sequence[GroupMeans]) -> str:
    width = {kind: sum(g.kind == kind for g in groups) for kind in dict.fromkeys(g.kind for g in groups)}
    kinds = "".join(f'<th scope="colgroup" colspan="{n}">{escaped(kind)}</th>' for kind, n in width.items())
    heads = "".join(f'<th scope="col">{escaped(g.name)}<br>n&nbsp;=&nbsp;{g.n}</th>' for g in groups)
    faint = [g.n < FEW for g in groups]
    body = "".join(
        f"<tr>{name_cell(row.name)}{_cells([format_score(board, float(g.means[at])) for g in groups], faint)}</tr>"
        for at, row in enumerate(board.rows)
    )
    return (
        f'<div class="wide"><table class="groups"><thead><tr class="kinds"><td></td>{kinds}</tr>'
        f'<tr><th scope="col">run</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _trust(data: BoardData) -> Iterator[Part]:
    trust = data.masks.trust if data.masks else {}
    missing = _name_missing(data, trust, "Probabilities are not available, or were not logged, for")
    if not trust:
        return
    names = {at: row.name for at, row in enumerate(data.board.rows) if at in trust}
    noun, several = data.board.noun, bool(data.board.structures)
    pooled = "structures and patients" if several else "patients"
    averaged = " It is averaged over structures." if several else ""
    figure = _figure(
        figures.draw_trust(names, trust, noun),
        f"Left: share of pixels with {noun} against the predicted probability, in bins of a tenth. On the dotted "
        "line the probabilities are perfectly calibrated. Only pixels within 5 pixels of truth or prediction "
        f"count, pooled over all {pooled}: elsewhere any model is right. Larger dots represent more pixels. "
        "Right: mean Dice of the patients on whom a row is most confident, against their share of all patients. "
        "The confidence on a patient is the expected Dice 2 Σ pm / (Σ p + Σ m), from the probability p and the "
        f"mask m over all pixels (soft Dice confidence, Borges et al. 2024).{averaged}{missing}",
    )
    rows = []
    for at, each in trust.items():
        logged = (data.board.rows[at].scores.get(score, np.nan) for score in ("brier", "ece"))
        values = (*logged, 1 - each.blind, each.aurc, each.perfect, each.blind)
        rows.append((names[at], [decimal(value) for value in values]))
    table = _table(("run", "Brier", "ECE", "mean Dice", "AURC", "AURC if perfect", "AURC if blind"), rows, "wide")
    explanation = (
        "Brier score and ECE are means over patients, on the same pixels. AURC is the area under the "
        "risk-coverage curve: the mean of 1 - Dice over all coverages (Geifman and El-Yaniv 2017); lower is "
        "better. It is perfect if patients are sorted by their Dice, and blind if their order is random."
    )
    yield "Trust in probabilities", f"{figure}{table}{_paragraph(explanation)}"


def _gallery(name: str, data: BoardData) -> Iterator[Part]:
    if data.masks is None or not data.masks.patients:
        return
    missing = _name_missing(data, data.masks.rows, "No masks were logged for")
    rows = [data.board.rows[at].name for at in data.masks.rows]
    explanation = _paragraph(f"{explain_order(len(rows) > 1, data.board.structures)}{missing}")
    gallery = gallery_html(f"{name}-gallery", rows, data.masks.patients, data.board.structures)
    yield "Gallery", explanation + gallery


def _names(data: BoardData) -> list[str]:
    return [row.name for row in data.board.rows]


def _name_missing(data: BoardData, present: Iterable[int], text: str) -> str:
    """Return a sentence that starts with `text` and names the rows that are not present; empty if all are."""
    rows = set(present)
    missing = [name for at, name in enumerate(_names(data)) if at not in rows]
    return f" {text} {', '.join(missing)}." if missing else ""


def _table(heads: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]], box: str) -> str:
    """Return a table in a scrolling box; each row is a name and its cells."""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in heads)
    body = "".join(f"<tr>{name_cell(name)}{_cells(texts)}</tr>" for name, texts in rows)
    return f'<div class="{box}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(texts: Sequence[str], faint: Sequence[bool] | None = None) -> str:
    classes = [' class="few"' if few else "" for few in faint or [False] * len(texts)]
    return "".join(f"<td{kind}>{escaped(text)}</td>" for kind, text in zip(classes, texts, strict=True))


def _figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{escaped(caption)}</figcaption></figure>"


def _paragraph(text: str) -> str:
    return f"<p>{escaped(text.strip())}</p>"
