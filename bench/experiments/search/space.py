"""The search space: settings by their dotted names, each with a range or a list of values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from bench.config import NOT_DECISIVE, RunConfig
from bench.errors import BadSetting, BenchError, UnknownName, did_you_mean
from bench.overrides import check_data_folder, configure, parse_assignment, read_yaml
from bench.settings import Settings

if TYPE_CHECKING:  # slow: a refused file answers without Optuna
    from optuna.trial import BaseTrial

Value = bool | int | float | str | None
When = dict[str, Value | tuple[Value, ...]]
FIXED = ("dataset", "split", "evaluate", "seed", *NOT_DECISIVE)  # they decide what a score means, or nothing
LARGEST = 100_000  # points of a grid
_SHORT = re.compile(r"(\S+?)\.\.(\S+)(?: (log)| step (\S+))?")


class Range(Settings):
    """Numbers from `low` to `high`, both included; integers if both are written without a decimal point."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(None, gt=0)
    when: When = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Range:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log range must start above 0 and has no step")
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if not steps < LARGEST:
                raise ValueError(f"it has over {LARGEST} steps")
            if abs(steps - round(steps)) > 1e-9 or (self._is_integer and not isinstance(self.step, int)):
                raise ValueError("high must be low plus a whole number of steps")
        return self

    @property
    def _is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        if self._is_integer:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def grid_values(self, name: str) -> list[Value]:
        step = self.step or (1 if self._is_integer and self.high - self.low < LARGEST else None)
        if step is None:
            raise BadSetting(f"space: a grid needs a list of values, or a step, for {name}.")
        numbers = self.low + step * np.arange(round((self.high - self.low) / step) + 1)
        return [int(n) if self._is_integer else float(n) for n in numbers]


class Choice(Settings):
    """One of several values."""

    values: tuple[Value, ...] = Field(min_length=1)
    when: When = Field(default_factory=dict)

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        value: Value = trial.suggest_categorical(name, self.values)
        return value

    def grid_values(self, name: str) -> list[Value]:
        return list(self.values)


@dataclass(frozen=True)
class Space:
    """The searched settings, in the order in which they are drawn.

    A setting with `when` is drawn only if earlier ones have the values that it names.
    """

    dimensions: Mapping[str, Range | Choice]

    def suggest(self, trial: BaseTrial) -> dict[str, Value]:
        """Draw one value of each setting that applies."""
        chosen: dict[str, Value] = {}
        for name, dimension in self.dimensions.items():
            if _applies(dimension.when, chosen):
                chosen[name] = dimension.suggest(trial, name)
        return chosen

    def grid(self, names: Iterable[str] | None = None) -> list[dict[str, Value]]:
        """Return every combination of all settings, or of these `names` alone."""
        points: list[dict[str, Value]] = [{}]
        wanted = self.dimensions if names is None else set(names)
        for name, dimension in self.dimensions.items():
            if name in wanted:
                values = [{name: value} for value in dimension.grid_values(name)]
                if len(points) * len(values) > LARGEST:
                    raise BadSetting(f"space: with {name}, the grid has over {LARGEST} points. Give fewer values.")
                points = [p | one for p in points for one in (values if _applies(dimension.when, p) else [{}])]
        return points

    def check(self, configure: Callable[[Mapping[str, Value]], RunConfig]) -> None:
        """Try the ends of every range and all choices with every component they may meet. Raises `BadSetting`.

        `configure` returns the settings of a trial with the chosen values.
        """
        for name, dimension in self.dimensions.items():
            self._check_name(name)
            for context in self.grid(self._choices_above(name)):
                if not _applies(dimension.when, context):
                    continue
                for value in dimension.ends:
                    try:
                        configure(context | {name: value}).completed()
                    except BenchError as error:
                        others = ", ".join(f"{k}: {v}" for k, v in context.items())
                        hint = f" (with {others}; add a 'when' to say where it applies)" if others else ""
                        raise BadSetting(f"space: {name}: {error}{hint}") from None

    def _check_name(self, name: str) -> None:
        """Raise `BadSetting` if a setting cannot be searched, or depends on what is not a choice above it."""
        if name.partition(".")[0] in FIXED:
            raise BadSetting(
                f"space: {name} cannot be searched, because it does not belong to how a model is trained. "
                "Set it under 'base'."
            )
        above = list(self.dimensions)[: list(self.dimensions).index(name)]
        for other in self.dimensions[name].when:
            if other not in above or not isinstance(self.dimensions[other], Choice):
                raise BadSetting(
                    f"space: {name} depends on '{other}', which is not a list of values above it."
                    f"{did_you_mean(other, above)}"
                )

    def _choices_above(self, name: str) -> set[str]:
        """Return the choices that decide whether the setting exists."""
        choices: set[str] = set()
        for other, dimension in self.dimensions.items():
            owns = name.startswith(f"{other.removesuffix('.name')}.") and other != name
            if isinstance(dimension, Choice) and (owns or other in self.dimensions[name].when):
                choices |= {other} | self._choices_above(other)
        return choices


class SearchFile(Settings):
    """The content of a search file."""

    base: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)


def read_search_file(path: Path) -> SearchFile:
    """Read a search file: `base` settings and the `space`. Raises `BenchError`."""
    try:
        return SearchFile.model_validate(read_yaml(path, "search"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadSetting(f"{path}: {where}: a search file holds two mappings, 'base' and 'space'.") from None


def parse_space_options(options: Iterable[str]) -> dict[str, Any]:
    """Return `train.lr=1e-4..1e-2 log`, `loss=[dice, bce_dice]` as the space of a search file."""
    return dict(parse_assignment(option) for option in options)


def check_search(path: Path | None, base: Sequence[Mapping[str, Any]], space: Mapping[str, Any]) -> None:
    """Raise `BenchError`, which names the search file if there is one, for wrong settings in layers or a space."""
    try:
        check_data_folder(configure(*base))
        build_space(space).check(lambda chosen: configure(*base, chosen))
    except (BadSetting, UnknownName) as error:
        raise type(error)(f"{path}: {error}" if path else str(error)) from None


def build_space(values: Mapping[str, Any]) -> Space:
    """Return the space of plain values. Raises `BadSetting` for what is neither a range nor a list of values."""
    if not values:
        raise BadSetting("nothing to search. Give --space train.lr='1e-4..1e-2 log', or a file with a 'space'.")
    return Space({name: _parse_dimension(name, value) for name, value in values.items()})


def _parse_dimension(name: str, value: Any) -> Range | Choice:
    if isinstance(value, str) and (short := _SHORT.fullmatch(value)):
        low, high, log, step = (parse_assignment(f"_={text}")[1] if text else None for text in short.groups())
        value = {"low": low, "high": high, "log": log is not None, "step": step}
    elif isinstance(value, list):
        value = {"values": value}
    kind: type[Range] | type[Choice] = Range if isinstance(value, dict) and "low" in value else Choice
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadSetting(
            f"space: {name} = {value} is not valid: {reason[:1].lower()}{reason[1:]}. Write a list of values, or "
            "a range: '1e-4..1e-2 log', '4..32 step 4', {low: 0.0, high: 0.5}."
        ) from None


def _applies(when: When, chosen: Mapping[str, Value]) -> bool:
    """Return whether earlier settings have the values that `when` names."""
    return all(
        name in chosen and chosen[name] in (wanted if isinstance(wanted, tuple) else (wanted,))
        for name, wanted in when.items()
    )
