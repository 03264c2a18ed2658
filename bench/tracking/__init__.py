"""The tracking store: the only package that knows MLflow."""

import warnings
from importlib import import_module

with warnings.catch_warnings():  # MLflow's progress bars look for the widgets of a notebook, and warn without them
    warnings.filterwarnings("ignore", "IProgress not found")
    import_module("tqdm.auto")

from bench.tracking import databases as databases  # from here on, connections wait for servers that restart
from bench.tracking.outbox import replay as replay
from bench.tracking.reader import Run as Run
from bench.tracking.reader import download_model as download_model
from bench.tracking.reader import download_models as download_models
from bench.tracking.reader import find_folds as find_folds
from bench.tracking.reader import find_parent as find_parent
from bench.tracking.reader import find_run as find_run
from bench.tracking.reader import is_finished as is_finished
from bench.tracking.reader import read_config as read_config
from bench.tracking.reader import read_masks as read_masks
from bench.tracking.reader import read_probabilities as read_probabilities
from bench.tracking.reader import read_records as read_records
from bench.tracking.reader import read_table as read_table
from bench.tracking.reader import run_label as run_label
from bench.tracking.reader import search_runs as search_runs
from bench.tracking.recorder import MlflowRecorder as MlflowRecorder
from bench.tracking.recorder import log_failure as log_failure
from bench.tracking.recorder import log_ranks as log_ranks
from bench.tracking.recorder import open_run as open_run
from bench.tracking.sqlite import sqlite_file as sqlite_file
from bench.tracking.store import Store as Store
from bench.tracking.store import check_reachable as check_reachable
from bench.tracking.store import connect as connect
from bench.tracking.store import connect_to_write as connect_to_write
from bench.tracking.store import store_uri as store_uri
from bench.tracking.store import without_password as without_password
from bench.tracking.tags import EVALUATION as EVALUATION
from bench.tracking.tags import FOLD as FOLD
from bench.tracking.tags import LEAKY as LEAKY
from bench.tracking.tags import PARENT as PARENT
from bench.tracking.tags import Tag as Tag
from bench.tracking.ui import leaderboards as leaderboards
from bench.tracking.ui import ui_command as ui_command
