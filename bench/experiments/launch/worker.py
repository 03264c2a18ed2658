"""`python -m bench.experiments.launch.worker`: one task, read from standard input, in a process of its own."""

from __future__ import annotations

import pickle
import signal
import sys
from typing import NoReturn


def main() -> None:
    signal.signal(signal.SIGTERM, _as_interrupt)
    pickle.load(sys.stdin.buffer)()


def _as_interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
