"""Averaged weights in records: to tables, each average is an algorithm of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from domainbed.core.names import averaged_algorithm
from domainbed.reporting.stages import Numbered
from domainbed.runs.record_keys import AVERAGES, parse_average_key

Record = dict[str, Any]


def with_averages(records: list[Numbered]) -> list[Numbered]:
    """The records without what was measured of averages, and after them those of each average.

    A record of an average has the keys, and the values, that one of the last weights would have,
    and "ERM + SWAD" for its algorithm. What was measured of no split stays in the first alone.
    """
    measured = [_averages_of(record) for _, record in records]
    names = [name for name in AVERAGES if any(name in found for found in measured)]
    if not names:
        return records
    last = [(line, _of_last(record)) for line, record in records]
    return last + [
        (line, _of_average(record, name, found[name]))
        for name in names
        for (line, record), found in zip(records, measured)
        if name in found
    ]


def _averages_of(record: Any) -> dict[str, Record]:
    """The values of each average in a record, by the keys that the last weights have."""
    found: dict[str, Record] = {}
    keys = tuple(record) if isinstance(record, dict) else ()
    for key, average, of_last in _keys_of_averages(keys):
        found.setdefault(average, {})[of_last] = record[key]
    return found


@lru_cache(maxsize=256)  # most records of a sweep have the same keys
def _keys_of_averages(keys: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Each key that is of an average, with that average, and the key that the last weights have."""
    return [(key, *parsed) for key in keys if (parsed := parse_average_key(key))]


def _of_last(record: Record) -> Record:
    return {key: value for key, value in record.items() if not parse_average_key(key)}


def _of_average(record: Record, average: str, values: Record) -> Record:
    args = record.get("args")
    if isinstance(args, dict) and isinstance(args.get("algorithm"), str):
        args = {**args, "algorithm": averaged_algorithm(args["algorithm"], AVERAGES[average])}
    kept: Record = {key: record[key] for key in ("step", "hparams", "diverged") if key in record}
    return {**kept, "args": args, **values}
