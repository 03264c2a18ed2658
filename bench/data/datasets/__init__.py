"""Datasets: each function finds the slices of a dataset on disk and returns a `Source` that reads them."""
