"""Run, rank, compare and predict from Python: `import bench`. The command line calls these functions.

Nothing is printed but progress, on standard error or in the notebook. Whatever the user must fix raises a
`bench.BenchError`, a sentence with a way out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a function imports what it needs, so that `bench --help` is quick
    import pandas as pd

    from bench.analysis.board import Board
    from bench.analysis.comparison import Comparison
    from bench.config import RunConfig
    from bench.experiments.predict import Predictions
    from bench.experiments.run import FinishedRun
    from bench.types import RunRecord

AnyPath = str | os.PathLike[str]
SETTINGS = {  # of the parameters of `run`
    "model": "model",
    "encoder": "model.encoder",
    "weights": "model.weights",
    "data": "dataset.folder",
    "dataset": "dataset",
    "loss": "loss",
    "folds": "split.folds",
    "epochs": "train.epochs",
    "image_size": "input.image_size",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "seed": "seed",
    "device": "device",
    "name": "name",
    "deterministic": "train.deterministic",
}


@dataclass(frozen=True)
class Leaderboard:
    """The boards of a store, the best row first on each, and the records of the runs behind them."""

    boards: tuple[Board, ...]
    records: tuple[RunRecord, ...]

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per row of a board, with all columns; `board` numbers the boards from 1."""
        import pandas as pd

        from bench.reports.tables import board_rows

        return pd.DataFrame(board_rows(self.boards))

    def patients_to_pandas(self) -> pd.DataFrame:
        """Return the scores of every patient by each run behind the rows; `board` and `rank` say which row."""
        from bench.reports.tables import case_rows

        return case_rows(self.boards, self.records)

    def __repr__(self) -> str:
        rows = sum(len(board.rows) for board in self.boards)
        return f"<Leaderboard: rows: {rows}, boards: {len(self.boards)}, finished runs: {len(self.records)}>"

    def _repr_html_(self) -> str:
        from bench.reports.tables import board_html

        return "\n".join(map(board_html, self.boards)) or repr(self)


def run(
    model: str | None = None,
    *,
    data: AnyPath | None = None,
    dataset: str | None = None,
    encoder: str | None = None,
    weights: AnyPath | None = None,
    loss: str | None = None,
    folds: int | None = None,
    fold: int | None = None,
    epochs: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    name: str | None = None,
    deterministic: bool = False,
    settings: Mapping[str, Any] | None = None,
    config: AnyPath | None = None,
    plugin: AnyPath | Sequence[AnyPath] = (),
    tracking_uri: str | None = None,
    resume: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> FinishedRun:
    """Run grouped k-fold cross-validation of one configuration, log it and rank it, as `bench run` does.

    Without `data` it trains on the synthetic phantom. `settings` are any settings by their dotted names, such as
    `{"train.clip": None}`, and `config` is a YAML file of settings, which all other arguments override. `fold`
    runs one fold alone. `resume` names an interrupted run, whose settings are used; repeating the call resumes it,
    too. `quiet` shows no progress. Raises `BenchError`.
    """
    if resume is not None:
        _load(plugin)
        from bench.experiments.run import execute, settings_to_resume

        chosen, fold, run_id = settings_to_resume(resume, uri=tracking_uri)
        return execute(chosen, only=fold, uri=tracking_uri, resume=run_id, quiet=quiet, verbose=verbose)
    chosen = configure_run(locals())  # first, so that a refused setting needs no slow import
    from bench.overrides import check_data_folder

    check_data_folder(chosen)
    from bench.experiments.run import execute

    return execute(chosen, only=fold, uri=tracking_uri, fresh=fresh, quiet=quiet, verbose=verbose)


def configure_run(given: Mapping[str, Any]) -> RunConfig:
    """Return the configuration for arguments of `run`, by name. Raises `BenchError`."""
    from bench.overrides import configure, load_settings

    plugins = _load(given.get("plugin") or ())
    flags = {setting: given.get(argument) for argument, setting in SETTINGS.items()}
    flags["train.deterministic"] = flags["train.deterministic"] or None
    flags["plugins"] = plugins or None
    flags = {key: _plain(value) for key, value in flags.items() if value is not None}
    # These and `settings` form one layer: in two, choosing a component would silently drop settings of the other.
    file = load_settings(Path(given["config"])) if given.get("config") else {}
    config = configure(file, flags | dict(given.get("settings") or {}))
    config.completed()  # refuses wrong settings of components, too
    return config


def leaderboard(
    *,
    primary: str | None = None,
    structure: str | None = None,
    group_by: str = "configuration",
    where: str | Sequence[str] = (),
    pareto: str | None = None,
    sort: str | None = None,
    tracking_uri: str | None = None,
) -> Leaderboard:
    """Return the ranked runs, with a board for each data set, split and metric convention.

    `where` keeps the runs that meet all its conditions, such as "model=unet" or "parameters<5e6". The other
    arguments are the options of `bench leaderboard`. Raises `BenchError`.
    """
    from bench.analysis.leaderboard import build_boards
    from bench.console import Display
    from bench.tracking import connect, read_records

    where = [where] if isinstance(where, str) else where
    options = {"primary": primary, "sort": sort, "pareto": pareto, "structure": structure}
    with Display() as display:
        records = read_records(connect(tracking_uri), tick=display.reading)
        with display.doing("ranking"):
            boards = build_boards(records, **options, group_by=group_by, where=where)
    return Leaderboard(tuple(boards), tuple(records))


def compare(
    a: str | FinishedRun,
    b: str | FinishedRun,
    *,
    primary: str = "dice",
    structure: str | None = None,
    data: AnyPath | None = None,
    out: AnyPath | None = None,
    plugin: AnyPath | Sequence[AnyPath] = (),
    tracking_uri: str | None = None,
) -> Comparison:
    """Compare two runs patient by patient: results of `bench.run`, or their names or ids.

    `claim` of the result is one sentence on what it supports, and `patients` its table of patients. `data` is the
    folder of the data set, by default where a run read it. A figure and all numbers are written to the folder
    `out`, if given. Raises `BenchError`.
    """
    from bench.reports.comparison import compare

    _load(plugin)
    folders = {"data": Path(data) if data else None, "out": Path(out) if out else None}
    return compare(_run_name(a), _run_name(b), primary=primary, structure=structure, uri=tracking_uri, **folders)


def predict(
    run: str | FinishedRun,
    input: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    *,
    fold: int | None = None,
    threshold: float | None = None,
    device: str = "auto",
    plugin: AnyPath | Sequence[AnyPath] = (),
    tracking_uri: str | None = None,
) -> Predictions:
    """Predict images, volumes, or folders of them, and write masks and overlays to the folder `out`.

    `run` is the result of `bench.run`, the name or id of a run, or a folder that `bench export` wrote. The mean of
    its fold models predicts, or the model of one `fold`. Raises `BenchError`.
    """
    from bench.experiments.predict import predict_folder

    _load(plugin)
    options: dict[str, Any] = {"fold": fold, "threshold": threshold, "device": device, "uri": tracking_uri}
    inputs = [input] if isinstance(input, str | os.PathLike) else input
    return predict_folder(_run_name(run), [Path(each) for each in inputs], Path(out), **options)


def _run_name(run: str | FinishedRun) -> str:
    return run if isinstance(run, str) else run.run_id


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _load(plugin: AnyPath | Sequence[AnyPath]) -> list[str]:
    """Load plugin files, and return their paths."""
    from bench.registry import load_plugin

    paths = [plugin] if isinstance(plugin, str | os.PathLike) else plugin
    for path in paths:
        load_plugin(Path(path))
    return [os.fspath(path) for path in paths]
