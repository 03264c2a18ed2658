"""Select runs by conditions on their facts, such as model=unet or cost/parameters<5e6."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from bench.errors import BadSetting, UnknownName, did_you_mean
from bench.types import RunRecord

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {"!=": ne, "<=": le, ">=": ge, "=": eq, "<": lt, ">": gt}


def filter_records(records: Sequence[RunRecord], where: Sequence[str]) -> list[RunRecord]:
    """Keep the records that meet all conditions: 'key=value' (or !=, <, <=, >, >=). Raises `BenchError`.

    A key is `name`, `id`, or a setting, score, cost or tag of a run; `encoder` is short for model.encoder and
    `flops` for cost/flops.
    """
    kept = list(records)
    for condition in where:
        parsed = re.fullmatch(r"\s*([\w./-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
        if parsed is None:
            examples = "model=unet or cost/parameters<5e6"
            raise BadSetting(f"'{condition}' is not a condition. Write one such as {examples}.")
        key, sign, wanted = parsed.groups()
        if records and all(_lookup(record, key) is None for record in records):
            known = {name for record in records for name in _facts(record)}
            problem = f"no run has '{key}'. Give a score, a cost, or a setting such as model.name."
            raise UnknownName(f"{problem}{did_you_mean(key, known)}")
        kept = [record for record in kept if _holds(_lookup(record, key), sign, wanted)]
    return kept


def _facts(record: RunRecord) -> dict[str, Any]:
    return {"name": record.name, "id": record.run_id, **record.tags, **record.metrics, **record.settings}


def _lookup(record: RunRecord, key: str) -> Any:
    facts = _facts(record)
    names = (key, f"{key}.name", f"cost/{key}", f"run.{key}", f"model.{key}")
    return next((facts[name] for name in names if name in facts), None)


def _holds(value: Any, sign: str, wanted: str) -> bool:
    if value is None:
        return sign == "!="
    try:
        return OPERATORS[sign](float(value), float(wanted))
    except ValueError:
        return OPERATORS[sign](str(value), wanted)
