"""Preprocessing: each takes one uint8 slice (H, W, C) and gives another, every channel by itself."""
