"""What a launch would do: how many runs, for which selection methods, how long, how much disk."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from domainbed.cli.sweep.common import count_runs
from domainbed.runs.states import DONE, FAILED, PENDING, RUNNING

if TYPE_CHECKING:
    from domainbed.sweeps.costs import Costs, Estimate
    from domainbed.sweeps.launch import Launch


def outlook(launch: Launch) -> list[str]:
    """What there is and what is to be done, in a line or two."""
    states = list(launch.states.values())
    failed = states.count(FAILED)
    lines = [
        f"{launch.store.root}: {count_runs(len(states))}, {states.count(DONE)} done, "
        f"{failed} failed, {states.count(RUNNING)} running; {len(launch.todo)} to do"
    ]
    if waiting := [i for i in launch.in_hand if launch.states[i] == PENDING]:
        lines.append(f"{count_runs(len(waiting))} queued by an earlier launch")
    seeds = len(launch.config.trials) * len(launch.config.hparams_seeds)
    for why, count in Counter(entry.why for entry in launch.left_out).items():
        lines.append(f"{count_runs(seeds * count)} left out: {why}")
    if launch.config.weights == "selected":
        from domainbed.training.kept_weights import left_out

        lines += [
            f"no weights are kept for {name}, whose choice of a step depends on other runs: it "
            "needs `keep: all`"
            for name in left_out(launch.config.selection)
        ]
    if failed and not launch.retried:
        lines.append(
            f"{count_runs(failed)} failed before and stay as they are: "
            f"`domainbed sweep retry {launch.store.root}` does them again"
        )
    return lines


def plan_lines(launch: Launch, costs: Costs | None = None) -> list[str]:
    """The states of the runs, what selection methods need, and what the runs to do will take.

    Args:
        launch: the sweep.
        costs: as measured; by default those of the sweep's finished runs.
    """
    from domainbed.sweeps.status import status_lines

    costs = costs or launch.costs()
    lines = [*status_lines(launch.status()), "", *_method_lines(launch, costs)]
    lines += [f"warning: {line}" for line in launch.obstacles()]
    if not launch.todo:
        return [*lines, "Nothing to do."]
    if costs is None:
        return [
            *lines,
            "No run is finished, so there is nothing to estimate time and disk from: `domainbed "
            "sweep plan --measure`, with the same arguments, measures them.",
        ]
    return [*lines, _total_line(launch, costs)]


def _method_lines(launch: Launch, costs: Costs | None) -> list[str]:
    """A row for each selection method: its runs, what is to do of them, and of what cost."""
    from domainbed.core.text_table import text_table
    from domainbed.selection import SELECTION_METHODS

    methods = [SELECTION_METHODS[name] for name in launch.config.selection]
    header = ["selection method", "runs", "to do", "for it alone"]
    rows: list[list[object]] = []
    for method in methods:
        others = [other for other in methods if other is not method]
        todo = [run for run in launch.todo if method.counts(run.test_envs)]
        row: list[object] = [
            method.name,
            sum(method.counts(run.test_envs) for run in launch.runs.values()),
            len(todo),
            sum(not any(other.counts(run.test_envs) for other in others) for run in todo),
        ]
        rows.append([*row, _hours(costs.of(todo), launch.gpu_share)] if costs else row)
    return text_table([[*header, *["takes"] * bool(costs)], *rows], right=range(1, 4))


def _total_line(launch: Launch, costs: Costs) -> str:
    from domainbed.training.progress import duration

    total, workers = costs.of(launch.todo), max(1, launch.workers)
    basis = f"{count_runs(costs.basis)} that finished" if costs.basis else "a few updates of each"
    took = f"about {duration(total.seconds / workers)} with {workers} at a time"
    hours, disk = _hours(total, launch.gpu_share), _size(total.disk)
    return f"To do: {hours}, {took}; {disk} on disk (from {basis})."


def _hours(estimate: Estimate, gpu_share: float) -> str:
    """In core hours, GPU hours or both; a run on a GPU takes this share of it."""
    kinds = (("core", estimate.cores / 3600), ("GPU", estimate.gpus * gpu_share / 3600))
    return " + ".join(f"{hours:.3g} {kind} hours" for kind, hours in kinds if hours) or "nothing"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
