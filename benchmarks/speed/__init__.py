"""Speed comparisons of `bench` with what people would otherwise use: `python -m benchmarks.speed`.

Both sides run in one process and take turns, A B A B, so that a busy machine slows both alike. The table shows the
median and the range of the turns, whichever side is faster.
"""
