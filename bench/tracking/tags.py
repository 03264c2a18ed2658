"""The names of a run's tags, and what they say about a run."""

from __future__ import annotations

from collections.abc import Mapping

from bench.data.pack import Manifest


class Tag:
    """Names of tags. Every store holds them, so they never change; README.md describes each."""

    # Which runs may be compared
    TASK = "bench.task"  # segmentation or presence
    DATASET = "bench.dataset"
    DATA = "bench.data"  # key of the pack
    SPLIT = "bench.split"  # hash of the folds
    CONVENTION = "bench.convention"  # version of the metrics' definitions
    SYNTHETIC = "bench.synthetic"  # true or false
    LICENCE = "bench.licence"  # of the data
    POST_HOC = "bench.post_hoc"  # what was chosen after test scores were seen

    # What the run is
    KIND = "bench.kind"  # one of the kinds below
    FINGERPRINT = "bench.fingerprint"  # hash of the settings that decide the result
    FOLD = "bench.fold"  # number of a fold run
    ONLY = "bench.only"  # the only fold that the run trains

    # Runs that were made from other runs, or came from another store
    DERIVED = "bench.derived"  # rescore, ensemble or cascade
    SOURCE = "bench.source"  # id of the trained run with the same data and folds
    GUEST = "bench.guest"  # what another tool predicted and was scored: masks or probabilities
    RESCORED = "bench.rescored"  # id of the run that was rescored
    IMPORTED = "bench.imported"  # id in the store that the run was imported from

    # How the run ended, and whether it can be resumed
    KEY = "bench.key"  # random; runs with the same key were created by one request
    HEARTBEAT = "bench.heartbeat"  # when a process last worked on the run, and on which machine
    CODE = "bench.code"  # hash of the code that the result depends on
    ERROR = "bench.error"
    GIVEN_UP = "bench.given_up"  # true: --fresh replaced the run

    # Cells of a suite
    SUITE = "bench.suite"
    ENTRY = "bench.entry"
    BUDGET = "bench.budget"

    # Searches and their trials
    STUDY = "bench.study"
    STUDY_KEY = "bench.study_key"
    TRIALS = "bench.trials"  # how many, by state
    BEST_TRIAL = "bench.best_trial"
    TRIAL = "bench.trial"  # number of a trial run
    STATE = "bench.state"  # of a trial

    # Prefixes, and the names among them that the code reads
    BENCH = "bench."
    ENVIRONMENT = "env."  # versions, machine and commit
    BENCH_VERSION = "env.bench"
    TORCH_VERSION = "env.torch"
    DEVICE = "env.device"
    PLATFORM = "env.platform"
    PLAN = "plan."  # how training was executed


PARENT, FOLD, EVALUATION = "cv", "fold", "evaluation"  # kinds of runs
LEAKY = "leaky"  # kind of a parent run with a split that leaks: it is never ranked
SHARED = (Tag.DATA, Tag.SPLIT, Tag.CONVENTION)  # tags that comparable runs have in common
CONVENTION = "1"  # raise it when a metric changes its meaning: older runs then stand on another board


def data_tags(manifest: Manifest) -> dict[str, str]:
    """Return the tags that describe the data of a run."""
    return {
        Tag.DATASET: manifest.dataset,
        Tag.DATA: manifest.key,
        Tag.CONVENTION: CONVENTION,
        Tag.SYNTHETIC: str(manifest.synthetic).lower(),
        Tag.LICENCE: manifest.licence,
    }


def is_derived(tags: Mapping[str, str], settings: Mapping[str, str]) -> bool:
    """Return whether a run was made from other runs instead of being trained, here or by another tool.

    Earlier versions did not tag such runs, but they never had a number of epochs.
    """
    return Tag.DERIVED in tags or ("train.epochs" not in settings and Tag.GUEST not in tags)


def scored_by_slice(tags: Mapping[str, str]) -> bool:
    """Return whether a run is scored over all slices (presence) instead of patient by patient."""
    return tags.get(Tag.TASK) == "presence"


def task_name(tags: Mapping[str, str]) -> str:
    """Return the task of a run; the first versions knew only segmentation and did not tag it."""
    return tags.get(Tag.TASK, "segmentation")
