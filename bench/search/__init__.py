"""`bench search`: Optuna over validation scores of inner folds; a test score never reaches it."""

from bench.search.command import join, nested, search
from bench.search.space import SpaceFile, parse_space, read_file
from bench.search.study import Plan, plan_of

__all__ = ["Plan", "SpaceFile", "join", "nested", "parse_space", "plan_of", "read_file", "search"]
