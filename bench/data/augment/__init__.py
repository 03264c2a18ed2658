"""Augmentations: each changes a batch of images and masks, with random numbers only from `SliceRandom`."""
