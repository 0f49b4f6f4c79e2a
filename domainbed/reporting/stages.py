"""Runs of several stages: their records become one, before anything else is read of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from domainbed.runs.record_keys import FULL_DATA, record_key

_OF_DOMAINBED = record_key(0, "in", "accuracy", full_data=True)
"""Tells the second stage in DomainBed's records, which measures all domains and has no number."""

Record = dict[str, Any]

Numbered = tuple[int, Any]
"""The line of a record, and its content."""


def merged(records: list[Numbered]) -> list[Numbered]:
    """The same records, but for those of runs of several stages: each such run has one.

    It holds what the last record of each stage does, later stages winning. Keys of stages on all
    images lose their `fd_`, so that the out-splits of the first stage validate and the images of
    the last count. Its step is the last one of the run, wherever the stages ended: such runs are
    compared at their ends. A run without a record of its last stage has none. DomainBed merges
    the records of ERM++ alike.
    """
    if not any(_may_have_stages(record) for _, record in records):
        return records
    if damaged := [each for each in records if not _is_whole(each[1])]:
        return damaged  # for whoever checks records to name it
    return [one for run in _runs(records) for one in _of_run(run)]


def _may_have_stages(record: Any) -> bool:
    return isinstance(record, dict) and ("stage" in record or _OF_DOMAINBED in record)


def _is_whole(record: Any) -> bool:
    return isinstance(record, dict) and "step" in record and isinstance(record.get("args"), dict)


def _stage(record: Record) -> int:
    """The number of a record's stage."""
    number = record.get("stage")
    if isinstance(number, int):
        return number
    return 2 if _OF_DOMAINBED in record else 1


def _stages(record: Record) -> int:
    """How many stages the run of a record has, where it says so."""
    stages = record["args"].get("stages")
    return stages if isinstance(stages, int) else 1


def _runs(records: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """The records run by run: a stage before that of the record before begins another."""
    run: list[Numbered] = []
    for line, record in records:
        if run and _stage(record) < _stage(run[-1][1]):
            yield run
            run = []
        run.append((line, record))
    if run:
        yield run


def _of_run(run: list[Numbered]) -> list[Numbered]:
    stages = max(max(_stage(record), _stages(record)) for _, record in run)
    if stages == 1:
        return run
    last = [list(of_stage)[-1] for _, of_stage in groupby(run, key=lambda each: _stage(each[1]))]
    if _stage(last[-1][1]) < stages:
        return []
    whole: Record = {}
    for _, record in last:
        whole.update({key.removeprefix(FULL_DATA): value for key, value in record.items()})
    whole.pop("stage", None)
    args = last[0][1]["args"]
    if isinstance(args.get("steps"), int):
        whole["step"] = args["steps"] - 1
    return [(last[-1][0], {**whole, "args": args})]
