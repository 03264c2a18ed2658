"""The report page: its texts and figures match the store, and names cannot become markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench import registry
from bench.analysis.board import Board
from bench.analysis.calibration import (
    assess_trust,
    aurc,
    count_pixels,
    coverage_curve,
    pixel_reliability,
    soft_dice_confidence,
)
from bench.analysis.leaderboard import build_boards
from bench.analysis.ranking import (
    LEADER,
    MEAN_ONLY,
    TIED,
    bootstrap_means,
    distinguish_models,
    mean_interval,
    rank_models,
)
from bench.analysis.significance import maximal_cliques, mean_ranks
from bench.analysis.strata import mean_by_group, size_groups
from bench.data.pack import Pack, load_or_pack, pack_in_memory
from bench.derived.base import case_rows, score_masks
from bench.errors import BadSetting, StoreError
from bench.formatting import plain
from bench.masks import Masks, to_hundredths
from bench.overrides import configure
from bench.reports.html import figures
from bench.reports.html.board_data import BoardData, MaskData
from bench.reports.html.board_table import sortable_table
from bench.reports.html.gallery import (
    LONGEST,
    choose_slices,
    close_up,
    encode_scan,
    gallery_html,
    outlines,
    view_patient,
)
from bench.reports.html.report import render_report, write_report
from bench.reports.tables import board_columns
from bench.structures import Structures, join_bits
from bench.tracking import Store, connect, open_run, read_records, read_table, search_runs
from bench.tracking.tags import data_tags
from bench.training.fold_records import record_masks
from bench.training.tasks.segmentation import Segmentation
from bench.types import RunRecord

EVIL = '</script><b onclick="document.title=1">&"\'\x1b[2J\u202e =1+1'
PHANTOM = {"name": "phantom", "patients": 6, "size": 32, "slices": 6, "institutions": 2}
SETTINGS = {
    "dataset": PHANTOM,
    "split": {"name": "patients", "folds": 2},
    "model": {"name": "unet", "base": 4, "depth": 2},
}
BLUR = {EVIL: 0.5, "second": 2.5}  # more blur gives lower scores
AGAIN = 2.0  # blur of a second run of "second", with another seed


@dataclass(frozen=True)
class ReportStore:
    """A store with written, not trained, runs: two complete ones, one without masks, and one presence run."""

    folder: Path
    store: Store
    pack: Pack

    def page(self, name: str = "report.html", **options: object) -> Path:
        return write_report(self.folder / name, uri=self.store.uri, **options)  # type: ignore[arg-type]


def make_report_store(folder: Path, template: Path) -> ReportStore:
    """Fill a store in `folder`; BENCH_CACHE must already point into it."""
    shutil.copytree(template, folder / "mlruns")
    pack = load_or_pack(registry.dataset["phantom"].bind(configure(SETTINGS).dataset.params)())
    reports = ReportStore(folder, connect(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"), pack)
    for at, (name, width) in enumerate(BLUR.items()):
        write_run(reports, name, probabilities(pack, width), seed=at)
    write_run(reports, "bare", probabilities(pack, 2.0), seed=2, complete=False)
    write_run(reports, "second", probabilities(pack, AGAIN), seed=1, run_seed=7)
    write_presence(reports)
    return reports


def probabilities(pack: Pack, width: float) -> dict[str, np.ndarray]:
    """Return the blurred truth, never on an edge between hundredths. More blur misses the first patient."""
    by_case = {}
    for case in pack.cases:
        truth = pack.masks[pack.rows([case])].astype(np.float32)
        soft = np.stack([cv2.GaussianBlur(image, (0, 0), width) for image in truth])
        by_case[case] = (np.floor(soft * 98) / 100 + 0.005).astype(np.float32)[:, None]
    if width > 1:
        by_case[pack.cases[0]] *= 0.5
    return by_case


def write_run(
    reports: ReportStore,
    name: str,
    soft: dict[str, np.ndarray],
    *,
    seed: int,
    run_seed: int = 0,
    complete: bool = True,
) -> None:
    """Log what a cross-validation logs."""
    pack = reports.pack
    masks = Masks(((c, p >= 0.5) for c, p in soft.items()), ((c, to_hundredths(p)) for c, p in soft.items()))
    scores = score_masks(Segmentation(), pack, masks)
    fold_of = {case: at % 2 for at, case in enumerate(pack.cases)}
    cases = case_rows(scores)
    tags = data_tags(pack.manifest) | {"bench.split": "s" * 12, "bench.task": "segmentation", "env.bench": "0.1.0"}
    with open_run(reports.store, name, "phantom", tags) as recorder:
        recorder.settings(configure(SETTINGS, {"train.lr": 0.001 * (seed + 1), "seed": run_seed}).flat())
        recorder.data("phantom", pack.manifest.key, pack.profile())
        recorder.metrics(
            {"dice": cases["dice"].mean(), "hd95": 7.125, "missed_slices": 4, "brier": 0.25, "ece": 0.125}
        )
        recorder.metrics(
            {"cost/images": 100.0 * (seed + 1), "cost/parameters": 1234567, "cost/wall_seconds": 3700}
        )
        recorder.table("cases", cases.assign(fold=cases["case"].map(fold_of)))
        for fold in (0, 1) if complete else ():
            tested = [s for s in scores if fold_of[s.case] == fold]
            with recorder.child(f"fold {fold}", {"bench.fold": str(fold)}) as child:
                history = {"epoch": [1, 2, 3][: 3 - fold], "val/dice": [0.25, 0.5, 0.75][: 3 - fold]}
                child.table("history", pd.DataFrame(history))
                record_masks(child, masks.of(s.case for s in tested), tested)


def write_presence(reports: ReportStore) -> None:
    index = reports.pack.index
    rng = np.random.default_rng(0)
    slices = index[["case", "slice"]].assign(truth=index["positive"])
    slices["probability"] = np.clip(slices["truth"] * 0.4 + rng.uniform(0, 0.6, len(index)), 0, 1)
    slices["called"] = slices["probability"] >= 0.5
    tags = data_tags(reports.pack.manifest) | {"bench.split": "s" * 12, "bench.task": "presence"}
    with open_run(reports.store, "gate", "phantom", tags) as recorder:
        recorder.table("slices", slices)
        recorder.table("cases", pd.DataFrame({"case": reports.pack.cases, "fold": 0, "tp": 1, "fn": 1}))


def report_store_in(folder: Path, template: Path) -> Iterator[ReportStore]:
    """Yield a filled store, with `folder` as the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("BENCH_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield make_report_store(folder, template)


@pytest.fixture(scope="module")
def reports(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportStore]:
    yield from report_store_in(tmp_path_factory.mktemp("report"), template)


class Node:
    """An element of a page."""

    def __init__(self, name: str, attributes: dict[str, str | None]) -> None:
        self.name, self.attributes, self.inside = name, attributes, []

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.inside)

    def all(self, name: str = "", **wanted: str) -> list[Node]:
        matches = []
        for part in self.inside:
            if isinstance(part, Node):
                fits = all(part.attributes.get(k.strip("_").replace("_", "-")) == v for k, v in wanted.items())
                matches += [part] * (fits and name in ("", part.name)) + part.all(name, **wanted)
        return matches


class Tree(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.open[-1].inside.append(node)
        if tag not in ("meta", "input", "br"):
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].inside.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().name == tag

    def handle_data(self, data):
        self.open[-1].inside.append(data)


def tree(page: Path | str) -> Node:
    return Tree(page if isinstance(page, str) else page.read_text()).root


@pytest.fixture(scope="module")
def page(reports: ReportStore) -> Node:
    return tree(reports.page())


@pytest.fixture(scope="module")
def board(reports: ReportStore) -> Board:
    return next(b for b in build_boards(read_records(reports.store)) if b.task == "segmentation")


def dice_of(reports: ReportStore, run_id: str) -> pd.Series:
    """Return the logged Dice of each patient."""
    return read_table(reports.store, reports.store.client.get_run(run_id), "cases").set_index("case")["dice"]


def facts_of(page: Node) -> dict[str, str]:
    """Return the facts at the top of the first board's chapter."""
    definitions = page.all("section")[0].all("dl")[0]
    names, values = ([d.text for d in definitions.all(kind)] for kind in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def chapter_of(page: Node, heading: str) -> str:
    """Return the text below a heading of the first board's chapter."""
    inside = page.all("section")[0].inside
    start = next(at for at, n in enumerate(inside) if isinstance(n, Node) and n.name == "h3" and n.text == heading)
    text = ""
    for part in inside[start + 1 :]:
        if isinstance(part, Node) and part.name == "h3":
            break
        text += part if isinstance(part, str) else part.text
    return text


# The page of a store


def test_every_board_has_a_chapter_the_largest_first(page):
    heads = [[h.text for h in section.all("h3")] for section in page.all("section")]
    assert heads == [
        [
            *("Leaderboard", "Ranks", "Critical differences", "Training", "Every patient", "Groups of patients"),
            *("Trust in probabilities", "Gallery"),
        ],
        ["Leaderboard", "Reliability"],
    ]
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert all(link.attributes["href"][1:] in ids for link in page.all("a"))


def test_a_chapter_states_data_licence_patients_and_split(page, reports, board):
    assert "SYNTHETIC DATA" in page.all("main")[0].text
    assert [li.text for li in page.all("ul", class_="notes")[0].all("li")] == list(board.notes)
    facts = facts_of(page)
    manifest, index = reports.pack.manifest, reports.pack.index
    assert facts["Data"] == f"phantom, key {manifest.key}"
    assert facts["Licence of the data"] == manifest.licence
    assert facts["Patients"] == f"6, {len(index)} slices, {index['positive'].sum()} with tumour"
    assert facts["Split"] == f"2 folds over patients, hash {'s' * 12}"


def test_table_cells_match_the_text_tables(page, reports):
    for shown, made in zip(
        page.all("table", class_="board"), build_boards(read_records(reports.store)), strict=True
    ):
        columns = board_columns(made)
        assert [th.text for th in shown.all("thead")[0].all("th")] == [c.heading for c in columns]
        rows = [[cell.text for cell in row.inside] for row in shown.all("tbody")[0].all("tr")]
        assert rows == [[plain(c.cell(row)) for c in columns] for row in made.rows]


FIELDS = [
    *("rank", None, "score", "low", "difference", "difference_low", None, "p", None, "first", "rank_low"),
    *("dice_median", "hd95", "missed_slices", "dice_under_half", "dice_p5", "dice_positive_slices"),
    *("slice_sensitivity", "slice_specificity"),
    *("seeds", None, None, "epochs", "parameters", "flops", "device_seconds"),
    *("peak_memory_mb", "latency_p50_ms", "latency_p95_ms", "searched", "wall_seconds", None, None, None),
]


def test_each_cell_stores_its_number_at_full_precision(board):
    row = replace(board.rows[0], **{name: 1.0625 for name in FIELDS if name and hasattr(board.rows[0], name)})
    values = {name: (at + 1) * 1.000123 for at, name in enumerate(FIELDS) if name}
    own = {
        k: v for k, v in values.items() if hasattr(row, k) and k not in ("rank", "rank_low", "seeds", "searched")
    }
    whole = {"rank": 1, "rank_low": 3, "seeds": 4, "searched": 5}
    row = replace(row, **own, **whole, scores={k: v for k, v in values.items() if not hasattr(row, k)})
    cells = tree(sortable_table(replace(board, rows=(row, row)))).all("tbody")[0].all("tr")[0].inside
    expected = [None if name is None else float(whole.get(name, values[name])) for name in FIELDS]
    stored = [None if "data-value" not in c.attributes else float(c.attributes["data-value"]) for c in cells]
    assert stored == expected


def test_an_undefined_cell_stores_no_number(board):
    bare = replace(board, rows=(replace(board.rows[0], p=np.nan, scores={}),) * 2)
    cells = tree(sortable_table(bare)).all("tbody")[0].all("tr")[0].inside
    named = dict(zip(FIELDS, cells, strict=True))
    assert named["p"].attributes["data-value"] == named["hd95"].attributes["data-value"] == ""


def test_the_heat_map_shows_the_scores_of_the_cases(page, reports, board):
    tables = {row.name: np.mean([dice_of(reports, run) for run in row.runs], axis=0) for row in board.rows}
    tables = {name: pd.Series(dice, reports.pack.cases) for name, dice in tables.items()}
    cells = page.all("rect", class_="cell")
    assert len(cells) == 3 * 6
    institutions = reports.pack.index.groupby("case")["institution"].first()
    for cell in cells:
        case, name, score = cell.attributes["data-tip"].split(" · ")
        case, institution = re.fullmatch(r"(.*) \((.*)\)", case).groups()
        value = next(t for n, t in tables.items() if plain(n) == name)[case]
        assert float(cell.attributes["data-value"]) == value
        assert score == f"Dice {value:.3f}"
        assert institution == institutions[case]
        assert cell.attributes["data-patient"] == case
    order = list(dict.fromkeys(c.attributes["data-patient"] for c in cells))
    mean = pd.DataFrame(tables).mean(axis=1)
    assert mean[order].is_monotonic_increasing
    first = [c.attributes["data-tip"].split(" · ")[1] for c in cells[:3]]
    assert first == [plain(row.name) for row in board.rows]


def test_training_curves_show_folds_and_a_mean_up_to_the_shortest(page):
    faint = page.all("polyline", opacity="0.28")
    assert sorted(len(line.attributes["points"].split()) for line in faint) == [2, 2, 2, 3, 3, 3]
    assert [len(b.attributes["points"].split()) for b in page.all("polyline", stroke_width="2.4")] == [2, 2]


def test_figures_name_the_runs_that_lack_their_data(page):
    assert "No training was logged for bare." in chapter_of(page, "Training")
    assert "were not logged, for bare." in chapter_of(page, "Trust in probabilities")
    assert "No masks were logged for bare." in chapter_of(page, "Gallery")


def gallery(page: Node) -> list[dict]:
    """Return the data that the page's script draws, by patient."""
    scripts = {s.attributes.get("id"): s.text for s in page.all("script", type="application/json")}
    index = json.loads(scripts["board-0-gallery-index"])
    return [json.loads(scripts[f"board-0-gallery-{at}"]) for at in range(len(index["cases"]))]


def test_the_gallery_sorts_patients_by_disagreement(page, reports, board):
    shown = gallery(page)
    assert sorted(p["case"] for p in shown) == sorted(reports.pack.cases)
    disagreement = [float(p["disagreement"]) for p in shown]
    assert disagreement == sorted(disagreement, reverse=True)
    assert disagreement[0] == 1  # the second model predicts nothing for one patient
    dice = {row.name: dice_of(reports, row.run_id) for row in board.rows}
    names = [row.name for row in board.rows if row.name != "bare"]
    for patient in shown:
        assert patient["dice"] == [f"{dice[name][patient['case']]:.3f}" for name in names]
        assert 1 <= len(patient["slices"]) <= 3


def test_outlines_match_the_true_and_predicted_masks(page, reports, board):
    names = [row.name for row in board.rows if row.name != "bare"]
    for patient in gallery(page):
        rows = reports.pack.rows([patient["case"]])
        for piece in patient["slices"]:
            at = reports.pack.index["slice"].to_numpy()[rows].tolist().index(piece["number"])
            assert (filled(piece["truth"][0], (32, 32)) == reports.pack.masks[rows[at]]).all()
            for name, path in zip(names, piece["masks"], strict=True):
                soft = probabilities(reports.pack, AGAIN if name == "second" else BLUR[name])[patient["case"]][at]
                assert (filled(path[0], (32, 32)) == (soft[0] >= 0.5)).all()


@pytest.fixture
def elsewhere(reports: ReportStore) -> Iterator[None]:
    """Make the logged content key differ from the data set that is available."""
    runs = [r for r in search_runs(reports.store, {"bench.task": "segmentation"}) if "bench.data" in r.data.tags]
    for run in runs:
        reports.store.client.set_tag(run.info.run_id, "bench.data", "0" * 16)
    yield
    for run in runs:
        reports.store.client.set_tag(run.info.run_id, "bench.data", reports.pack.manifest.key)


def test_without_the_data_the_page_states_what_is_missing(reports, elsewhere, capsys):
    page = tree(reports.page("elsewhere.html"))
    assert "the data set is not available" in capsys.readouterr().err
    assert not {"Trust in probabilities", "Gallery"} & {h.text for h in page.all("h3")}
    assert (
        "trust in probabilities and gallery, because the data set is not available" in facts_of(page)["Not shown"]
    )
    assert "Missing sequences are left out" in chapter_of(page, "Groups of patients")
    assert len(page.all("rect", class_="cell")) == 18
    assert not page.all("rect", data_patient=reports.pack.cases[0])
    assert not page.all("script", type="application/json")


def test_the_page_is_logged_as_a_run_outside_all_boards(reports, capsys):
    before = len(read_records(reports.store))
    out = reports.page("logged.html", title="Mine", where=["name=second"])
    (run, *_) = search_runs(reports.store, {"bench.kind": "report"})
    logged = reports.store.client.download_artifacts(run.info.run_id, "logged.html", str(reports.folder))
    assert Path(logged).read_bytes() == out.read_bytes()
    assert run.info.status == "FINISHED"
    assert run.info.experiment_id == reports.store.client.get_experiment_by_name("phantom").experiment_id
    assert len(read_records(reports.store)) == before
    printed = capsys.readouterr().out
    assert str(out) in printed
    assert f"{out.stat().st_size / 1e6:.1f} MB" in printed
    page = tree(out)
    assert page.all("h1")[0].text == page.all("title")[0].text == "Mine"
    (table,) = page.all("table", class_="board")
    assert [row.inside[1].text for row in table.all("tbody")[0].all("tr")] == ["second [synthetic]"]
    assert "Patients with the lowest Dice come first." in chapter_of(page, "Gallery")


def test_primary_hd95_changes_ranks_and_colours(reports):
    page = tree(reports.page("far.html", primary="hd95", where=["bench.task=segmentation"]))
    cells = page.all("rect", class_="cell")
    assert {c.attributes["data-tip"].split(" · ")[2].split()[0] for c in cells} == {"HD95"}
    worst = max(cells, key=lambda c: float(c.attributes["data-value"]))
    best = min(cells, key=lambda c: float(c.attributes["data-value"]))
    light = [int(c.attributes["fill"][1:3], 16) for c in (best, worst)]
    assert light[0] > light[1]  # a large distance is dark
    assert cells[0].attributes["data-patient"] == worst.attributes["data-patient"]


def test_a_report_without_runs_or_into_a_folder_raises(store, reports, tmp_path):
    with pytest.raises(StoreError, match=r"no finished run in .*`bench run` makes one"):
        write_report(tmp_path / "none.html", uri=store.uri)
    with pytest.raises(StoreError, match=r"no finished run .* for which model=none"):
        reports.page(where=["model=none"])
    with pytest.raises(BadSetting, match="is a folder"):
        write_report(tmp_path, uri=store.uri)
    assert not list(tmp_path.glob("*.html"))


# Hostile names


def test_no_name_closes_a_script_or_becomes_an_element(page, reports):
    source = (reports.folder / "report.html").read_text()
    assert source.count("</script") == len(page.all("script"))
    assert not page.all("b", onclick="document.title=1")
    assert not [n for n in page.all() if any(key.startswith("on") for key in n.attributes)]
    assert not {c for c in source if not c.isprintable()} - {"\n", "\N{NO-BREAK SPACE}"}
    assert plain(EVIL) in [td.text.removesuffix(" [synthetic]") for td in page.all("th", scope="row")]
    assert all(p["case"] for p in gallery(page))  # every JSON script can be read


def test_the_policy_allows_only_the_page_s_own_script(page, reports):
    (policy,) = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    (script,) = [s for s in page.all("script") if "type" not in s.attributes]
    digest = hashlib.sha256(script.text.encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "img-src data:" in policy
    assert not [n for n in page.all() if n.name in ("link", "iframe", "object") or "src" in n.attributes]
    source = (reports.folder / "report.html").read_text()
    assert set(re.findall(r"https?://[^\s\"'<>]+", source)) == {"http://www.w3.org/2000/svg"}


# Outlines


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose centres are inside a path by the even-odd rule, by walking along its edges."""
    crossings = np.zeros(shape, int)  # vertical edges to the left of each pixel's centre
    for part in path.split("z")[:-1]:
        x, y = map(int, re.match(r"M(\d+) (\d+)", part).groups())
        start = y
        for kind, step in re.findall(r"([hv])(-?\d+)", part):
            if kind == "h":
                x += int(step)
            else:
                for row in range(min(y, y + int(step)), max(y, y + int(step))):
                    crossings[row, x:] += 1
                y += int(step)
        for row in range(min(y, start), max(y, start)):  # the closing edge
            crossings[row, x:] += 1
    return crossings % 2 == 1


def corners(path: str) -> list[set[tuple[int, int]]]:
    """Return the corners of each closed part."""
    parts = []
    for part in path.split("z")[:-1]:
        x, y = map(int, re.match(r"M(\d+) (\d+)", part).groups())
        seen = {(x, y)}
        for kind, step in re.findall(r"([hv])(-?\d+)", part):
            x, y = (x + int(step), y) if kind == "h" else (x, y + int(step))
            seen.add((x, y))
        parts.append(seen)
    return parts


def mask(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def test_outlines_of_simple_masks_match_hand_computed_corners():
    assert corners(outlines(mask("...", ".#.", "..."))) == [{(1, 1), (2, 1), (2, 2), (1, 2)}]
    assert corners(outlines(mask("##.", "##.", "..."))) == [{(0, 0), (2, 0), (2, 2), (0, 2)}]
    assert corners(outlines(mask("..#", "..#"))) == [{(2, 0), (3, 0), (3, 2), (2, 2)}]
    ring = corners(outlines(mask("###", "#.#", "###")))
    assert sorted(ring, key=len) == ring
    assert sorted(map(sorted, ring)) == [[(0, 0), (0, 3), (3, 0), (3, 3)], [(1, 1), (1, 2), (2, 1), (2, 2)]]
    assert outlines(np.zeros((4, 4), bool)) == ""


@pytest.mark.parametrize("seed", range(30))
def test_an_outline_encloses_exactly_its_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 14, 2)
    drawn = rng.random((height, width)) < rng.uniform(0.1, 0.9)
    assert (filled(outlines(drawn), drawn.shape) == drawn).all()


# Choice of slices, and disagreement between models


def test_slices_are_chosen_by_disagreement_errors_and_tumour_size():
    counts = [np.array(c) for c in ([0, 5, 9, 0], [1, 8, 2, 0], [0, 7, 3, 0])]
    assert choose_slices(*counts) == {2: "models differ most", 1: "most errors, largest tumour"}
    nothing = np.zeros(4, int)
    assert choose_slices(nothing, np.array([0, 0, 0, 3]), nothing) == {3: "largest tumour"}
    assert choose_slices(nothing, nothing, nothing) == {2: "no tumour, no errors"}


def small_pack(truth: np.ndarray) -> Pack:
    return pack_in_memory(np.zeros((*truth.shape, 1), np.uint8), ("flair",), truth.astype(np.uint8), "P")


def test_disagreement_is_one_minus_the_mean_dice_between_models():
    """Masks of 4, 4 and 2 pixels: the first two share 2, the third lies in both."""
    truth, *models = np.zeros((4, 2, 1, 4, 8), bool)
    for mask, left, right in zip((*models, truth), (0, 2, 2, 2), (4, 6, 4, 4), strict=True):
        mask[0, 0, 0, left:right] = True
    shown = view_patient(small_pack(truth[:, 0]), "P", models)
    pairs = 4 / 8, 4 / 6, 4 / 6
    assert shown.disagreement == pytest.approx(1 - sum(pairs) / 3)
    assert shown.dice == pytest.approx((4 / 6, 4 / 6, 1))
    assert [s["number"] for s in shown.data["slices"]] == [1]
    assert shown.data["slices"][0]["dice"] == ["0.667", "0.667", "1.000"]


def test_structures_of_a_row_with_several_seeds_have_their_interval():
    row = SimpleNamespace(name="unet", scores={"dice[core]": 0.5})
    board = SimpleNamespace(structures=("core",), rows=[row])
    runs = np.array([[0.2, 0.4, 0.6, np.nan], [0.4, 0.6, 0.8, 0.9]])
    (drawn,) = tree(figures.draw_structures(board, {"core": [mean_interval(runs)]})).all("g")
    means = bootstrap_means([runs[:, :3]])[0]  # the fourth patient has a score in one run only
    ends = [f"{end:.3f}" for end in np.quantile(means, [0.025, 0.975])]
    assert drawn.attributes["data-tip"] == f"unet: core 0.500, 95% interval {ends[0]} to {ends[1]}"
    assert len(drawn.all("line")) == 1


def test_institutions_that_nobody_knows_are_not_drawn():
    board = SimpleNamespace(
        higher_is_better=True, rows=[SimpleNamespace(name="unet")], primary="dice", structure=None
    )
    scores = np.array([[0.2, 0.8]])
    known, unknown = (
        tree(figures.draw_heat_map(board, ["a", "b"], names, scores, linked=False)).all("rect")
        for names in (["CS", "DU"], ["unknown", "unknown"])
    )
    assert len(known) - len(unknown) == 4  # two cells of the strip, two swatches of its key
    tips = [each.attributes["data-tip"] for each in unknown if "data-tip" in each.attributes]
    assert tips == ["a · unet · Dice 0.200", "b · unet · Dice 0.800"]


def test_two_structures_have_outlines_and_a_dice_each_without_padding():
    truth, mask = np.zeros((2, 1, 2, 4, 8), bool)
    truth[0, 0, 0, 0:4] = mask[0, 0, 0, 0:2] = truth[0, 1, 1, 0:2] = mask[0, 1, 1, 0:2] = True
    two = Structures(("core", "rim"), ((1,), (2,)))
    pack = pack_in_memory(np.zeros((1, 4, 8, 1), np.uint8), ("flair",), join_bits(truth, two), "P", two)
    shown = view_patient(replace(pack, index=pack.index.assign(height=3, width=6)), "P", [mask])
    assert shown.dice == pytest.approx(((4 / 6 + 1) / 2,))
    assert shown.data["structures"] == ["core 0.667 · rim 1.000"]
    assert shown.data["size"] == [6, 3]
    (piece,) = shown.data["slices"]
    assert piece["truth"] == [outlines(own) for own in truth[0, :, :3, :6]]
    assert piece["masks"] == [[outlines(own) for own in mask[0, :, :3, :6]]]
    assert shown.data["about"].endswith("core on 1 of 1 slices, 4 pixels · rim on 1 of 1 slices, 2 pixels")
    page = gallery_html("g", ["unet"], [shown], two.names)
    assert [page.count(f'<span class="key s{k}">{name}</span>') for k, name in enumerate(two.names)] == [1, 1]


def test_two_empty_masks_agree_and_one_model_has_no_disagreement():
    empty = np.zeros((2, 1, 4, 8), bool)
    both = view_patient(small_pack(empty[:, 0]), "P", [empty, empty])
    assert both.disagreement == 0
    assert np.isnan(both.dice).all()
    assert both.data["slices"][0]["dice"] == ["–", "–"]
    assert view_patient(small_pack(empty[:, 0]), "P", [empty]).data["disagreement"] is None


def test_a_scan_is_scaled_so_that_its_white_level_is_white():
    ramp = np.tile(np.linspace(0, 100, 64).astype(np.uint8), (64, 1))
    head, content = encode_scan(ramp, 50).split(",")
    assert head == "data:image/webp;base64"
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(shown.astype(int) - np.clip(ramp * 5.1, 0, 255)).mean() < 4
    large = np.zeros((1000, 500), np.uint8)
    shown = cv2.imdecode(
        np.frombuffer(base64.b64decode(encode_scan(large, 1).split(",")[1]), np.uint8), cv2.IMREAD_GRAYSCALE
    )
    assert shown.shape == (LONGEST, LONGEST // 2)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (100, 140), (190, 240)])
def test_a_close_up_contains_the_tumour_and_stays_inside_the_image(top, left):
    truth = np.zeros((200, 256), bool)
    truth[top : top + 10, left : left + 16] = True
    x, y, width, height = close_up(truth)
    assert width == height == 48
    assert 0 <= x <= left < left + 16 <= x + width <= 256
    assert 0 <= y <= top < top + 10 <= y + height <= 200
    assert close_up(np.zeros((9, 9), bool)) is None


# Ranks

ALL_TIED = np.zeros((4, 4), bool)


@pytest.mark.parametrize("higher", [True, False])
def test_mean_ranks_and_friedman_match_scipy(higher):
    scores = np.random.default_rng(1).integers(0, 8, (4, 30)) / 8  # with ties
    computed = mean_ranks(scores, ALL_TIED[:4, :4], higher=higher)
    each = [stats.rankdata(-column if higher else column) for column in scores.T]
    assert computed.ranks == pytest.approx(np.mean(each, axis=0))
    assert computed.friedman == pytest.approx(stats.friedmanchisquare(*scores).pvalue)


def test_friedman_is_undefined_for_two_rows_and_for_equal_rows():
    scores = np.random.default_rng(1).random((2, 9))
    assert np.isnan(mean_ranks(scores, ALL_TIED[:2, :2], higher=True).friedman)
    alike = mean_ranks(np.repeat(scores[:1], 3, 0), ALL_TIED[:3, :3], higher=True)
    assert np.isnan(alike.friedman)
    assert alike.ranks.tolist() == [2, 2, 2]
    assert alike.bars == ((0, 1, 2),)


def test_rows_that_share_a_bar_with_the_leader_are_tied_with_it():
    rng = np.random.default_rng(4)
    scores = np.clip(0.7 + 0.02 * np.arange(6)[:, None] + rng.normal(0, 0.1, (6, 60)), 0, 1)
    tied = np.array([s.verdict in (LEADER, TIED, MEAN_ONLY) for s in rank_models(list(scores))])
    leader = int(scores.mean(1).argmax())
    distinguishable = distinguish_models([row[None] for row in scores])
    together = {leader}.union(
        *(bar for bar in mean_ranks(scores, distinguishable, higher=True).bars if leader in bar)
    )
    assert together == set(np.flatnonzero(tied).tolist())
    assert 1 < len(together) < 6


def test_bars_are_the_maximal_sets_of_pairwise_ties():
    """Compared with trying every set."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        tied = np.triu(rng.random((6, 6)) < 0.6, 1)
        tied = tied | tied.T | np.eye(6, dtype=bool)
        every = [set(s) for n in range(2, 7) for s in combinations(range(6), n) if tied[np.ix_(s, s)].all()]
        largest = [s for s in every if not any(s < other for other in every)]
        assert maximal_cliques(tied) == sorted(map(tuple, map(sorted, largest)))
    assert maximal_cliques(np.ones((40, 40), bool)) == [tuple(range(40))]


# Groups


def test_groups_have_the_mean_scores_of_their_patients():
    scores = np.array([[0.1, 0.2, 0.3, np.nan, 0.7], [0.5, 0.5, 1.0, 0.9, 0.8]])
    pixels = pd.Series([10, 30, 20, 5, 40], list("vwxyz"))
    groups = pd.DataFrame(
        {"institution": list("ABAAB"), "all": "same", "tumour size": size_groups(pixels)}, index=list("vwxyz")
    )
    by_group = {(s.kind, s.name.split(",")[0]): (s.n, s.means.tolist()) for s in mean_by_group(scores, groups)}
    assert by_group == {
        ("institution", "A"): (2, pytest.approx([0.2, 0.75])),  # the undefined patient counts for neither
        ("institution", "B"): (2, pytest.approx([0.45, 0.65])),
        ("tumour size", "small"): (1, pytest.approx([0.1, 0.5])),
        ("tumour size", "middle"): (1, pytest.approx([0.3, 1.0])),
        ("tumour size", "large"): (2, pytest.approx([0.45, 0.65])),
    }


def test_size_groups_keep_equal_sizes_together():
    pixels = pd.Series([0, 1, 1, 1, 2, 2, 3])
    assert [s.split(",")[0] for s in size_groups(pixels)] == [
        "no tumour",
        *["small"] * 3,
        "middle",
        "middle",
        "large",
    ]
    assert size_groups(pd.Series([900, 1200, 1500, 1800])).tolist()[0] == "small, to 1,200 px"
    assert list(size_groups(pd.Series([0, 0]))) == ["no tumour", "no tumour"]


# Trust


def test_the_coverage_curve_matches_hand_computed_values():
    coverage, mean_dice = coverage_curve(np.array([0.7, 0.9, 0.8]), np.array([0.0, 1.0, 0.5]))
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert mean_dice == pytest.approx([1, 0.75, 0.5])
    assert aurc(mean_dice) == pytest.approx(1 - (1 + 0.75 + 0.5) / 3)


def test_patients_with_equal_confidence_share_their_mean_dice():
    for dice in ([0.2, 0.8, 0.5], [0.8, 0.2, 0.5]):
        assert coverage_curve(np.array([0.9, 0.9, 0.1]), np.array(dice))[1] == pytest.approx([0.5, 0.5, 0.5])


def test_aurc_is_compared_with_perfect_and_random_order():
    pixels = np.ones((2, 100), np.int64)
    trust = assess_trust(pixels, np.array([0.9, 0.1, 0.5, 0.7]), np.array([0.5, 1.0, 0.0, np.nan]))
    assert trust.mean_dice == pytest.approx([0.5, 0.25, 0.5])
    assert (trust.aurc, trust.blind) == pytest.approx((1 - 1.25 / 3, 0.5))
    assert trust.perfect == pytest.approx(1 - (1 + 0.75 + 0.5) / 3)


def test_confidence_is_the_expected_dice():
    """Probabilities 0.905, 0.605 and 0.305, the first two called: 2 (0.905 + 0.605) / (1.815 + 2)."""
    probability = np.zeros((1, 4, 4), np.uint8)
    probability[0, 0, :3] = 90, 60, 30
    assert soft_dice_confidence(probability, probability >= 50) == pytest.approx(2 * 1.51 / (1.815 + 2))
    assert soft_dice_confidence(probability, probability >= 99) == 0
    assert soft_dice_confidence(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), bool)) == 0


def test_only_pixels_near_truth_or_prediction_are_counted():
    """A row of 31 pixels: truth at 6, a call at 20; within 5 pixels lie 1 to 11 and 15 to 25."""
    truth, called = np.zeros((2, 2, 1, 31), bool)
    probability = np.full((2, 1, 31), 7, np.uint8)
    truth[0, 0, 6], called[0, 0, 20], probability[0, 0, 20], probability[0, 0, 30] = True, True, 80, 99
    counts = count_pixels(probability, truth, called)
    expected = np.zeros((2, 100), int)
    expected[0, 7], expected[1, 7], expected[0, 80] = 20, 1, 1
    assert (counts == expected).all()
    assert not count_pixels(probability, truth & False, called & False).any()


def test_the_reliability_curve_matches_hand_computed_values():
    """0.5 to 0.6: three pixels at 0.505, of which two of tumour, and one at 0.555; 0.9 and more: one of tumour."""
    pixels = np.zeros((2, 100), np.int64)
    pixels[0, 50], pixels[1, 50], pixels[0, 55], pixels[1, 99] = 1, 2, 1, 1
    curve = pixel_reliability(pixels)
    assert curve["probability"].tolist() == pytest.approx([(3 * 0.505 + 0.555) / 4, 0.995])
    assert curve["share"].tolist() == [0.5, 1]
    assert curve["pixels"].tolist() == [4, 1]


# Complete leaderboards


def board_data(
    rows: int, cases: Sequence[str], patients: Sequence[object] = (), dice_of_rows: np.ndarray | None = None
) -> BoardData:
    """Return a board with random Dice, or `dice_of_rows`, and everything that a page shows."""
    rng = np.random.default_rng(0)
    drawn = np.clip(rng.normal(0.8, 0.15, (rows, len(cases))), 0, 1) if dice_of_rows is None else dice_of_rows
    made = []
    tags = {"bench.dataset": "lgg", "bench.data": "d" * 16, "bench.split": "s" * 12, "bench.convention": "1"}
    for at, dice in enumerate(drawn):
        table = pd.DataFrame({"case": cases, "fold": 0, "dice": dice, "tp": 9, "fp": 1, "fn": 1, "tn": 9})
        made.append(
            RunRecord(
                f"{at:032}", f"run {at}", table, {"run.seed": "0", "x": str(at)}, {"dice": np.nanmean(dice)}, tags
            )
        )
    (board,) = build_boards(made)
    scores = tuple(made[int(row.run_id)].cases["dice"].to_numpy()[None] for row in board.rows)
    trust = {
        at: assess_trust(rng.integers(0, 99, (2, 100)), rng.random(len(cases)), each[0])
        for at, each in enumerate(scores)
    }
    groups = pd.DataFrame({"institution": [case[-1] for case in cases]}, index=list(cases))
    history = pd.DataFrame({"epoch": range(1, 51), "val/dice": rng.random(50)})
    masks = MaskData(tuple(range(rows)), tuple(patients), trust)
    return BoardData(board, list(cases), scores, groups, ((history,) * 5,) * rows, {}, {}, {}, masks)


@pytest.mark.slow
def test_twenty_models_and_110_patients_stay_under_60_megabytes():
    """One patient with three slices of ragged masks, repeated for every patient."""
    rng = np.random.default_rng(0)

    def noise(count: int) -> np.ndarray:
        return np.stack([cv2.GaussianBlur(rng.standard_normal((256, 256)), (0, 0), 3) for _ in range(count)])

    images = (255 * (noise(3) + 0.3).clip(0, 0.6) / 0.6).astype(np.uint8)
    pack = pack_in_memory(images[..., None], ("flair",), (noise(3) > 0.1).astype(np.uint8), "P")
    shown = view_patient(pack, "P", [noise(3)[:, None] > 0.1 for _ in range(20)])
    assert len(shown.data["slices"]) >= 2
    source = render_report("large", [board_data(20, [f"TCGA_DU_{n:04}" for n in range(110)], [shown] * 110)])
    assert 5e6 < len(source.encode()) < 60e6


@pytest.mark.parametrize(
    "dice",
    [
        np.ones((3, 6)),  # perfect, and all equal
        np.zeros((2, 6)),
        np.array([[0.5, np.nan, 0.7, 0.8, 0.9, 1.0], [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]]),
        np.array([[0.5]]),
    ],
    ids=["perfect", "nothing", "undefined", "one"],
)
def test_extreme_boards_have_no_undefined_coordinates(dice):
    data = board_data(len(dice), [f"P{n}" for n in range(dice.shape[1])], dice_of_rows=dice)
    page = tree(render_report("odd", [data]))
    drawn = page.all("svg", role="img")
    assert len(drawn) == (3 if len(dice) == 1 else 5)  # a single row has no rank figures
    for figure in drawn:
        places = [v for n in figure.all() for k, v in n.attributes.items() if not k.startswith(("data-", "aria-"))]
        assert not [place for place in places if "nan" in place or "inf" in place]
    undefined = [c for c in page.all("rect", class_="cell") if c.attributes["fill"] == "#ffffff"]
    assert len(undefined) == np.isnan(dice).sum()


def test_patient_names_cannot_become_markup():
    cases = [f"{EVIL}{n}" for n in range(5)]
    page = tree(render_report(EVIL, [board_data(3, cases)]))
    assert page.all("title")[0].text == plain(EVIL)
    assert not [n for n in page.all() if n.name == "b" or any(key.startswith("on") for key in n.attributes)]
    assert "gallery, because" in facts_of(page)["Not shown"]
