"""Loss functions: each takes logits and targets (B, 1, H, W) and returns one float32 number.

For K structures it is the mean over them. One with the fact `activation="softmax"` takes all, (B, K, H, W)."""
