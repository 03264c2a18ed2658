"""Rank and compare runs: records in, rows and sentences out."""
