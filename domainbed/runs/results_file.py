"""One results.jsonl: from its lines to checked records, and the runs that they are of.

Runs of several stages and averages of the weights are turned into plain runs here, so that
nothing that reads records needs to know of either.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from domainbed.core.names import (
    AVERAGES,
    FULL_DATA,
    averaged_algorithm,
    dataset_label,
    parse_average_key,
    parse_record_key,
    record_key,
    rerun_algorithm,
    trained_algorithm,
)
from domainbed.errors import UserError, log
from domainbed.runs.folder import RunFolder
from domainbed.runs.packed import text_of
from domainbed.runs.records import NOT_RECORDED, PROTOCOL_KEYS, RUN_KEYS

Record = dict[str, Any]
Run = dict[str, Any]  # the columns of `Records.runs` that describe one run
Numbered = tuple[int, Any]  # the line of a record, and its content

_REMEDY = "repair or remove the line"
# An integer of thousands of digits is a ValueError, what is nested too deeply a RecursionError.
_NOT_JSON = (ValueError, RecursionError)


def read_results(path: Path, content: bytes) -> Iterator[tuple[Run, int, dict[str, float]]]:
    """Each record of a results.jsonl: its run, its step, and its numbers by DomainBed's keys.

    All records of a run come with the same object, whose `num_records`, `last_step` and `diverged`
    are right once the file is read. A step that is repeated starts another run. A run of several
    stages has one record, see `merge_stages`; averages of the weights are runs of their own, see
    `split_averages`.

    Raises:
        UserError: a line is damaged, lacks a key or holds an accuracy outside [0, 1]; the folder's
            run.json names another run; or the last line of a finished run is cut off. That of an
            unfinished run is skipped, with a warning.
    """
    run: Run = {}
    steps: set[int] = set()
    for line, record in split_averages(merge_stages(parse_lines(path, content))):
        try:
            described, step = _describe(record, run)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}, line {line}: {_explain(error)}") from error
        if described is not run or step in steps:
            counts = {"last_step": step, "diverged": False, "num_records": 0}
            run, steps = {"folder": str(path.parent), **described, **counts}, set()
            folder = RunFolder(path.parent)
            run["data"] = (folder.read_json(folder.environment) or {}).get("data")
            _check_run_json(folder, run)
        steps.add(step)
        run["last_step"] = max(run["last_step"], step)
        run["diverged"] |= record.get("diverged") is True
        run["num_records"] += 1
        yield (
            run,
            step,
            {k: v for k, v in record.items() if type(v) in (float, int) and k != "step"},
        )


def parse_lines(path: Path, content: bytes) -> list[Numbered]:
    """The lines of a file with their numbers, without a last line that was cut off."""
    *lines, rest = content.split(b"\n")  # a whole line ends with a newline
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    records = []
    is_torn = bool(rest.strip())
    for number, line in numbered:
        try:
            records.append((number, parse_json(line)))
        except _NOT_JSON as error:
            if is_torn or number < numbered[-1][0]:
                raise UserError(f"{path}, line {number}: {_explain(error)}") from error
            is_torn = True
    if is_torn:
        if text_of(path.parent, "done") is not None:
            raise UserError(
                f"{path}: the last line is cut off, but the run is marked done: remove its folder "
                "and do the run again"
            )
        log.warning("warning: %s: the last line is cut off and was skipped (a killed run?)", path)
    return records


def parse_json(line: bytes) -> Any:
    """JSON as Python writes it, with NaN and Infinity, which the faster parser refuses.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    try:
        return orjson.loads(line)
    except ValueError:
        return json.loads(line.decode())


def _explain(error: Exception) -> str:
    if isinstance(error, _NOT_JSON):
        return f"not valid JSON ({error}): {_REMEDY}"
    if isinstance(error, KeyError):
        return f"the record lacks the key {error.args[0]!r}: {_REMEDY}"
    return f"{error}: {_REMEDY}"


# Stages

# Marks the second stage in DomainBed's records, which have no stage number.
_IN_SECOND_STAGE = record_key(0, "in", "accuracy", full_data=True)


def merge_stages(records: list[Numbered]) -> list[Numbered]:
    """The same records, except that runs of several stages have one record each.

    It holds what the last record of each stage does; later stages win. Keys of stages on all images
    lose their `fd_`, so that the out-splits of the first stage validate and the images of the last
    count. Its step is the last step of the run, wherever the stages ended: such runs are compared
    at their ends. A run without a record of its last stage has none. DomainBed merges the records
    of ERM++ in the same way.
    """
    named = [record for _, record in records if isinstance(record, dict)]
    if not any("stage" in record or _IN_SECOND_STAGE in record for record in named):
        return records
    if damaged := [each for each in records if not _is_whole(each[1])]:
        return damaged  # whoever checks records names it
    return [record for run in _runs_of_stages(records) for record in _merge_run(run)]


def _is_whole(record: Any) -> bool:
    return isinstance(record, dict) and "step" in record and isinstance(record.get("args"), dict)


def _stage(record: Record) -> int:
    usual = 2 if _IN_SECOND_STAGE in record else 1
    number = record.get("stage")
    return number if isinstance(number, int) else usual


def _runs_of_stages(records: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """The records run by run: a stage lower than that of the record before starts another run."""
    run: list[Numbered] = []
    for line, record in records:
        if run and _stage(record) < _stage(run[-1][1]):
            yield run
            run = []
        run.append((line, record))
    yield run


def _merge_run(run: list[Numbered]) -> list[Numbered]:
    planned = (record["args"].get("stages") for _, record in run)
    numbers = (stages for stages in planned if isinstance(stages, int))
    stages = max(1, *numbers, *(_stage(record) for _, record in run))
    if stages == 1:
        return run
    if _stage(run[-1][1]) < stages:
        return []
    ends = [list(of_stage)[-1][1] for _, of_stage in groupby(run, lambda n: _stage(n[1]))]
    merged: Record = {}
    for record in ends:
        merged |= {key.removeprefix(FULL_DATA): value for key, value in record.items()}
    merged.pop("stage", None)
    args = merged["args"] = ends[0]["args"]
    if isinstance(args.get("steps"), int):
        merged["step"] = args["steps"] - 1
    return [(run[-1][0], merged)]


# Averages of the weights


def split_averages(records: list[Numbered]) -> list[Numbered]:
    """The records without what was measured of averages, and after them those of each average.

    A record of an average has the keys and the values that one of the last weights would have, and
    the algorithm "ERM + SWAD". What was measured on no split stays in the first record alone.
    """
    keys = [_keys_of_averages(tuple(r) if isinstance(r, dict) else ()) for _, r in records]
    if not any(keys):
        return records
    last = [
        (line, {key: value for key, value in record.items() if not parse_average_key(key)})
        for line, record in records
    ]
    return last + [
        (line, _of_average(record, name, of_record[name]))
        for name in AVERAGES
        for (line, record), of_record in zip(records, keys)
        if name in of_record
    ]


@lru_cache(maxsize=256)  # most records of a sweep have the same keys
def _keys_of_averages(keys: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """By average, its keys, each with the key that the last weights have."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if parsed := parse_average_key(key):
            found.setdefault(parsed[0], {})[key] = parsed[1]
    return found


def _of_average(record: Record, average: str, keys: Mapping[str, str]) -> Record:
    args = record.get("args")
    if isinstance(args, dict) and isinstance(args.get("algorithm"), str):
        args = {**args, "algorithm": averaged_algorithm(args["algorithm"], AVERAGES[average])}
    kept: Record = {key: record[key] for key in ("step", "hparams", "diverged") if key in record}
    return {**kept, "args": args, **{of_last: record[key] for key, of_last in keys.items()}}


# Checks


def _describe(record: Any, previous: Run) -> tuple[Run, int]:
    """The run of a record, `previous` if it is that one, and its step; all of it checked."""
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is not a record (a JSON object)")
    if "tr_outloss" in record:
        raise TypeError("a record of SWAD's trainer (khanrc/swad), which names no hparams seed")
    args, hparams = record.pop("args"), record.pop("hparams", {})  # equal ones are freed, not kept
    step = record["step"]
    if not _is_int(step) or abs(step) >= 2**63:
        raise TypeError(f"step is {step!r}, not an integer of 64 bits")
    is_same = previous and args == previous["args"] and hparams == previous["hparams"]
    run = previous if is_same else describe_run(args, hparams)
    domains = _check_values(record, run)
    if run.get("num_domains") != domains:
        run = {**run, "num_domains": domains}
    return run, step


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# By the keys of a run, what a value has to be, and that in words.
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("dataset", "algorithm"), (lambda name: isinstance(name, str), "a name")),
    **dict.fromkeys(("hparams_seed", "trial_seed"), (_is_int, "an integer")),
    "test_envs": (
        lambda envs: isinstance(envs, list) and all(_is_int(env) and env >= 0 for env in envs),
        "a list of domain numbers",
    ),
}


def describe_run(args: Any, hparams: Any) -> Run:
    """The columns of `Records.runs` that args and hyper-parameters tell.

    Raises:
        TypeError, KeyError: one of them is wrong, or missing.
    """
    if not isinstance(args, dict):
        raise TypeError(f"args is {args!r}, not an object")
    run = {key: args[key] for key in RUN_KEYS}
    for key, (can_be, expected) in _KINDS.items():
        if not can_be(run[key]):
            raise TypeError(f"args.{key} is {run[key]!r}, not {expected}")
    if rerun := args.get("rerun"):
        run["algorithm"] = rerun_algorithm(run["algorithm"], str(rerun))
    return {
        **run,
        "test_envs": tuple(run["test_envs"]),
        "output_dir": args.get("output_dir"),
        "features": features_of(args),
        **{key: str(args.get(key, NOT_RECORDED)) for key in PROTOCOL_KEYS},
        "hparams": hparams,
        "args": args,
    }


def features_of(args: Mapping[str, Any]) -> str:
    """What a run was trained on in place of images: "features of resnet50, 4 views"; or ""."""
    source = args.get("features")
    if not source:
        return ""
    from domainbed.config.run_fields import FeatureSource  # a third of a second

    try:
        return FeatureSource.model_validate(source).describe()
    except ValueError:
        return "features of a kind that this version does not know"


_key = cache(record_key)


def _check_values(record: Record, run: Run) -> int:
    """How many domains a record knows, after checking its accuracies and those of test domains.

    A record without accuracies, of labels other than classes, is checked by another metric.
    """
    metric, accuracies = _metrics_of(tuple(record))
    domains = 0
    while _key(domains, "out", metric) in record:
        domains += 1
    # Records with these `eval_splits` have null where no selection method reads, and other metrics
    # than accuracy have it where they are not defined.
    may_be_null = not accuracies or run["args"].get("eval_splits") in ("selection", "best")
    for env in run["test_envs"]:
        for split in ("in", "out"):
            key = _key(env, split, metric)
            if record[key] is None and not may_be_null:
                raise TypeError(f"{key} is None, not a number")
        if env >= domains:
            raise KeyError(_key(domains, "out", metric))
    for key in accuracies:
        value = record[key]
        if value is not None and not (type(value) in (float, int) and 0 <= value <= 1):
            raise TypeError(f"{key} is {value!r}, not a number in [0, 1]")
    return domains


@lru_cache(maxsize=256)  # most records of a sweep have the same keys
def _metrics_of(keys: tuple[str, ...]) -> tuple[str, list[str]]:
    """The metric that every record of a run has, accuracy if it is one; the keys of accuracies."""
    parsed = {key: found for key in keys if (found := parse_record_key(key))}
    accuracies = [key for key, (_, _, metric) in parsed.items() if metric == "accuracy"]
    others = [metric for _, split, metric in parsed.values() if split == "out"]
    return "accuracy" if accuracies or not others else others[0], accuracies


_AS_COMPARED: Mapping[str, Callable[[Any], Any]] = {
    "dataset": dataset_label,
    "algorithm": trained_algorithm,
    "test_envs": sorted,
}


def _check_run_json(folder: RunFolder, run: Run) -> None:
    """Raises where the folder's run.json names another run than its records do."""
    named = folder.read_json(folder.spec) or {}
    for key in [key for key in RUN_KEYS if key in named]:
        as_compared = _AS_COMPARED.get(key, lambda value: value)
        ours, theirs = as_compared(run[key]), as_compared(named[key])
        if ours != theirs:
            raise UserError(
                f"{folder.results} has records with {key} {ours!r}, but {folder.spec} names "
                f"{theirs!r}: remove the file that is not of this run"
            )
