"""Open a run in the store for this process alone, new or resumed, with its environment and data logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.console import Display
from bench.environment import environment_tags
from bench.tracking import MlflowRecorder, Run, Store, open_run
from bench.tracking.resume import run_lock, workspace_folder
from bench.training.experiment import Experiment


@contextmanager
def tracked_run(
    store: Store, title: str, experiment: Experiment, tags: Mapping[str, str], display: Display, resume: Run | None
) -> Iterator[tuple[MlflowRecorder, Path]]:
    """Yield the recorder of the run and its workspace, a folder for checkpoints.

    Raises `BadSetting` if another process has the run. The lock is held until the store knows how the run ended.
    """
    manifest = experiment.pack.manifest
    with ExitStack() as lock, ExitStack() as stack:
        if resume is not None:  # locked before it is opened, as another process may want to resume it too
            lock.enter_context(run_lock(workspace_folder(store, resume.info.run_id)))
        recorder = stack.enter_context(
            open_run(store, title, manifest.dataset, tags, say=display.say, resume=resume)
        )
        workspace = workspace_folder(store, recorder.run_id)
        if resume is None:
            lock.enter_context(run_lock(workspace))
        recorder.tags(environment_tags(experiment.device))
        recorder.data(manifest.dataset, manifest.key, experiment.pack.profile())
        yield recorder, workspace
