"""From a folder on disk to batches on a device."""
