"""Which interrupted run a command goes on with: one of the same configuration, data, folds and code.

While a run is at work it holds a lock in its workspace, a folder beside the store. The lock goes with the process,
however that ends; the checkpoints stay.
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
from bench.files import cache_folder
from bench.tracking import KIND, LEAKY, PARENT, Run, Store, runs_with

IDENTITY = ("bench.fingerprint", "bench.data")


CODE = "bench.code"


GIVEN_UP = "bench.given_up"  # of a run that a fresh one was preferred to


FRESH = "Give --fresh to start anew."


SHOWS = (  # what starts runs, or makes something of finished ones: it may change while one is unfinished
    *("__main__.py", "cli/", "demo/", "launch/", "report/", "search/", "speed/"),
    *("datasets/audit.py", "datasets/describe.py", "datasets/figures.py", "datasets/page.py"),
    *("apply.py", "benchmark.py", "cascade.py", "compar", "conditions.py", "console.py", "derived.py"),
    *("ensemble.py", "environment.py", "exchange.py", "export.py", "gate.py", "inspection.py", "leaderboard.py"),
    *("participants.py", "pictures.py", "power.py", "predict.py", "published.py", "ranking.py", "rescore.py"),
    *("scheduling.py", "suite.py", "tables.py"),
)


def code_of(config: RunConfig, *, besides: str | tuple[str, ...] = ()) -> dict[str, str]:
    """A short hash of every file that a result may depend on besides settings, plugins included.

    `besides` are starts of names among `SHOWS` that this result depends on, too.
    """
    package = Path(bench.__file__).parent
    files = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    files = {n: path for n, path in files.items() if n.startswith(besides) or not n.startswith(SHOWS)}
    files |= {plugin: Path(plugin) for plugin in config.plugins}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:8] for name, path in files.items()}


def digest(code: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:16]


def workspace_of(store: Store, run_id: str) -> Path:
    """The folder in which a run leaves checkpoints: beside a SQLite store, else in the cache of this machine."""
    return (store.folder or cache_folder()) / "unfinished" / run_id


@contextmanager
def run_lock(workspace: Path) -> Iterator[None]:
    """Hold the lock of a run. Raises `BadSetting` when another process has it."""
    workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workspace / "lock")
    try:
        lock.acquire(timeout=0.2, poll_interval=0.02)  # `alive` of another process holds it for a moment
    except Timeout:
        raise _busy(workspace.name) from None
    try:
        yield
    finally:
        lock.release()


def is_active(store: Store, run: Run) -> bool:
    """Whether a process works on a run that is RUNNING: it holds the lock, or may do so on another machine."""
    workspace = workspace_of(store, run.info.run_id)
    if not workspace.exists():
        return store.folder is None
    try:
        with run_lock(workspace):
            return False
    except BadSetting:
        return True


def find_resumable(
    store: Store, own: Mapping[str, str], code: Mapping[str, str], *, run_id: str | None = None
) -> Run | None:
    """The newest interrupted run to go on with, or the one of this id; None where there is none.

    `own` are the tags of the run that is asked for. A run that failed by itself is gone on with only by the code
    that it failed with. Raises `BadSetting` where code has changed under a run that was interrupted, and where
    it is at work.
    """
    for run in [r for r in _broken_off(store, own) if run_id in (None, r.info.run_id)]:
        if run.info.status == "RUNNING" and is_active(store, run):
            raise _busy(run.info.run_id)
        if run.data.tags.get(CODE) == digest(code):
            return run
        if run_id is not None or run.info.status != "FAILED":
            raise BadSetting(
                f"run {run.info.run_name} ({run.info.run_id[:8]}) was interrupted, and code has changed since: "
                f"{_differences(_kept(store, run), code)}. Put it back to go on. {FRESH}"
            )
    if run_id is not None:
        raise BadSetting(f"run {run_id[:8]} was made on other data. Put them back to go on, or start it anew.")
    return None


def check_name(store: Store, own: Mapping[str, str], settings: Mapping[str, str], name: str) -> None:
    """Raise `BadSetting` when a run of this name was interrupted under other settings."""
    for run in _namesakes(store, own, name):
        before, now = (
            {k: v for k, v in given.items() if k.removeprefix("run.") not in NOT_DECISIVE}
            for given in (run.data.params, settings)
        )
        raise BadSetting(
            f"a run named {name} ({run.info.run_id[:8]}) was interrupted under other settings: "
            f"{_differences(before, now) or 'other data'}. Go on by --resume {run.info.run_id[:8]}, give "
            "another --name, or --fresh to start anew."
        )


def abandon_matching(store: Store, own: Mapping[str, str], name: str | None) -> None:
    """End for good the runs that a plain command would go on with, or be refused for."""
    abandon(store, (*_broken_off(store, own), *(_namesakes(store, own, name) if name is not None else ())))


def abandon(store: Store, runs: Iterable[Run]) -> None:
    """End runs for good, and remove their checkpoints. One that is at work in another process is left alone."""
    for run in runs:
        workspace = workspace_of(store, run.info.run_id)
        if (run.info.status == "RUNNING" or workspace.exists()) and is_active(store, run):
            continue
        store.client.set_tag(run.info.run_id, GIVEN_UP, "true")
        for each in (run, *runs_with(store, {"mlflow.parentRunId": run.info.run_id})):
            if each.info.status == "RUNNING":
                store.client.set_terminated(each.info.run_id, "KILLED")
        remove_workspace(workspace)


def save_code_hashes(workspace: Path, code: Mapping[str, str]) -> None:
    """Leave the hashes of all files, so that a difference can be shown."""
    (workspace / "code.json").write_text(json.dumps(code))


def remove_workspace(workspace: Path) -> None:
    """Remove what a finished run no longer needs."""
    shutil.rmtree(workspace, ignore_errors=True)


def _busy(run_id: str) -> BadSetting:
    return BadSetting(
        f"run {run_id[:8]} of this configuration is at work in another process. Wait for it. {FRESH}"
    )


def _broken_off(store: Store, own: Mapping[str, str]) -> list[Run]:
    """Runs of the same experiment and folds that did not get to their end, or have not yet, the newest first."""
    same = runs_with(store, {k: own[k] for k in IDENTITY})
    alike = [run for run in same if all(run.data.tags.get(k) == own.get(k) for k in ("bench.only", KIND))]
    return [run for run in alike if run.info.status != "FINISHED" and GIVEN_UP not in run.data.tags]


def _namesakes(store: Store, own: Mapping[str, str], name: str) -> list[Run]:
    """Runs of this name that were interrupted under other settings, or on other data."""
    named = runs_with(store, {"mlflow.runName": name})
    other = [run for run in named if any(run.data.tags.get(k) != own[k] for k in IDENTITY)]
    return [run for run in other if _interrupted(store, run)]


def _interrupted(store: Store, run: Run) -> bool:
    if run.data.tags.get(KIND) not in (PARENT, LEAKY) or GIVEN_UP in run.data.tags:
        return False
    return run.info.status == "KILLED" or (run.info.status == "RUNNING" and not is_active(store, run))


def _kept(store: Store, run: Run) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((workspace_of(store, run.info.run_id) / "code.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """'a 1 -> 2, b gone' of the first five."""
    changed: Sequence[str] = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    told = [f"{k} {before.get(k, 'missing')} -> {now.get(k, 'missing')}" for k in changed[:5]]
    return ", ".join(told) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
