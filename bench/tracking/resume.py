"""Finding the interrupted run that a command resumes: one with the same settings, data, folds and code.

A process holds a lock in the workspace of its run, a folder beside the store, while it works. The lock is released
when the process ends, however it ends; the checkpoints stay.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

import bench
from bench.config import NOT_DECISIVE, RunConfig
from bench.errors import BadSetting
from bench.files import cache_folder, is_locked, write_atomically
from bench.tracking import LEAKY, PARENT, Run, Store, Tag, is_finished, run_label, search_runs
from bench.tracking.heartbeat import GRACE, beats_here, seconds_silent

IDENTITY = (Tag.FINGERPRINT, Tag.DATA)
FRESH = "Give --fresh to start a new run."
RESULT_FOLDERS = ("data", "models", "metrics", "inference", "training")  # of the package: results depend on them
PRINTING = ("console.py", "formatting.py")  # of the package itself: results do not depend on them


def hash_code(config: RunConfig, *, also: Sequence[str] = ()) -> dict[str, str]:
    """Return a short hash of every file that a result depends on, plugins included.

    `also` names further folders of the package, such as 'experiments/search'.
    """
    package = Path(bench.__file__).parent
    paths = [path for path in package.glob("*.py") if path.name not in PRINTING]
    paths += [path for folder in (*RESULT_FOLDERS, *also) for path in (package / folder).rglob("*.py")]
    files = {path.relative_to(package).as_posix(): path for path in sorted(paths)}
    files |= {str(plugin): plugin for plugin in (Path(p).resolve() for p in config.plugins)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:8] for name, path in files.items()}


def digest(code: Mapping[str, str]) -> str:
    """Return one hash of all file hashes."""
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:16]


def workspace_folder(store: Store, run_id: str) -> Path:
    """Return the folder for the checkpoints of a run: beside a SQLite store, else in the cache of this machine."""
    return (store.folder or cache_folder()) / "unfinished" / run_id


@contextmanager
def run_lock(workspace: Path) -> Iterator[None]:
    """Hold the lock of a run. Raises `BadSetting` if another process holds it."""
    workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workspace / "lock")
    try:
        lock.acquire(timeout=0.2, poll_interval=0.02)  # `is_active` of another process holds it for a moment
    except Timeout:
        raise _active_error(workspace.name) from None
    try:
        yield
    finally:
        lock.release()


def is_active(store: Store, run: Run) -> bool:
    """Return whether a process works on a RUNNING run: it holds the lock, or its heartbeat is not old.

    The heartbeat decides for a run on a server that last ran elsewhere, or whose workspace is gone.
    """
    workspace = workspace_folder(store, run.info.run_id)
    if workspace.exists():
        if is_locked(workspace / "lock"):
            return True
        if beats_here(run):
            return False
    return store.folder is None and seconds_silent(run) < GRACE


def is_ranked(store: Store, run: Run) -> bool:
    """Return whether a run has finished and was ranked: its workspace is removed after that."""
    return is_finished(run) and not workspace_folder(store, run.info.run_id).exists()


def find_resumable(
    store: Store, tags: Mapping[str, str], code: Mapping[str, str], *, run_id: str | None = None
) -> Run | None:
    """Return the newest interrupted run with these tags, or the one with this id; None if there is none.

    A run that only lacks ranks counts as interrupted, and the code may have changed since. A failed run is resumed
    only if the code is unchanged. Raises `BadSetting` if the code of an interrupted run has changed, or if another
    process works on the run.
    """
    for run in [r for r in _unfinished(store, tags) if run_id in (None, r.info.run_id)]:
        if run.info.status == "RUNNING" and is_active(store, run):
            raise _active_error(run.info.run_id, None if store.folder else seconds_silent(run))
        if is_finished(run) or run.data.tags.get(Tag.CODE) == digest(code):
            return run
        if run_id is not None or run.info.status != "FAILED":
            raise BadSetting(
                f"run {run_label(run)} was interrupted, and code has changed since: "
                f"{_describe_changes(_saved_code_hashes(store, run), code)}. Restore it to resume the run. {FRESH}"
            )
    if run_id is not None:
        raise BadSetting(f"run {run_id[:8]} was started on other data. Restore them, or start a new run.")
    return None


def check_name(store: Store, tags: Mapping[str, str], settings: Mapping[str, str], name: str) -> None:
    """Raise `BadSetting` if a run with this name was interrupted with other settings."""
    for run in _interrupted_namesakes(store, tags, name):
        before, now = (
            {k: v for k, v in values.items() if k.removeprefix("run.") not in NOT_DECISIVE}
            for values in (run.data.params, settings)
        )
        raise BadSetting(
            f"a run named {name} ({run.info.run_id[:8]}) was interrupted with other settings: "
            f"{_describe_changes(before, now) or 'other data'}. Give --resume {run.info.run_id[:8]} to resume it, "
            "another --name, or --fresh to start a new run."
        )


def abandon_matching(store: Store, tags: Mapping[str, str], name: str | None) -> None:
    """Abandon the runs that `find_resumable` would return, or for which `check_name` would raise."""
    abandon(store, (*_unfinished(store, tags), *(_interrupted_namesakes(store, tags, name) if name else ())))


def abandon(store: Store, runs: Iterable[Run]) -> None:
    """End runs for good and remove their checkpoints. Runs that another process works on are left alone."""
    for run in runs:
        workspace = workspace_folder(store, run.info.run_id)
        if is_finished(run):
            remove_workspace(workspace)
            continue
        if (run.info.status == "RUNNING" or workspace.exists()) and is_active(store, run):
            continue
        store.client.set_tag(run.info.run_id, Tag.GIVEN_UP, "true")
        for each in (run, *search_runs(store, {"mlflow.parentRunId": run.info.run_id})):
            if each.info.status == "RUNNING":
                store.client.set_terminated(each.info.run_id, "KILLED")
        remove_workspace(workspace)


def save_code_hashes(workspace: Path, code: Mapping[str, str]) -> None:
    """Save the hashes of all files, so that an error can name those that have changed."""
    write_atomically(workspace / "code.json", json.dumps(code).encode())


def remove_workspace(workspace: Path) -> None:
    """Remove the checkpoints that a finished run no longer needs."""
    shutil.rmtree(workspace, ignore_errors=True)


def _active_error(run_id: str, silent: float | None = None) -> BadSetting:
    wait = "Wait for it."
    if silent is not None:
        wait += f" If that process was killed {silent:.0f} s ago, repeat the command in {GRACE - silent:.0f} s."
    return BadSetting(f"run {run_id[:8]} of this configuration is running in another process. {wait} {FRESH}")


def _unfinished(store: Store, tags: Mapping[str, str]) -> list[Run]:
    """Return unfinished runs of the same experiment and folds, running ones included, the newest first."""
    same = search_runs(store, {k: tags[k] for k in IDENTITY})
    same = [run for run in same if all(run.data.tags.get(k) == tags.get(k) for k in (Tag.ONLY, Tag.KIND))]
    return [run for run in same if not is_ranked(store, run) and Tag.GIVEN_UP not in run.data.tags]


def _interrupted_namesakes(store: Store, tags: Mapping[str, str], name: str) -> list[Run]:
    """Return runs with this name that were interrupted with other settings or on other data."""
    named = search_runs(store, {"mlflow.runName": name})
    other = [run for run in named if any(run.data.tags.get(k) != tags[k] for k in IDENTITY)]
    return [run for run in other if _is_interrupted(store, run)]


def _is_interrupted(store: Store, run: Run) -> bool:
    if run.data.tags.get(Tag.KIND) not in (PARENT, LEAKY) or Tag.GIVEN_UP in run.data.tags:
        return False
    return run.info.status == "KILLED" or (run.info.status == "RUNNING" and not is_active(store, run))


def _saved_code_hashes(store: Store, run: Run) -> dict[str, str]:
    try:
        code: dict[str, str] = json.loads((workspace_folder(store, run.info.run_id) / "code.json").read_text())
        return code
    except (OSError, ValueError):
        return {}


def _describe_changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return 'a 1 -> 2, b 3 -> missing' for the first five differences."""
    changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    shown = [f"{k} {before.get(k, 'missing')} -> {now.get(k, 'missing')}" for k in changed[:5]]
    return ", ".join(shown) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
