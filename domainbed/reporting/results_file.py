"""One results.jsonl: its records, each checked, and the runs that they are of."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from domainbed.core.names import dataset_label, rerun_algorithm, trained_algorithm
from domainbed.errors import UserError
from domainbed.reporting.averages import with_averages
from domainbed.reporting.protocols import features_of
from domainbed.reporting.stages import merged
from domainbed.runs.record_keys import record_key
from domainbed.runs.records import NOT_RECORDED, PROTOCOL_KEYS, RUN_KEYS

log = logging.getLogger(__name__)

REMEDY = "repair or remove the line"

# A number of thousands of digits is a ValueError; what is nested too deeply, the other.
_NOT_JSON = (ValueError, RecursionError)


def read_file(path: Path) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Each record of a results.jsonl: its line, its run and its numbers by DomainBed's keys.

    A run has the columns of `Records.runs` that one record can tell, and is one object for all
    its records. A step that is there again begins another run. One of several stages has one
    record, see `stages.merged`. Averaged weights make a run of their own, see `with_averages`.

    Raises:
        UserError: a line is damaged or lacks a key; the folder's run.json names another run; the
            last line of a finished run is cut off. That of an unfinished one is skipped, with a
            warning.
    """
    run: dict[str, Any] = {}
    steps: set[int] = set()
    for line, record in with_averages(merged(_parse(path))):
        try:
            facts, step = _run_of(record, run)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}, line {line}: {_explain(error)}") from error
        if facts is not run or step in steps:
            run, steps = {"folder": str(path.parent), **facts}, set()
            _check_name(path, run)
        steps.add(step)
        yield line, run, record


def _parse(path: Path) -> list[tuple[int, Any]]:
    """The line numbers and records of a file, but for a last line that was cut off."""
    *lines, rest = path.read_bytes().split(b"\n")  # a whole line ends with a newline
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    records = []
    is_torn = bool(rest.strip())
    for number, line in numbered:
        try:
            records.append((number, decoded(line)))
        except _NOT_JSON as error:
            if is_torn or number < numbered[-1][0]:
                raise UserError(f"{path}, line {number}: {_explain(error)}") from error
            is_torn = True
    if is_torn:
        if path.with_name("done").exists():
            raise UserError(
                f"{path}: the last line is cut off, but the run is marked done: remove its folder "
                "and do the run again"
            )
        log.warning("warning: %s: the last line is cut off and was skipped (a killed run?)", path)
    return records


def decoded(line: bytes) -> Any:
    """JSON as Python writes it: NaN and Infinity are not JSON to the quicker reader.

    Raises:
        ValueError, RecursionError: it is none.
    """
    try:
        return orjson.loads(line)
    except ValueError:
        return json.loads(line.decode())


def _explain(error: Exception) -> str:
    if isinstance(error, _NOT_JSON):
        return f"not valid JSON ({error}): {REMEDY}"
    if isinstance(error, KeyError):
        return f"the record lacks the key {error.args[0]!r}: {REMEDY}"
    return f"{error}: {REMEDY}"


def _run_of(record: Any, previous: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The run that a record is of, `previous` if it is that one, and its step; all checked."""
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is not a record (a JSON object)")
    args, hparams = record.pop("args"), record.pop("hparams", {})  # equal ones are freed, not kept
    step = record["step"]
    if not _is_int(step) or abs(step) >= 2**63:
        raise TypeError(f"step is {step!r}, not an integer of 64 bits")
    is_same = previous and args == previous["args"] and hparams == previous["hparams"]
    test_envs = previous["test_envs"] if is_same else _run(args)["test_envs"]
    domains = _count_domains(record, test_envs, args.get("eval_splits") in _LEAVING_OUT)
    if is_same and previous["num_domains"] == domains:
        return previous, step
    return run_facts(args, hparams, domains), step


def run_facts(args: Any, hparams: Any, num_domains: int) -> dict[str, Any]:
    """The columns of `Records.runs` that one record tells.

    Raises:
        TypeError, KeyError: something is wrong with them, or missing.
    """
    return {**_run(args), "hparams": hparams, "args": args, "num_domains": num_domains}


def _run(args: Any) -> dict[str, Any]:
    """The columns of a run that its args tell."""
    if not isinstance(args, dict):
        raise TypeError(f"args is {args!r}, not an object")
    run = {key: args[key] for key in RUN_KEYS}
    for key in ("dataset", "algorithm"):
        if not isinstance(run[key], str):
            raise TypeError(f"args.{key} is {run[key]!r}, not a name")
    for key in ("hparams_seed", "trial_seed"):
        if not _is_int(run[key]):
            raise TypeError(f"args.{key} is {run[key]!r}, not an integer")
    envs = run["test_envs"]
    if not isinstance(envs, list) or not all(_is_int(env) and env >= 0 for env in envs):
        raise TypeError(f"args.test_envs is {envs!r}, not a list of domain numbers")
    if rerun := args.get("rerun"):
        run["algorithm"] = rerun_algorithm(run["algorithm"], str(rerun))
    others = {
        "test_envs": tuple(envs),
        "output_dir": args.get("output_dir"),
        "features": features_of(args),
    }
    return {**run, **others, **{key: str(args.get(key, NOT_RECORDED)) for key in PROTOCOL_KEYS}}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_accuracy_key = cache(lambda domain, split: record_key(domain, split, "accuracy"))


_LEAVING_OUT = ("selection", "best")
"""The `eval_splits` of records that have null where no selection method reads."""


def _count_domains(record: dict[str, Any], test_envs: tuple[int, ...], leaves_out: bool) -> int:
    """How many domains a record knows, after checking that it knows the test domains."""
    domains = 0
    while _accuracy_key(domains, "out") in record:
        domains += 1
    for env in test_envs:
        for split in ("in", "out"):
            key = _accuracy_key(env, split)
            if record[key] is None and not leaves_out:
                raise TypeError(f"{key} is None, not a number")
        if env >= domains:
            raise KeyError(_accuracy_key(domains, "out"))
    return domains


def _check_name(path: Path, run: dict[str, Any]) -> None:
    """Raises where the folder's run.json names another run than the records of `path` do."""
    spec = path.with_name("run.json")
    try:
        named = dict(json.loads(spec.read_bytes())) if spec.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{spec} is damaged ({error}): repair or remove it") from error
    for key in [key for key in RUN_KEYS if key in named]:
        ours, theirs = _comparable(key, run[key]), _comparable(key, named[key])
        if ours != theirs:
            raise UserError(
                f"{path} has records with {key} {ours!r}, but {spec} names "
                f"{theirs!r}: remove the file that is not of this run"
            )


def _comparable(key: str, value: Any) -> Any:
    if key == "dataset":
        return dataset_label(value)
    if key == "algorithm":
        return trained_algorithm(value)
    return sorted(value) if key == "test_envs" else value
