"""What every setting must be: the base of all settings, and the sentences that refuse a value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

LONGEST_TEXT = 4096  # letters of a setting; the longest path of Linux
LONGEST_NAME = 200  # letters of a run's name; MLflow stores 250, and its parts add theirs
# Line breaks, the commands of a terminal, reversed writing and bytes that are no text.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def check_text(text: str) -> str:
    """Return the text unchanged. Raises `ValueError` if it cannot be shown on one line."""
    if _UNPRINTABLE.search(text) or len(text) > LONGEST_TEXT:
        raise ValueError(f"text must be one printable line of at most {LONGEST_TEXT} letters")
    return text


Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(check_text)]


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, numbers accepted as text.

    No infinities, no `true` where a number belongs, and no text that cannot be shown.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_plain(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, bool) and kinds & {int, float} and not kinds & {bool, Any}:
                raise ValueError(f"{str(part).lower()} is no number")
            if isinstance(part, str):
                check_text(part)
        return value


def refusal(setting: str, error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return the sentence that a setting's value is refused, from an error of pydantic about `model`."""
    reason = error["msg"].removeprefix("Value error, ").rstrip(".")
    value = shorten(repr(error["input"]))
    level: Any = model
    allowed = ""
    for part in error["loc"]:
        if level is None or part not in level.model_fields:
            break
        field = level.model_fields[part]
        allowed = describe_field(field)
        level = next(iter(models_in(field.annotation)), None)
    ranged = f" Allowed: {allowed}." if re.search("[<>]=? ", allowed) else ""
    return f"{setting} = {value} is refused: {reason[:1].lower()}{reason[1:]}.{ranged}"


def first_problem(error: ValidationError) -> str:
    """Return where and why a file is not valid, such as 'labels.liver: Input should be a valid integer'."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole file'}: {first['msg']}"


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models among the types that an annotation is made of."""
    return [kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def shorten(text: str) -> str:
    """Return at most 100 letters of a text, for a message."""
    return text if len(text) <= 100 else f"{text[:97]}..."


def describe_field(field: Any) -> str:
    """Return what a field of pydantic takes, such as 'int, >= 1, <= 4096'."""
    return _describe(field.annotation, field.metadata)


def _describe(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """Return a type in short form, such as 'str | int, >= 0' for a union whose second part has a bound."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [bound for fact in parts[1:] for bound in getattr(fact, "metadata", [fact])]
        return _describe(parts[0], [*inner, *bounds])
    if origin in (Union, UnionType):
        text = " | ".join(map(_describe, parts))
    elif origin is Literal:
        text = " | ".join(map(repr, parts))
    elif annotation is NoneType:
        text = "None"
    elif origin:
        inside = ("..." if part is ... else re.sub(", [<>]=? [^],| ]+", "", _describe(part)) for part in parts)
        text = f"{origin.__name__}[{', '.join(inside)}]"
    else:
        text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return ", ".join((text.replace("typing.", ""), *_limits(bounds)))


def _limits(metadata: Sequence[Any]) -> list[str]:
    """Return Pydantic's bounds in short form, such as '>= 0'."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return [f"{sign} {getattr(b, name)}" for b in metadata for name, sign in signs.items() if hasattr(b, name)]


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types that an annotation is made of."""
    parts = get_args(annotation)
    return set().union(*map(_kinds, parts)) if parts and get_origin(annotation) is not Literal else {annotation}
