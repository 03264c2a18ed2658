"""What a user asks for is written to free names, and never over a file that this suite did not write."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from bench.errors import BadSetting
from bench.outputs import LIST, check_outputs, new_output, without_outputs, write_output


def test_an_unchanged_output_is_replaced(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_output(tmp_path / "new" / "a.csv", text)
    assert (tmp_path / "new" / "a.csv").read_text() == "two"
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [LIST, "a.csv"]


@pytest.mark.parametrize("listed", [False, True])
def test_the_file_of_someone_else_is_kept(tmp_path: Path, listed: bool) -> None:
    if listed:
        write_output(tmp_path / "a.csv", "one")
    (tmp_path / "a.csv").write_text("theirs")
    with pytest.raises(BadSetting, match=r"a\.csv exists, and bench did not write it or it has changed since"):
        write_output(tmp_path / "a.csv", "two")
    assert (tmp_path / "a.csv").read_text() == "theirs"


def test_two_results_never_get_one_name(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="two results would be written to"):
        check_outputs([tmp_path / "a.csv", tmp_path / "b" / ".." / "a.csv"])


@pytest.mark.parametrize("name", ["folder", "/dev/null"])
def test_nothing_is_written_over_what_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadSetting, match="is not a file"):
        check_outputs([tmp_path / name])


def test_an_interrupted_write_leaves_the_output_before(tmp_path: Path) -> None:
    write_output(tmp_path / "a.csv", "one")
    with suppress(KeyboardInterrupt), new_output(tmp_path / "a.csv") as writing:
        writing.write_text("tw")
        raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.iterdir()) == [LIST, "a.csv"]
    write_output(tmp_path / "a.csv", "two")
    assert (tmp_path / "a.csv").read_text() == "two"


def test_a_kill_before_the_rename_leaves_an_output_that_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_output(tmp_path / "a.csv", "one")
    monkeypatch.setattr(Path, "replace", lambda *paths: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_output(tmp_path / "a.csv", "two")
    monkeypatch.undo()
    check_outputs([tmp_path / "a.csv"])


def test_outputs_are_told_from_the_files_of_others(tmp_path: Path) -> None:
    mine, edited, theirs = (tmp_path / f"{name}.csv" for name in "abc")
    for path in (mine, edited):
        write_output(path, "one")
    edited.write_text("two")
    theirs.write_text("one")
    assert without_outputs([theirs, mine, edited]) == [theirs, edited]


def test_the_list_is_one_that_sha256sum_checks(tmp_path: Path) -> None:
    write_output(tmp_path / "a b.csv", "one")
    assert subprocess.run(["sha256sum", "-c", LIST], cwd=tmp_path, capture_output=True, text=True).stdout == (
        "a b.csv: OK\n"
    )
