"""Data sets: each finds its slices on disk and says how to read one."""
