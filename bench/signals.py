"""Ending a process by a signal. Without heavy imports, so that `bench --help` is quick."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does. Under `nohup`, SIGHUP stays ignored."""
    terminals = [file for file in (1, 2) if os.isatty(file)]

    def interrupt(number: int, frame: object) -> NoReturn:
        if number == signal.SIGHUP:  # the terminal is gone, and writing to it would raise another error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for file in terminals:
                os.dup2(nowhere, file)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a shell sends it once more
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
