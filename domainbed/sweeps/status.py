"""The states of a sweep's runs, and what runs cost: time, cores or GPUs, and disk."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from domainbed.core.names import describe_run
from domainbed.core.text_table import duration, json_text, printable, text_table
from domainbed.errors import UserError, log
from domainbed.runs.folder import RunFolder
from domainbed.runs.ownership import shown_job
from domainbed.runs.states import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    PENDING,
    RUNNING,
    STATES,
    RunStatus,
)
from domainbed.sweeps.store import Cell, PlannedRun, Store, cell_of

LOOKED_AT = 20  # finished runs of each group that estimates rest on; more would change them little
_LISTED = 20  # how many running runs, and how many jobs, the lines for people list
# Seconds of silence of a process elsewhere from which the lines for people mention it.
_SILENT = 15.0
_TAIL = 65536  # bytes at the end of results.jsonl that hold its last record
_LEFT = (RUNNING, PENDING, INTERRUPTED, MISSING)


@dataclass(frozen=True)
class Running:
    """A run in progress.

    Attributes:
        run_id: of the run.
        what: its description.
        where: its process, as its folder says.
        taken: the share of its steps up to its last record, in [0, 1].
    """

    run_id: str
    what: str
    where: RunStatus
    taken: float


@dataclass(frozen=True)
class Status:
    """The states of a sweep's runs.

    Attributes:
        counts: runs by state, of each dataset and algorithm.
        failures: run id, description and last line of the error, of each failed run.
        running: the runs in progress.
        pending: runs that wait for an engine, by what is known of them.
        gone: runs whose jobs have ended before them, in the same way.
        runs: what is known of each run, by its id.
        pace: runs an hour, if as many run as now; None if no run is in progress, or none is done.
        left: seconds until all runs that have not failed are done, at that pace.
    """

    counts: Mapping[Cell, Mapping[str, int]]
    failures: Sequence[tuple[str, str, str]]
    running: Sequence[Running]
    pending: Mapping[RunStatus, int]
    gone: Mapping[RunStatus, int]
    runs: Mapping[str, RunStatus]
    pace: float | None
    left: float | None

    @property
    def total(self) -> Counter[str]:
        """Runs by state."""
        return sum((Counter(counts) for counts in self.counts.values()), Counter())

    @property
    def may_change(self) -> bool:
        """Whether a run is in progress, or waits for an engine that will start it."""
        return bool(self.running) or any(not waiting.stuck for waiting in self.pending)


def status_of(
    store: Store,
    runs: Mapping[str, PlannedRun],
    before: Status | None = None,
    ask: Callable[[Mapping[str, RunStatus]], Mapping[str, RunStatus]] = dict,
) -> Status:
    """The states of `runs`, which are given by their ids.

    Args:
        store: of the runs.
        runs: by their ids.
        before: an earlier status of the same runs: the folders of those done then are not read.
        ask: corrects what folders say by what engines say, see `engines.as_reported`.
    """
    known = ask(store.statuses(runs, before.runs if before else None))
    counts: dict[Cell, Counter[str]] = defaultdict(Counter)
    by_state: dict[str, list[str]] = defaultdict(list)
    for run_id, run in runs.items():
        state = known[run_id].state
        counts[cell_of(run)][state] += 1
        by_state[state].append(run_id)
    running = [
        Running(i, describe_run(runs[i]), known[i], share_taken(store.folder(i), runs[i]["steps"]))
        for i in by_state[RUNNING]
    ]
    pace, left = None, None
    if running and (costs := finished_costs(store, runs, by_state[DONE])):
        share_left = {i: 1.0 for state in _LEFT for i in by_state[state]}
        share_left |= {each.run_id: 1 - each.taken for each in running}
        pace = 3600 * len(running) / max(costs.of(share_left).seconds / len(share_left), 1e-9)
        left = sum(share * costs.of_run[i].seconds for i, share in share_left.items()) / len(
            running
        )
    return Status(
        counts=dict(counts),
        failures=[
            (i, describe_run(runs[i]), known[i].why or store.folder(i).last_error())
            for i in by_state[FAILED]
        ],
        running=running,
        pending=Counter(known[i] for i in by_state[PENDING]),
        gone=Counter(s for s in known.values() if s.state in (INTERRUPTED, MISSING) and s.why),
        runs=known,
        pace=pace,
        left=left,
    )


def share_taken(folder: RunFolder, steps: int) -> float:
    """The share of its steps that a run had taken at its last record; 0 if there is none."""
    try:
        with folder.results.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL))
            record = json.loads(stream.read().rstrip(b"\n").rpartition(b"\n")[2])
        stage, stages = record.get("stage", 1), record.get("args", {}).get("stages", 1)
        return min(1.0, (stage - 1 + (record["step"] + 1) / steps) / stages)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0.0


def count_runs(count: int) -> str:
    """A number of runs for people."""
    return f"{count} run" if count == 1 else f"{count} runs"


def summary_line(status: Status) -> str:
    """One line: the counts, and if they are known the pace and the time left."""
    total = status.total
    parts = [f"{total[DONE]} of {sum(total.values())} runs done"]
    parts += [f"{total[state]} {state}" for state in STATES[1:] if total[state]]
    line = ", ".join(parts)
    if status.pace is None or status.left is None:
        return line
    return f"{line}; {status.pace:.3g} runs an hour, about {duration(status.left)} left"


def status_lines(status: Status) -> list[str]:
    """The status as a table, with lists of the running, pending and failed runs."""
    groups = [*status.counts.items()]
    groups += [(("all", ""), status.total)] if len(groups) > 1 else []
    rows = [[*group, sum(n.values()), *(n.get(s, 0) for s in STATES)] for group, n in groups]
    header = ["dataset", "algorithm", "runs", *STATES]
    lines = text_table([header, *rows], right=range(2, len(header)))
    if status.pace is not None:
        lines += ["", summary_line(status)]
    if status.running:
        at_work = [_running_row(each) for each in status.running[:_LISTED]]
        lines += ["", "Running:", *text_table(at_work, indent="  ", right=[1])]
        hidden = len(status.running) - _LISTED
        lines += [f"  and {hidden} more"] if hidden > 0 else []
    gone = "Withdrawn, or ended before these runs, which the next launch submits again:"
    for title, listed in (
        ("Pending:", _waiting_lines(status.pending)),
        (gone, _waiting_lines(status.gone)),
        ("Failed:", failure_lines(status.failures)),
    ):
        lines += ["", title, *listed] if listed else []
    return lines


def _running_row(running: Running) -> list[str]:
    where = running.where
    place = f"on {where.host or 'this machine'}" + (f", process {where.pid}" if where.pid else "")
    place += f", {where.engine} job {shown_job(where.job)}" if where.job else ""
    place += f", silent for {duration(where.silent_for)}" if where.silent_for > _SILENT else ""
    return [printable(running.what), f"{running.taken:.0%}", printable(place)]


def _waiting_lines(waiting: Mapping[RunStatus, int]) -> list[str]:
    """For each engine, and each thing that it says, the number of runs, and their jobs."""
    groups: dict[tuple[str, str, bool], Counter[str]] = defaultdict(Counter)
    for status, count in waiting.items():
        groups[status.engine, status.why, status.stuck][status.job] += count
    lines = []
    for (engine, why, stuck), jobs in groups.items():
        named = [job for job in jobs if job]
        listed = ", ".join(map(shown_job, named[:_LISTED])) + ", …" * (len(named) > _LISTED)
        line = f"  {count_runs(sum(jobs.values()))}, {engine or 'of an unknown engine'}"
        line += f" jobs {listed}" if listed else ""
        lines.append(printable(line + ": cannot start" * stuck + (f": {why}" if why else "")))
    return lines


def failure_lines(failures: Iterable[tuple[str, str, str]]) -> list[str]:
    """For each failed run its folder, its description, and the last line of its error."""
    return [
        line
        for run_id, what, error in failures
        for line in (f"  {printable(run_id)}  {printable(what)}", f"    {printable(error)}")
    ]


def status_json(status: Status) -> str:
    """The status for programs."""
    return json_text(
        {
            "total": {state: status.total[state] for state in STATES},
            "groups": [
                {"dataset": dataset, "algorithm": algorithm, **{s: n.get(s, 0) for s in STATES}}
                for (dataset, algorithm), n in status.counts.items()
            ],
            "running": [
                {
                    "run": each.run_id,
                    "what": each.what,
                    "taken": each.taken,
                    "host": each.where.host,
                    "pid": each.where.pid,
                    "engine": each.where.engine,
                    "job": each.where.job,
                    "silent_for": each.where.silent_for,
                }
                for each in status.running
            ],
            **{
                name: [
                    {"engine": s.engine, "job": s.job, "why": s.why, "stuck": s.stuck, "runs": n}
                    for s, n in waiting.items()
                ]
                for name, waiting in (("pending", status.pending), ("gone", status.gone))
            },
            "failures": [{"run": i, "what": what, "error": e} for i, what, e in status.failures],
            "runs_per_hour": status.pace,
            "seconds_left": status.left,
        }
    ).rstrip()


# ---- costs ----


class Estimate(NamedTuple):
    """What runs cost.

    Attributes:
        seconds: of all runs, one after the other.
        cores: core seconds of those on CPUs.
        gpus: seconds of the others, each of which has a GPU, or a share of one.
        disk: bytes of what they keep.
    """

    seconds: float = 0.0
    cores: float = 0.0
    gpus: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class Costs:
    """Estimates of the runs of a sweep.

    Attributes:
        of_run: the estimate of each run, by its id.
        basis: how many finished runs they rest on; 0 if they were measured on a few updates.
    """

    of_run: Mapping[str, Estimate]
    basis: int = 0

    def of(self, run_ids: Iterable[str]) -> Estimate:
        """The sum over these runs."""
        return Estimate(*map(sum, zip(Estimate(), *(self.of_run[run_id] for run_id in run_ids))))


def finished_costs(
    store: Store, runs: Mapping[str, PlannedRun], done: Iterable[str]
) -> Costs | None:
    """Estimates of the `runs` from those that are `done`; None if none of these has its time.

    Seconds of a step, and bytes, are means over finished runs of the same dataset and algorithm;
    where there are none, over all finished runs.
    """
    ids: dict[Cell, list[str]] = defaultdict(list)
    for run_id in done:
        ids[cell_of(runs[run_id])].append(run_id)
    found: dict[Cell, list[list[float]]] = defaultdict(list)
    for group, of_group in ids.items():
        for run_id in of_group[:: math.ceil(len(of_group) / LOOKED_AT)]:
            found[group] += _taken(store.folder(run_id), runs[run_id]["steps"])
    everything = [taken for of_group in found.values() for taken in of_group]
    if not everything:
        return None
    means = {group: np.mean(taken, axis=0).tolist() for group, taken in found.items() if taken}
    overall = np.mean(everything, axis=0).tolist()

    def estimate(run: PlannedRun) -> Estimate:
        seconds, cores, gpus, disk = means.get(cell_of(run), overall)
        steps = run["steps"]
        return Estimate(seconds * steps, cores * steps, gpus * steps, disk)

    return Costs({run_id: estimate(run) for run_id, run in runs.items()}, len(everything))


def _taken(folder: RunFolder, steps: int) -> list[list[float]]:
    """Seconds, core seconds and GPU seconds per step, and bytes; nothing if it has no seconds."""
    try:
        facts = folder.read_json(folder.environment) or {}
    except UserError as error:
        log.warning("warning: %s; the estimate rests on the other runs", error)
        return []
    if facts.get("seconds") is None:
        return []
    seconds, on_cpu = facts["seconds"] / steps, facts.get("device", "cpu") == "cpu"
    paths = folder.path.iterdir() if folder.path.is_dir() else ()  # else it is packed: little
    disk = sum(file.stat().st_size for file in paths if file.is_file() and not file.is_symlink())
    return [[seconds, seconds * facts.get("threads", 1) * on_cpu, seconds * (not on_cpu), disk]]
