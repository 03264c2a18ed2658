"""Errors that a user can fix: one sentence each, with a way out.

The command line prints a `BenchError`, or an `OSError` with what it says of the disk, as one line and exits with
code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class BenchError(Exception):
    """Something the user can fix; the message is a sentence that says how."""


class UnknownName(BenchError):
    """A component, run or patient that does not exist."""


class BadSetting(BenchError):
    """A setting that does not exist, or a value outside its range."""


class DataError(BenchError):
    """A folder or file that cannot be used as it is."""


class LeakageError(BenchError):
    """A patient on two sides of a split."""


class TrainingError(BenchError):
    """Training cannot continue: a loss that is not a number, or too little memory."""


class StoreError(BenchError):
    """The tracking store cannot be reached, or does not hold what was requested."""


def did_you_mean(wanted: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'unet'?" if a name is close to the wanted one, otherwise ''."""
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(wanted.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
