"""The best weights so far in memory, and checkpoints on disk from which an interrupted fold is resumed.

A checkpoint holds everything that the next epoch depends on. It is complete or does not exist, carries its own
checksum, and has a predecessor. Only tensors and plain values are unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.device import out_of_memory
from bench.errors import StoreError
from bench.files import write_atomically
from bench.types import SILENT, Watch


class DamagedState(StoreError):
    """A file that `write_state` has not written as it is now."""


# What building an object from unexpected contents may raise
UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Best:
    """The weights with the highest validation score so far; of equal scores, the first."""

    def __init__(self) -> None:
        self.score = float("-inf")
        self.epoch = 0
        self._weights: dict[str, torch.Tensor] = {}

    def consider(self, model: nn.Module, score: float, epoch: int) -> bool:
        """Keep the model's weights if `score` is the best so far; the first epoch is always kept."""
        if self._weights and (math.isnan(score) or score <= self.score):  # a number beats an earlier NaN
            return False
        self.score, self.epoch = score, epoch
        self._weights = copy.deepcopy(model.state_dict())
        return True

    def restore(self, model: nn.Module) -> None:
        model.load_state_dict(self._weights)

    def state(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "weights": self._weights}

    def load(self, state: Mapping[str, Any]) -> None:
        self.score, self.epoch, self._weights = state["score"], state["epoch"], dict(state["weights"])


class Checkpoints:
    """The last `KEPT` checkpoints of one fold; one is due `every` so many seconds (0: after every epoch)."""

    KEPT = 2

    def __init__(self, folder: Path, every: float, watch: Watch = SILENT) -> None:
        self.folder, self.every, self.watch, self._last = folder, every, watch, time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_state(self.folder / f"epoch-{epoch:06d}.state", state)
        for old in self._all()[self.KEPT :]:
            old.unlink()
        self._last = time.monotonic()

    def undamaged(self) -> Iterator[dict[str, Any]]:
        """Yield the checkpoints, the newest first, and remove those that are damaged.

        The caller takes the first one that fits it. Asking for the next one means that the last one did not.
        """
        for path in self._all():
            try:
                state = read_state(path)
            except DamagedState as error:
                problem = str(error)
            else:
                yield state
                problem = f"the checkpoint {path} is damaged (its contents are not those of this fold)."
            self.watch.say(f"{problem} An older one is used if it exists.")
            path.unlink(missing_ok=True)  # or it would count as one of the newest

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*.state"), reverse=True)


def write_state(path: Path, state: Any) -> None:
    """Write tensors and plain values after their SHA-256; the file is complete or does not exist."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(content).digest() + content)


def read_state(path: Path) -> Any:
    """Read what `write_state` wrote, with tensors on the CPU.

    Raises `DamagedState`, or `StoreError` if the disk or the memory is at fault and the file may be good.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise DamagedState(f"the checkpoint {path} is damaged (its checksum differs).")
        return torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    except (*UNEXPECTED, OSError, EOFError, MemoryError, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) or out_of_memory(error):
            reason = "there is too little memory" if out_of_memory(error) else error
            raise StoreError(
                f"the checkpoint {path} cannot be read: {reason}. It is kept: repeat the command later."
            ) from None
        raise DamagedState(f"the checkpoint {path} is damaged and cannot be read: {error}.") from None
