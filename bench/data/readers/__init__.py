"""Readers of file formats and folder layouts, shared by datasets, the audit and prediction."""
