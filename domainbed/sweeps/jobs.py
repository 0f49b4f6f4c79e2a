"""What engines have of a sweep's runs: which jobs are still known to them, and taking them back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from domainbed.launchers import Launcher, create_launcher
from domainbed.runs.states import PENDING, RUNNING, RunStatus
from domainbed.sweeps.store import Store

Statuses = Mapping[str, RunStatus]
"""What is known of each run, by its id."""


def in_hand(statuses: Statuses, chosen: Mapping[str, Any]) -> set[str]:
    """The runs that an engine still has queued or running, by what it says itself.

    Args:
        chosen: a config's launcher, whose options say where its engine is.

    Raises:
        UserError: an engine cannot be asked.
    """
    found: set[str] = set()
    for engine, job_of in _jobs_by_engine(statuses).items():
        known = _launcher(engine, chosen).known(set(job_of.values()))
        found |= {run_id for run_id, job in job_of.items() if job in known}
    return found


def cancel(store: Store, statuses: Statuses, chosen: Mapping[str, Any]) -> dict[str, set[str]]:
    """Takes the jobs of runs that are pending or running back from their engines.

    Returns:
        The jobs, by engine.

    Raises:
        UserError: an engine cannot be asked, or refuses.
    """
    cancelled = {}
    for engine, job_of in _jobs_by_engine(statuses).items():
        cancelled[engine] = set(job_of.values())
        _launcher(engine, chosen).cancel(cancelled[engine])
        for run_id in job_of:
            store.folder(run_id).clear_pending()
    return cancelled


def _jobs_by_engine(statuses: Statuses) -> dict[str, dict[str, str]]:
    """By engine, the job of each run that it was handed."""
    jobs: dict[str, dict[str, str]] = defaultdict(dict)
    for run_id, status in statuses.items():
        if status.state in (PENDING, RUNNING) and status.engine and status.job:
            jobs[status.engine][run_id] = status.job
    return dict(jobs)


def _launcher(engine: str, chosen: Mapping[str, Any]) -> Launcher:
    options = {name: value for name, value in chosen.items() if name != "name"}
    launcher, _ = create_launcher(engine, options if chosen["name"] == engine else {})
    return launcher
