"""Loss functions: each takes logits and targets (B, 1, H, W) and returns one float32 number."""
