"""What is searched: settings by their dotted names, each with a range or a list of values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from bench.config import NOT_DECISIVE, RunConfig, Settings
from bench.errors import BadSetting, BenchError, did_you_mean
from bench.overrides import parse_assignment, read_yaml

Value = bool | int | float | str | None


When = dict[str, Value | tuple[Value, ...]]


FIXED = ("dataset", "split", "evaluate", "seed", *NOT_DECISIVE)  # they decide what a score means, or nothing


_SHORT = re.compile(r"(\S+?)\.\.(\S+)(?: (log)| step (\S+))?")


class Suggests(Protocol):
    """The part of an Optuna trial that is asked for values."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Range(Settings):
    """Numbers from `low` to `high`, both included; whole ones where both ends are written without a point."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(None, gt=0)
    when: When = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> Range:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log range starts above 0 and has no step")
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if abs(steps - round(steps)) > 1e-9 or (self._whole and not isinstance(self.step, int)):
                raise ValueError("high must be low and a whole number of steps")
        return self

    @property
    def _whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high

    def suggest(self, trial: Suggests, name: str) -> Value:
        if self._whole:
            whole = int(self.low), int(self.high)
            return trial.suggest_int(name, *whole, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def points(self, name: str) -> list[Value]:
        step = self.step or (1 if self._whole else None)
        if step is None:
            raise BadSetting(f"space: a grid needs a list of values, or a step, for {name}.")
        numbers = self.low + step * np.arange(round((self.high - self.low) / step) + 1)
        return [int(n) if self._whole else float(n) for n in numbers]


class Choice(Settings):
    """One of several values."""

    values: tuple[Value, ...] = Field(min_length=1)
    when: When = Field(default_factory=dict)

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values

    def suggest(self, trial: Suggests, name: str) -> Value:
        value: Value = trial.suggest_categorical(name, self.values)
        return value

    def points(self, name: str) -> list[Value]:
        return list(self.values)


@dataclass(frozen=True)
class Space:
    """Settings in the order in which they are drawn; one with a `when` only where earlier ones came out so."""

    parts: Mapping[str, Range | Choice]

    def suggest(self, trial: Suggests) -> dict[str, Value]:
        """One value of each setting that applies."""
        chosen: dict[str, Value] = {}
        for name, part in self.parts.items():
            if _holds(part.when, chosen):
                chosen[name] = part.suggest(trial, name)
        return chosen

    def grid(self, names: Iterable[str] | None = None) -> list[dict[str, Value]]:
        """Every combination (of these settings alone)."""
        points: list[dict[str, Value]] = [{}]
        wanted = self.parts if names is None else set(names)
        for name, part in self.parts.items():
            if name in wanted:
                values = part.points(name)
                points = [
                    q for p in points for q in ([p | {name: v} for v in values] if _holds(part.when, p) else [p])
                ]
        return points

    def check(self, configured: Callable[[Mapping[str, Value]], RunConfig]) -> None:
        """Try the ends of every range and all choices, with every component they may meet. Raises `BadSetting`.

        `configured` makes of chosen values the settings of a trial.
        """
        for name, part in self.parts.items():
            if name.partition(".")[0] in FIXED:
                raise BadSetting(
                    f"space: {name} cannot be searched, for it does not belong to how a model is trained. "
                    "Set it under 'base'."
                )
            earlier = list(self.parts)[: list(self.parts).index(name)]
            for other in part.when:
                if other not in earlier or not isinstance(self.parts[other], Choice):
                    raise BadSetting(
                        f"space: {name} depends on '{other}', which is no list of values above it."
                        f"{did_you_mean(other, earlier)}"
                    )
            for context in self.grid(self._meets(name)):
                if not _holds(part.when, context):
                    continue
                for value in part.ends:
                    try:
                        configured(context | {name: value}).completed()
                    except BenchError as error:
                        met = ", ".join(f"{k}: {v}" for k, v in context.items())
                        hint = f" (with {met}; a 'when' says to which it belongs)" if met else ""
                        raise BadSetting(f"space: {name}: {error}{hint}") from None

    def _meets(self, name: str) -> set[str]:
        """The choices that decide whether `name` exists."""
        found: set[str] = set()
        for other, part in self.parts.items():
            owns = name.startswith(f"{other.removesuffix('.name')}.") and other != name
            if isinstance(part, Choice) and (owns or other in self.parts[name].when):
                found |= {other} | self._meets(other)
        return found


class SpaceFile(Settings):
    """A search file, as it is written."""

    base: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)


def read_file(path: Path) -> SpaceFile:
    """A search file: `base` settings and the `space`. Raises `BenchError`."""
    try:
        return SpaceFile.model_validate(read_yaml(path, "search"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSetting(f"{path}: {where}: a search file holds 'base' and 'space', two mappings.") from None


def parse_space(lines: Iterable[str]) -> dict[str, Any]:
    """`train.lr=1e-4..1e-2 log`, `loss=[dice, bce_dice]`, as a search file would have them."""
    return dict(parse_assignment(line) for line in lines)


def read_space(given: Mapping[str, Any]) -> Space:
    """A space of plain values. Raises `BadSetting` for a part that is neither a range nor a list of values."""
    if not given:
        raise BadSetting("nothing to search. Give --space train.lr='1e-4..1e-2 log', or a file with a 'space'.")
    return Space({name: _part(name, value) for name, value in given.items()})


def _part(name: str, value: Any) -> Range | Choice:
    if isinstance(value, str) and (short := _SHORT.fullmatch(value)):
        low, high, log, step = (parse_assignment(f"_={part}")[1] if part else None for part in short.groups())
        value = {"low": low, "high": high, "log": log is not None, "step": step}
    elif isinstance(value, list):
        value = {"values": value}
    kind: type[Range] | type[Choice] = Range if isinstance(value, dict) and "low" in value else Choice
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        raise BadSetting(
            f"space: {name} = {value} is refused: {said[:1].lower()}{said[1:]}. Write a list of values, or a "
            "range: '1e-4..1e-2 log', '4..32 step 4', {low: 0.0, high: 0.5}."
        ) from None


def _holds(when: Mapping[str, Value | tuple[Value, ...]], chosen: Mapping[str, Value]) -> bool:
    return all(
        name in chosen and chosen[name] in (wanted if isinstance(wanted, tuple) else (wanted,))
        for name, wanted in when.items()
    )
