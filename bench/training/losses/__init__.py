"""Losses: each takes logits and targets (B, 1, H, W) and gives one float32 number."""
