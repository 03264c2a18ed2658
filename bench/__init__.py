"""Honest benchmarks of 2D medical image segmentation, tracked in MLflow."""

__version__ = "0.1.0"
