"""The `dataset.json` of nnU-Net and the Decathlon: names of channels and values of structures."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from bench.errors import DataError
from bench.files import read_json
from bench.settings import first_problem


class Description(BaseModel):
    """What dataset.json says, as nnU-Net (`channel_names`) and the Decathlon (`modality`) write it."""

    channel_names: dict[str, str] = {}
    modality: dict[str, str] = {}
    labels: dict[str, int | tuple[int, ...] | str] = {}
    licence: str = Field("", validation_alias=AliasChoices("licence", "license"))


def read_description(root: Path) -> Description:
    """Return the content of dataset.json, if there is one. Raises `DataError`."""
    if not (file := root / "dataset.json").exists():
        return Description()
    content = read_json(file, "the description", "Fix or remove it.")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{file} cannot be read ({first_problem(error)}). Fix or remove it.") from None


def stated_structures(description: Description) -> dict[str, tuple[int, ...]]:
    """Return the values of each structure of dataset.json, without the background. Raises `DataError`.

    nnU-Net writes {"liver": 1} or, for regions, {"tumour": [1, 2]}; the Decathlon {"1": "liver"}.
    """
    values: dict[str, tuple[int, ...]] = {}
    for key, value in description.labels.items():
        name, own = (value, key) if isinstance(value, str) and not value.isdigit() else (key, value)
        if isinstance(own, str) and not own.isdigit():
            raise DataError(f"dataset.json has the label '{key}': '{value}'. Give it a number, as in 'liver': 1.")
        values[str(name)] = own if isinstance(own, tuple) else (int(own),)
    if ignored := [name for name in values if name.lower() == "ignore"]:
        raise DataError(
            f"dataset.json has the label '{ignored[0]}': pixels to leave out of training are not supported. Name "
            "the structures in dataset.structures; the ignored pixels then count as background."
        )
    return {name: own for name, own in values.items() if own != (0,)}


def channel_names(description: Description, count: int) -> tuple[str, ...]:
    """Return the channel names of dataset.json in lower case, or numbered names."""
    stated = description.channel_names or description.modality
    names = tuple(str(stated.get(str(number), "")).lower() for number in range(count))
    if all(names) and len(set(names)) == count:
        return names
    return ("grey",) if count == 1 else tuple(f"channel{number}" for number in range(count))
