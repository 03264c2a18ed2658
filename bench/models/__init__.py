"""Architectures: functions that build an `nn.Module` from (B, C, H, W) images to (B, 1, H, W) logits."""
