"""What became of a sweep's runs: counts, failures, and the time that the rest will take."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from domainbed.spec import RunSpec, describe_run
from domainbed.states import DONE, FAILED, STATES
from domainbed.sweeps.store import PlannedRun, Store
from domainbed.text_table import printable, text_table

Group = tuple[str, str]
"""A dataset's label and an algorithm."""


@dataclass(frozen=True)
class Status:
    """The states of a sweep's runs.

    Attributes:
        counts: runs by state, of each dataset and algorithm.
        failures: run id, description and last line of the error, of each failed run.
    """

    counts: Mapping[Group, Mapping[str, int]]
    failures: Sequence[tuple[str, str, str]]

    @property
    def total(self) -> Counter[str]:
        """Runs by state."""
        return sum((Counter(counts) for counts in self.counts.values()), Counter())


def status_of(store: Store, runs: Mapping[str, PlannedRun]) -> Status:
    """The states of `runs`, which are given by their ids."""
    states = store.states(runs)
    counts: dict[Group, Counter[str]] = defaultdict(Counter)
    for run_id, run in runs.items():
        counts[run["dataset"], run["algorithm"]][states[run_id]] += 1
    failed = [run_id for run_id, state in states.items() if state == FAILED]
    failures = [(i, describe_run(runs[i]), store.folder(i).last_error()) for i in failed]
    return Status(dict(counts), failures)


def status_lines(status: Status) -> list[str]:
    """The status as a table and a list of failures."""
    rows = [[*group, sum(n.values()), *(n.get(s, 0) for s in STATES)] for group, n in _rows(status)]
    header = ["dataset", "algorithm", "runs", *STATES]
    lines = text_table([header, *rows], right=range(2, len(header)))
    if status.failures:
        lines += ["", "Failed:", *failure_lines(status.failures)]
    return lines


def failure_lines(failures: Iterable[tuple[str, str, str]]) -> list[str]:
    """For each failed run its folder, what it is, and the last line of its error."""
    return [
        line
        for run_id, what, error in failures
        for line in (f"  {printable(run_id)}  {printable(what)}", f"    {printable(error)}")
    ]


def status_json(status: Status) -> str:
    """The status for programs."""
    groups = [
        {"dataset": dataset, "algorithm": algorithm, **{s: n.get(s, 0) for s in STATES}}
        for (dataset, algorithm), n in status.counts.items()
    ]
    failures = [{"run": i, "what": what, "error": error} for i, what, error in status.failures]
    total = {state: status.total[state] for state in STATES}
    return json.dumps({"total": total, "groups": groups, "failures": failures}, indent=2)


@dataclass(frozen=True)
class Estimate:
    """The time that runs will take, guessed from finished ones.

    Attributes:
        seconds: of all runs, one after the other.
        basis: how many finished runs it rests on.
    """

    seconds: float
    basis: int


def estimate(
    store: Store,
    runs: Mapping[str, RunSpec],
    states: Mapping[str, str],
    todo: Sequence[RunSpec],
) -> Estimate | None:
    """The time that the runs `todo` will take; None if no run has been finished.

    A step takes as long as it did in finished runs of the same dataset and algorithm; where
    there are none, as long as it did on average.
    """
    rates: dict[Group, list[float]] = defaultdict(list)
    for run_id, run in runs.items():
        if states[run_id] == DONE:
            folder = store.folder(run_id)
            seconds = (folder.read_json(folder.environment) or {}).get("seconds")
            if seconds is not None:
                rates[run.dataset_label, run.algorithm].append(seconds / run.steps)
    everything = [rate for group in rates.values() for rate in group]
    if not everything:
        return None
    means = {group: sum(known) / len(known) for group, known in rates.items()}
    mean = sum(everything) / len(everything)
    seconds = sum(means.get((r.dataset_label, r.algorithm), mean) * r.steps for r in todo)
    return Estimate(seconds, len(everything))


def _rows(status: Status) -> list[tuple[Group, Mapping[str, int]]]:
    rows = list(status.counts.items())
    return [*rows, (("all", ""), status.total)] if len(rows) > 1 else rows
