"""What a disk refuses is said in a sentence; what killed processes leave is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from bench import cli
from bench.errors import DataError
from bench.files import explain, lock_if_writable, naming, temporary_files, write_atomically, writing_to_cache
from tests.fakes import refuse_to_write


def problem(number: int, *files: Path) -> OSError:
    """An error as the operating system raises it, about up to two files."""
    named = [word for file in files for word in (str(file), None)][:-1]
    return OSError(number, os.strerror(number), *named)


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (problem(errno.EROFS, Path("/out/a.png")), "/out/a.png: Read-only file system. Use another folder."),
        (problem(errno.EACCES, Path("cache/x")), "x: Permission denied. Set BENCH_CACHE to another folder."),
        (problem(errno.ENOSPC, Path("/from"), Path("/to")), "/to: No space left on device. Free some space ("),
        (problem(errno.EDQUOT, Path("temporary/x")), " MiB left), or set TMPDIR to another folder."),
        (problem(errno.ENOSPC), "temporary (TMPDIR): "),
        (problem(errno.ENOENT, Path("/out/a.png")), "/out/a.png: No such file or directory."),
        (shutil.Error([("/from", "/to", "no")]), "/to: no."),
    ],
)
def test_an_error_of_a_disk_names_the_file_and_the_way_out(tmp_path, error, said):
    if error.filename and not Path(error.filename).is_absolute():
        error.filename = str(tmp_path / error.filename)
    assert said in explain(error)


def test_a_number_that_numpy_leaves_out_is_a_full_disk_if_one_is_full(monkeypatch):
    error = OSError("100 requested and 0 written")
    assert explain(error) == "100 requested and 0 written."
    monkeypatch.setattr("bench.files._free", lambda path: 0)
    assert "Free some space" in explain(error)


def test_only_what_concerns_the_cache_is_about_the_cache(tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=r"cannot write to the cache: .*cache: No space"), writing_to_cache(cache):
        raise problem(errno.ENOSPC)
    with pytest.raises(OSError, match=r"slice\.tif"), writing_to_cache(cache):
        raise problem(errno.EACCES, Path("/data/slice.tif"))


def test_an_error_without_a_name_gets_that_of_the_file_that_is_written(tmp_path):
    for error in (problem(errno.ENOSPC), OSError("100 requested and 0 written")):
        with pytest.raises(OSError, match=r"requested|No space") as caught, naming(tmp_path / "a"):
            raise error
        assert explain(caught.value).startswith(f"{tmp_path / 'a'}: ")
    with pytest.raises(OSError, match="other") as caught, naming(tmp_path / "a"):
        raise problem(errno.EACCES, Path("/other"))
    assert caught.value.filename == "/other"


def test_a_disk_that_becomes_full_during_an_atomic_write_is_named(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_atomically(tmp_path / "a", b"12")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "a")


def test_a_folder_without_a_lock_is_used_only_if_it_cannot_be_written_to(tmp_path, monkeypatch):
    with lock_if_writable(tmp_path / "new" / ".lock") as locked:
        assert locked
    refuse_to_write(monkeypatch)
    with lock_if_writable(tmp_path / "new" / ".lock") as locked:
        assert not locked


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_an_error_of_a_disk_is_one_line_of_the_command(number, monkeypatch, capsys):
    def fail():
        raise problem(number, Path("/out/a.png"))

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: /out/a.png: {os.strerror(number)}.")


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    general = tmp_path / "temporary"
    names = ["medseg-bench-killed.tmp", "medseg-bench-working.tmp", "medseg-bench-new.tmp", "medseg-bench-results"]
    killed, working, new, results = (general / name for name in names)
    for folder in (killed, working, new, results):
        (folder / "model").mkdir(parents=True)
        os.utime(folder, (0, 0))
    os.utime(new)
    lock = os.open(working, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with temporary_files():
        own = Path(tempfile.mkdtemp())
        assert set(general.iterdir()) == {working, new, results, own.parent}
    os.close(lock)
    assert not own.parent.exists()
    assert tempfile.gettempdir() == str(general)


def test_commands_that_need_no_temporary_file_work_on_a_full_disk(monkeypatch):
    with temporary_files():  # the folder does not exist
        assert Path(tempfile.gettempdir()).name == "temporary"
