"""Logged models on a web page: patients with their truth, and files that are dropped on it."""
