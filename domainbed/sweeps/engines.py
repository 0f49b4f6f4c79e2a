"""The engines that have a sweep's runs: asking them for their jobs, and cancelling these."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from domainbed.errors import UserError, log
from domainbed.launchers import JobReport, Launcher, create_launcher
from domainbed.runs.ownership import shown_job
from domainbed.runs.states import FAILED, INTERRUPTED, MISSING, PENDING, RUNNING, RunStatus
from domainbed.sweeps.store import Store

_LAST_LINES = 3

Statuses = Mapping[str, RunStatus]  # what is known of each run, by its id


def reports(
    statuses: Statuses, chosen: Mapping[str, Any], strict: bool = False
) -> dict[str, JobReport]:
    """What engines say of the jobs of runs that may not have ended, by run, in bounded time.

    An interrupted run is one of them: its job may have been requeued. Left out, with a warning, are
    the runs of an engine that cannot be asked.

    Args:
        statuses: of the runs.
        chosen: a config's launcher, whose options say where its engine is.
        strict: raise if an engine cannot be asked that has runs which are queued or running.

    Raises:
        UserError: see `strict`.
    """
    found: dict[str, JobReport] = {}
    for engine, job_of in _jobs_by_engine(statuses).items():
        at_it = {job for i, job in job_of.items() if statuses[i].state != INTERRUPTED}
        try:
            launcher = _launcher(engine, chosen)
            said = {} if launcher.blocking else launcher.ask(set(job_of.values()))
        except UserError as error:
            if strict and at_it:
                raise
            log.warning("warning: %s; the states of its jobs are those of before", error)
            continue
        # There is no engine, or the folder alone says where it is.
        elsewhere = {job for job in at_it if launcher.blocking and "@" in shown_job(job)}
        _warn_of(elsewhere, engine)
        if not elsewhere:
            gone = JobReport(INTERRUPTED, "which it does not know any more")
            found |= {run_id: said.get(job, gone) for run_id, job in job_of.items()}
    return found


def in_hand(statuses: Statuses, chosen: Mapping[str, Any]) -> set[str]:
    """The runs that an engine still has queued or running; see `reports`, which is strict."""
    return {i for i, report in reports(statuses, chosen, strict=True).items() if report.in_hand}


def as_reported(store: Store, chosen: Mapping[str, Any], statuses: Statuses) -> Statuses:
    """The statuses of runs, corrected by what engines say of their jobs."""
    idle = {i: each for i, each in statuses.items() if each.state in (PENDING, INTERRUPTED)}
    told = reports(idle, chosen)
    return {**statuses, **{i: _corrected(store, i, idle[i], told[i]) for i in told}}


def _corrected(store: Store, run_id: str, status: RunStatus, report: JobReport) -> RunStatus:
    if report.in_hand:
        return replace(status, state=PENDING, why=report.why, stuck=report.stuck)
    if status.state != PENDING:
        return status
    folder, why = store.folder(run_id), report.why
    log_file = folder.log.resolve()
    if log_file.is_relative_to(store.root.resolve()) and log_file.is_file():
        lines = [line.strip() for line in log_file.read_text(errors="replace").splitlines()]
        last = " / ".join(list(filter(None, lines))[-_LAST_LINES:])
        why += f" ({last or 'it printed nothing'})"
    if report.state == FAILED:
        why = f"{status.engine} job {status.job} ended before the run began: {why}"
        return replace(status, state=FAILED, why=why)
    return replace(status, state=INTERRUPTED if folder.spec.exists() else MISSING, why=why)


def cancel(store: Store, statuses: Statuses, chosen: Mapping[str, Any]) -> dict[str, set[str]]:
    """Cancels the jobs of runs that are pending, running, or interrupted and requeued.

    Returns:
        The jobs, by engine.

    Raises:
        UserError: an engine cannot be asked, or refuses.
    """
    cancelled = {}
    stopped = {i: each for i, each in statuses.items() if each.state == INTERRUPTED}
    ended = stopped.keys() - in_hand(stopped, chosen)
    there = {i: each for i, each in statuses.items() if i not in ended}
    for engine, job_of in _jobs_by_engine(there).items():
        launcher = _launcher(engine, chosen)
        jobs = set(job_of.values())
        reached = set(filter(launcher.reaches, jobs))
        _warn_of(jobs - reached, engine)
        if reached:
            cancelled[engine] = reached
            launcher.cancel(reached)
        for run_id in [run_id for run_id, job in job_of.items() if job in reached]:
            store.folder(run_id).pending.unlink(missing_ok=True)
    return cancelled


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
        if status.state in (PENDING, RUNNING, INTERRUPTED) and status.engine and status.job:
            jobs[status.engine][run_id] = status.job
    return dict(jobs)


def _launcher(engine: str, chosen: Mapping[str, Any]) -> Launcher:
    options = {name: value for name, value in chosen.items() if name != "name"}
    return create_launcher(engine, options if chosen["name"] == engine else {})[0]
