"""`bench search`: Optuna over validation scores of inner folds; a test score never reaches it."""

from __future__ import annotations

from bench.experiments.search.command import join, nested, search
from bench.experiments.search.space import SpaceFile, parse_space, read_file
from bench.experiments.search.study import SearchPlan, search_plan

__all__ = ["SearchPlan", "SpaceFile", "join", "nested", "parse_space", "search_plan", "read_file", "search"]
