"""What the runs of a sweep will take: time, cores or GPUs, and disk.

From finished runs of the sweep where there are any, else from a few updates of each algorithm.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from domainbed.run_fields import RunOptions
from domainbed.run_folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.states import DONE
from domainbed.sweeps.store import Store
from domainbed.sweeps.timing import measure

Group = tuple[str, str]
"""A dataset's label and an algorithm."""

LOOKED_AT = 100
"""Finished runs of each group that are looked at; more would tell hardly more."""

T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """What runs will take.

    Attributes:
        seconds: of all runs, one after the other.
        cores: core seconds of those that are done on CPUs.
        gpus: GPU seconds of the others, each of which has a GPU to itself.
        disk: bytes that they leave.
    """

    seconds: float = 0.0
    cores: float = 0.0
    gpus: float = 0.0
    disk: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.seconds + other.seconds,
            self.cores + other.cores,
            self.gpus + other.gpus,
            self.disk + other.disk,
        )


@dataclass(frozen=True)
class Costs:
    """What runs of a sweep take.

    Attributes:
        of_run: guesses one.
        basis: how many finished runs that rests on; 0 where it was measured on a few updates.
    """

    of_run: Callable[[RunSpec], Estimate]
    basis: int = 0

    def of(self, runs: Iterable[RunSpec]) -> Estimate:
        """Of all of them together."""
        return sum(map(self.of_run, runs), Estimate())


@dataclass(frozen=True)
class _Finished:
    """What a run took: `seconds` a step, on so many `cores` or `gpus`; `disk` in bytes."""

    seconds: float
    cores: float
    gpus: float
    disk: float

    def estimate(self, run: RunSpec) -> Estimate:
        seconds = self.seconds * run.steps
        return Estimate(seconds, seconds * self.cores, seconds * self.gpus, self.disk)


def finished_costs(
    store: Store, runs: Mapping[str, RunSpec], states: Mapping[str, str]
) -> Costs | None:
    """What runs take, from those that are finished; None if none is.

    A step takes as long as it did in finished runs of the same dataset and algorithm; where there
    are none, as long as it did on average. So does a run as much room on disk.
    """
    known: dict[Group, list[_Finished]] = defaultdict(list)
    ids = _by_group((i for i in runs if states[i] == DONE), lambda run_id: runs[run_id])
    for group, of_group in ids.items():
        for run_id in of_group[:: math.ceil(len(of_group) / LOOKED_AT)]:
            if found := _finished(store.folder(run_id), runs[run_id]):
                known[group].append(found)
    everything = [found for group in known.values() for found in group]
    if not everything:
        return None
    means = {group: _mean(found) for group, found in known.items()}
    overall = _mean(everything)
    return Costs(lambda run: means.get(group_of(run), overall).estimate(run), len(everything))


def measured_costs(
    todo: Sequence[RunSpec],
    options: RunOptions,
    threads: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Costs:
    """What the runs `todo` take, from a few updates of each dataset and algorithm among them.

    Args:
        todo: the runs.
        options: where the data lies, what computes and what is kept.
        threads: of PyTorch, as a worker of the sweep has them.
        tell: called with a line before each measurement, which takes seconds.

    Raises:
        UserError: see `timing.measure`.
    """
    timings = {}
    groups = _by_group(todo, lambda run: run)
    for number, (group, of_group) in enumerate(groups.items(), 1):
        tell(f"measuring {group[1]} on {group[0]} ({number} of {len(groups)})")
        timings[group] = measure(of_group[0], options, threads)

    def of_run(run: RunSpec) -> Estimate:
        timing = timings[group_of(run)]
        seconds, on_cpu = timing.seconds([run]), timing.device == "cpu"
        disk = timing.disk(run, options)
        return Estimate(seconds, seconds * threads * on_cpu, seconds * (not on_cpu), disk)

    return Costs(of_run)


def group_of(run: RunSpec) -> Group:
    """The dataset's label and the algorithm."""
    return run.dataset_label, run.algorithm


def _by_group(items: Iterable[T], run_of: Callable[[T], RunSpec]) -> dict[Group, list[T]]:
    groups: dict[Group, list[T]] = defaultdict(list)
    for item in items:
        groups[group_of(run_of(item))].append(item)
    return dict(groups)


def _finished(folder: RunFolder, run: RunSpec) -> _Finished | None:
    """What a finished run took; None where it does not say."""
    facts = folder.read_json(folder.environment) or {}
    seconds = facts.get("seconds")
    if seconds is None:
        return None
    on_cpu = facts.get("device", "cpu") == "cpu"
    return _Finished(
        seconds / run.steps,
        cores=facts.get("threads", 1) * on_cpu,
        gpus=float(not on_cpu),
        disk=sum(_sizes(folder.path)),
    )


def _sizes(folder: Path) -> Iterator[int]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield entry.stat(follow_symlinks=False).st_size


def _mean(found: Sequence[_Finished]) -> _Finished:
    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(found)

    return _Finished(
        mean(each.seconds for each in found),
        mean(each.cores for each in found),
        mean(each.gpus for each in found),
        mean(each.disk for each in found),
    )
