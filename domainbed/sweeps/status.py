"""What became of a sweep's runs: counts, failures, and the time that the rest will take."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from domainbed.spec import describe_run
from domainbed.states import FAILED, STATES
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


def _rows(status: Status) -> list[tuple[Group, Mapping[str, int]]]:
    rows = list(status.counts.items())
    return [*rows, (("all", ""), status.total)] if len(rows) > 1 else rows
