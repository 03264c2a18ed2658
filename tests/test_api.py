"""The functions of `import bench`: those of the command line, with results and exceptions instead of text."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
from typer.main import get_command

import bench
from bench.api import SETTINGS, configure_run
from bench.cli import app
from bench.reports.tables import board_csv
from tests.reports.test_tables import BOTH

FUNCTIONS = ("run", "leaderboard", "compare", "predict")
ONLY_IN_THE_SHELL = {"set_", "dry_run", "format", "wide", "cases"}


def test_importing_bench_imports_nothing_heavy() -> None:
    code = (
        "import sys, bench; dir(bench); print({'torch', 'mlflow', 'numpy', 'pandas', 'typer'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


@pytest.mark.slow
def test_a_notebook_without_widgets_is_not_warned_of_them() -> None:
    code = "import sys; sys.modules |= {'ipykernel.zmqshell': sys, 'IPython': sys, 'ipywidgets': None}; "
    code += "sys.get_ipython = lambda: sys; import bench.experiments.run, tqdm.autonotebook"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "IProgress" not in done.stderr


def test_the_functions_are_found_by_name_and_by_completion() -> None:
    assert set(FUNCTIONS) <= set(dir(bench))
    assert all(callable(getattr(bench, name)) for name in FUNCTIONS)
    assert issubclass(bench.BenchError, Exception)
    with pytest.raises(AttributeError, match="no attribute 'ran'"):
        _ = bench.ran


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_what_its_command_takes(name: str) -> None:
    options = {parameter.name for parameter in get_command(app).commands[name].params}
    parameters = inspect.signature(getattr(bench, name)).parameters
    assert options - ONLY_IN_THE_SHELL <= set(parameters)
    assert all(parameter.annotation is not parameter.empty for parameter in parameters.values())


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("bench") / "py.typed").is_file()


@pytest.mark.slow
def test_a_type_checker_knows_what_the_functions_return(tmp_path: Path) -> None:
    code = "import bench\nboard: int = bench.leaderboard().to_pandas()\nbench.run(epochs='3')\n"
    (tmp_path / "use.py").write_text(code)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", str(tmp_path / "use.py")], capture_output=True, text=True
    )
    assert 'expression has type "DataFrame", variable has type "int"' in checked.stdout
    assert 'incompatible type "str"; expected "int | None"' in checked.stdout


def test_arguments_are_the_settings_that_the_flags_are() -> None:
    given = {
        "model": "unet",
        "data": Path("scans"),
        "epochs": 3,
        "settings": {"train.clip": None, "model.base": 8},
    }
    config = configure_run(given)
    assert (config.model.name, config.model.params["base"], config.train.epochs) == ("unet", 8, 3)
    assert (config.dataset.name, config.dataset.params["folder"], config.train.clip) == ("lgg", "scans", None)


def test_every_argument_of_a_setting_is_one_of_run() -> None:
    assert set(SETTINGS) <= set(inspect.signature(bench.run).parameters)


def test_what_the_user_must_fix_is_an_exception_and_prints_nothing(capsys) -> None:
    with pytest.raises(bench.BenchError, match="Did you mean 'unet'"):
        bench.run("unnet")
    assert capsys.readouterr() == ("", "")


def test_a_leaderboard_is_a_data_frame_of_what_the_csv_holds() -> None:
    ranked = bench.Leaderboard((BOTH,), ())
    frame, written = ranked.to_pandas(), pd.read_csv(io.StringIO(board_csv([BOTH])))
    assert list(frame) == list(written)
    assert frame["score"].tolist() == pytest.approx(written["score"].tolist())
    assert repr(ranked) == f"<Leaderboard: rows: {len(BOTH.rows)}, boards: 1, finished runs: 0>"
    assert "<table>" in ranked._repr_html_()


def test_an_empty_leaderboard_is_an_empty_table() -> None:
    nothing = bench.Leaderboard((), ())
    assert nothing.to_pandas().empty
    assert nothing.patients_to_pandas().empty
