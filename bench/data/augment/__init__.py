"""Augmentations: each changes a batch of images and masks, drawing from `Draws` alone."""
