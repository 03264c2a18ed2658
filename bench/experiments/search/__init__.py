"""`bench search`: Optuna over validation scores of inner folds, which hold no test patients."""

from __future__ import annotations

from bench.experiments.search.command import join_study, search, search_nested
from bench.experiments.search.plan import SearchPlan, make_plan
from bench.experiments.search.space import SearchFile, parse_space_options, read_search_file

__all__ = [
    "SearchFile",
    "SearchPlan",
    "join_study",
    "make_plan",
    "parse_space_options",
    "read_search_file",
    "search",
    "search_nested",
]
