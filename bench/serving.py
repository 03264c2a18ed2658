"""Loads models that MLflow logged under this name: their `MLmodel` files say `loader_module: bench.serving`."""

from bench.inference.fold_models import FoldModels, _load_pyfunc

__all__ = ["FoldModels", "_load_pyfunc"]
