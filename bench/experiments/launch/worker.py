"""`python -m bench.experiments.launch.worker`: run one work item, pickled on standard input."""

from __future__ import annotations

import pickle
import signal
import sys
from typing import NoReturn


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    pickle.load(sys.stdin.buffer)()


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
