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

from domainbed.config.run_fields import RunOptions
from domainbed.runs.folder import RunFolder
from domainbed.runs.states import DONE
from domainbed.spec import RunSpec
from domainbed.sweeps.store import PlannedRun, Store, planned_run
from domainbed.sweeps.timing import measure

Group = tuple[str, str]
"""A dataset's label and an algorithm."""

LOOKED_AT = 20
"""Finished runs of each group that are looked at; more would tell hardly more."""


@dataclass(frozen=True)
class Estimate:
    """What runs will take.

    Attributes:
        seconds: of all runs, one after the other.
        cores: core seconds of those that are done on CPUs.
        gpus: seconds of the others, each of which has a GPU, or a share of one.
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

    def estimate(self, steps: float) -> Estimate:
        seconds = self.seconds * steps
        return Estimate(seconds, seconds * self.cores, seconds * self.gpus, self.disk)


@dataclass(frozen=True)
class Rates:
    """What finished runs took.

    Attributes:
        means: per step of the runs of a dataset and algorithm.
        overall: of all runs.
        basis: how many finished runs were looked at.
    """

    means: Mapping[Group, _Finished]
    overall: _Finished
    basis: int

    def of(self, group: Group, steps: float) -> Estimate:
        """What so many steps take; where no run of the group is finished, on average."""
        mean = self.means.get(group, self.overall)
        return mean.estimate(steps)


def finished_rates(
    store: Store, runs: Mapping[str, PlannedRun], done: Iterable[str]
) -> Rates | None:
    """What those of the `runs` took that are `done`, given by their ids; None if none tells."""
    known: dict[Group, list[_Finished]] = defaultdict(list)
    ids: dict[Group, list[str]] = defaultdict(list)
    for run_id in done:
        ids[runs[run_id]["dataset"], runs[run_id]["algorithm"]].append(run_id)
    for group, of_group in ids.items():
        for run_id in of_group[:: math.ceil(len(of_group) / LOOKED_AT)]:
            if found := _finished(store.folder(run_id), runs[run_id]["steps"]):
                known[group].append(found)
    everything = [found for group in known.values() for found in group]
    if not everything:
        return None
    means = {group: _mean(found) for group, found in known.items()}
    return Rates(means, _mean(everything), len(everything))


def finished_costs(
    store: Store, runs: Mapping[str, RunSpec], states: Mapping[str, str]
) -> Costs | None:
    """What runs take, from those that are finished; None if none is.

    A step takes as long as it did in finished runs of the same dataset and algorithm; where there
    are none, as long as it did on average. So does a run as much room on disk.
    """
    done = {i: planned_run(run) for i, run in runs.items() if states[i] == DONE}
    rates = finished_rates(store, done, done)
    if rates is None:
        return None
    return Costs(lambda run: rates.of(group_of(run), run.steps), rates.basis)


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
    groups: dict[Group, list[RunSpec]] = defaultdict(list)
    for run in todo:
        groups[group_of(run)].append(run)
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


def _finished(folder: RunFolder, steps: int) -> _Finished | None:
    """What a finished run took; None where it does not say."""
    facts = folder.read_json(folder.environment) or {}
    seconds = facts.get("seconds")
    if seconds is None:
        return None
    on_cpu = facts.get("device", "cpu") == "cpu"
    return _Finished(
        seconds / steps,
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
