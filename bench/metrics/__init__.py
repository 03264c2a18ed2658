"""Metrics: each scores one case's `Stack`; none averages over cases."""
