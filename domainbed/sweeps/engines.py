"""The engines that have a sweep's runs: asking them for their jobs, and withdrawing these."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from domainbed.errors import UserError
from domainbed.launchers import JobReport, Launcher, create_launcher
from domainbed.launchers.event_files import last_words
from domainbed.runs.ownership import shown_job
from domainbed.runs.states import FAILED, INTERRUPTED, MISSING, PENDING, RUNNING, RunStatus
from domainbed.sweeps.store import Store

log = logging.getLogger(__name__)

Statuses = Mapping[str, RunStatus]
"""What is known of each run, by its id."""

_SECONDS_BETWEEN_QUESTIONS = 30.0
_SECONDS_TO_WITHDRAW, _SECONDS_BETWEEN_LOOKS = 60.0, 0.5


def in_hand(statuses: Statuses, chosen: Mapping[str, Any]) -> set[str]:
    """The runs that an engine still has queued or running, as it says itself.

    An interrupted run is one of them where its job was requeued.

    Args:
        statuses: of the runs.
        chosen: a config's launcher, whose options say where its engine is.

    Raises:
        UserError: an engine cannot be asked.
    """
    found: set[str] = set()
    for engine, job_of in _jobs_by_engine(statuses).items():
        launcher = _launcher(engine, chosen)
        if launcher.blocking:  # there is no engine, or the folder alone says where it is
            _warn_of(_elsewhere(statuses, job_of), engine)
            continue
        try:
            known = launcher.known(set(job_of.values()))
        except UserError:
            if {statuses[run_id].state for run_id in job_of} != {INTERRUPTED}:
                raise
            continue  # a sweep that was moved to a machine without that engine
        found |= {run_id for run_id, job in job_of.items() if job in known}
    return found


def reports(statuses: Statuses, chosen: Mapping[str, Any]) -> dict[str, JobReport]:
    """What engines say of the jobs of runs that may not have ended, in bounded time.

    Runs whose engine cannot be asked are left out, with a warning.
    """
    found: dict[str, JobReport] = {}
    for engine, job_of in _jobs_by_engine(statuses).items():
        try:
            launcher, jobs = _launcher(engine, chosen), set(job_of.values())
            unasked = _elsewhere(statuses, job_of) if launcher.blocking else set()
            _warn_of(unasked, engine)
            said = {} if launcher.blocking else launcher.ask(jobs)
        except UserError as error:
            log.warning("warning: %s; the states of its jobs are those of before", error)
            continue
        gone = JobReport(INTERRUPTED, "which it does not know any more")
        found |= {i: said.get(job, gone) for i, job in job_of.items() if job not in unasked}
    return found


def _corrected(store: Store, run_id: str, status: RunStatus, report: JobReport) -> RunStatus:
    if report.in_hand:
        return replace(status, state=PENDING, why=report.why, stuck=report.stuck)
    if status.state != PENDING:
        return status
    folder, why = store.folder(run_id), report.why
    log_file = folder.log.resolve()
    if log_file.is_relative_to(store.root.resolve()) and log_file.is_file():
        why += f" ({last_words(log_file)})"
    if report.state == FAILED:
        why = f"{status.engine} job {status.job} ended before the run began: {why}"
        return replace(status, state=FAILED, why=why)
    begun = folder.spec.exists() or folder.results.exists()
    return replace(status, state=INTERRUPTED if begun else MISSING, why=why)


class Asking:
    """Asks the engines of a sweep, but not all the time: each serves others, too.

    Args:
        store: of the sweep.
        chosen: a launcher, whose options say where its engine is.
    """

    def __init__(self, store: Store, chosen: Mapping[str, Any]) -> None:
        self._store, self._chosen = store, chosen
        self._asked = -math.inf
        self._told: Mapping[str, JobReport] = {}

    def __call__(self, statuses: Statuses) -> Statuses:
        """The statuses, corrected by what engines say, or said a short while ago."""
        idle = {i: each for i, each in statuses.items() if each.state in (PENDING, INTERRUPTED)}
        if idle and time.monotonic() - self._asked >= _SECONDS_BETWEEN_QUESTIONS:
            self._told = reports(idle, self._chosen)
            self._asked = time.monotonic()
        told = {i: report for i, report in self._told.items() if i in idle}
        return {**statuses, **{i: _corrected(self._store, i, idle[i], told[i]) for i in told}}


def queued(statuses: Statuses, chosen: Mapping[str, Any]) -> set[str]:
    """The pending runs of jobs that have not started, which can be withdrawn without any loss.

    Raises:
        UserError: an engine cannot be asked.
    """
    found: set[str] = set()
    for engine, job_of in _jobs_by_engine(statuses).items():
        at_work = {job for i, job in job_of.items() if statuses[i].state == RUNNING}
        launcher = _launcher(engine, chosen)
        said = {} if launcher.blocking else launcher.ask(set(job_of.values()))
        waiting = {job for job, each in said.items() if each.state == PENDING} - at_work
        found |= {run_id for run_id, job in job_of.items() if job in waiting}
    return found


def withdraw(store: Store, statuses: Statuses, chosen: Mapping[str, Any]) -> None:
    """Cancels the jobs of runs, and waits until their engines have let go of them.

    Raises:
        UserError: an engine cannot be asked, or does not let go.
    """
    cancel(store, statuses, chosen)
    end = time.monotonic() + _SECONDS_TO_WITHDRAW
    while in_hand(statuses, chosen):
        if time.monotonic() > end:
            raise UserError("the queued jobs were cancelled, and have not ended yet: launch again")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def cancel(store: Store, statuses: Statuses, chosen: Mapping[str, Any]) -> dict[str, set[str]]:
    """Cancels the jobs of runs that are pending, running, or interrupted and requeued.

    Returns:
        The jobs, by engine.

    Raises:
        UserError: an engine cannot be asked, or refuses.
    """
    cancelled = {}
    for engine, job_of in _jobs_by_engine(statuses).items():
        launcher = _launcher(engine, chosen)
        stopped = {job for i, job in job_of.items() if statuses[i].state == INTERRUPTED}
        jobs = set(job_of.values()) - stopped
        jobs |= set() if launcher.blocking else launcher.known(stopped)
        reached = set(filter(launcher.reaches, jobs))
        _warn_of(jobs - reached, engine)
        if reached:
            cancelled[engine] = reached
            launcher.cancel(reached)
        for run_id in [run_id for run_id, job in job_of.items() if job in reached]:
            store.folder(run_id).pending.unlink(missing_ok=True)
    return cancelled


def _elsewhere(statuses: Statuses, job_of: Mapping[str, str]) -> set[str]:
    """The jobs of clusters, of which a folder says where they are."""
    may_be = {job for i, job in job_of.items() if statuses[i].state != INTERRUPTED}
    return {job for job in may_be if "@" in shown_job(job)}


def _warn_of(left_alone: set[str], engine: str) -> None:
    if left_alone:
        log.warning(
            "warning: %s jobs such as %s are left alone: this program started no such process "
            "here, or the folder alone says where they are (--address names a cluster)",
            engine, shown_job(min(left_alone)),
        )  # fmt: skip


def _jobs_by_engine(statuses: Statuses) -> dict[str, dict[str, str]]:
    """By engine, the job of each run that was submitted to it, and may not have ended."""
    jobs: dict[str, dict[str, str]] = defaultdict(dict)
    for run_id, status in statuses.items():
        may_be = status.state in (PENDING, RUNNING, INTERRUPTED)
        if may_be and status.engine and status.job:
            jobs[status.engine][run_id] = status.job
    return dict(jobs)


def _launcher(engine: str, chosen: Mapping[str, Any]) -> Launcher:
    options = {name: value for name, value in chosen.items() if name != "name"}
    launcher, _ = create_launcher(engine, options if chosen["name"] == engine else {})
    return launcher
