"""What runs take, as finished runs of the sweep tell: time, cores or GPUs, and disk."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from domainbed.runs.folder import RunFolder
from domainbed.sweeps.store import PlannedRun, Store

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
    """What the runs of a sweep take.

    Attributes:
        of_run: the estimate of each run, by its id.
        basis: how many finished runs they rest on; 0 where they were measured on a few updates.
    """

    of_run: Mapping[str, Estimate]
    basis: int = 0

    def of(self, run_ids: Iterable[str]) -> Estimate:
        """Of these runs together."""
        return sum((self.of_run[run_id] for run_id in run_ids), Estimate())


def finished_costs(
    store: Store, runs: Mapping[str, PlannedRun], done: Iterable[str]
) -> Costs | None:
    """What each of the `runs` takes, from those that are `done`; None if none of these tells.

    A step takes as long as it did in finished runs of the same dataset and algorithm; where there
    are none, as long as it did on average. So does a run as much room on disk.
    """
    ids: dict[Group, list[str]] = defaultdict(list)
    for run_id in done:
        ids[_group(runs[run_id])].append(run_id)
    found: dict[Group, list[list[float]]] = defaultdict(list)
    for group, of_group in ids.items():
        for run_id in of_group[:: math.ceil(len(of_group) / LOOKED_AT)]:
            found[group] += _taken(store.folder(run_id), runs[run_id]["steps"])
    everything = [taken for of_group in found.values() for taken in of_group]
    if not everything:
        return None
    means = {group: np.mean(taken, axis=0).tolist() for group, taken in found.items() if taken}
    overall = np.mean(everything, axis=0).tolist()

    def estimate(run: PlannedRun) -> Estimate:
        seconds, cores, gpus, disk = means.get(_group(run), overall)
        steps = run["steps"]
        return Estimate(seconds * steps, cores * steps, gpus * steps, disk)

    return Costs({run_id: estimate(run) for run_id, run in runs.items()}, len(everything))


def _group(run: PlannedRun) -> Group:
    return run["dataset"], run["algorithm"]


def _taken(folder: RunFolder, steps: int) -> list[list[float]]:
    """Seconds, core seconds and GPU seconds of a step, and bytes; nothing where it does not say."""
    facts = folder.read_json(folder.environment) or {}
    if facts.get("seconds") is None:
        return []
    seconds, on_cpu = facts["seconds"] / steps, facts.get("device", "cpu") == "cpu"
    with os.scandir(folder.path) as entries:
        files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
        disk = sum(file.stat(follow_symlinks=False).st_size for file in files)
    cores = facts.get("threads", 1) if on_cpu else 0
    return [[seconds, seconds * cores, seconds * (not on_cpu), disk]]
