"""Preprocessing steps: each turns one uint8 slice (H, W, C) into another, one channel at a time."""
