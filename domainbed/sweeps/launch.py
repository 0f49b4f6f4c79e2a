"""Launches of a sweep: which of its runs are left to do, and doing them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from domainbed.config.run_fields import RunOptions
from domainbed.core.device import choose_device, require_precision
from domainbed.core.files import write_text
from domainbed.core.names import describe_run
from domainbed.core.plugins import import_plugins
from domainbed.core.stopping import Interrupted
from domainbed.datasets import get_dataset_class
from domainbed.errors import UserError, in_shell, is_out_of_memory, log, reason_of
from domainbed.launchers import (
    BlockingHandle,
    Event,
    Handle,
    Job,
    Launcher,
    Resources,
    create_launcher,
)
from domainbed.runs.folder import RunFolder, made_with_others
from domainbed.runs.packed import packed_runs
from domainbed.runs.packing import pack, unpack
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, PENDING, RUNNING, Busy
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.display import Display
from domainbed.sweeps.engines import Statuses, cancel, in_hand
from domainbed.sweeps.status import Costs, count_runs, finished_costs
from domainbed.sweeps.store import Cell, PlannedRun, Store, common_to
from domainbed.training import run

_RUNS_BETWEEN_PACKS = 50


@dataclass(frozen=True)
class Launch:
    """A sweep that is ready to be launched.

    Attributes:
        config: what the user asked for.
        store: where the runs go.
        launcher: runs them.
        resources: of one run.
        runs: all runs of the sweep, by run id.
        planned: the same, as plan.json keeps them.
        states: the state of each when this was made.
        in_hand: those that an engine has queued or running.
        todo: those to do, by id.
        left_out: runs that the sweep asks for but that are impossible; see `SweepConfig.left_out`.
        retried: whether this is a retry of failed runs.
        withdrawn: of those to do, those that an engine has queued, and that are taken back first.
        outdated: by the runs that stay queued with other options of their launcher, these.
    """

    config: SweepConfig
    store: Store
    launcher: Launcher
    resources: Resources
    runs: Mapping[str, RunSpec]
    planned: Mapping[str, PlannedRun]
    states: Mapping[str, str]
    in_hand: Set[str]
    todo: Sequence[str]
    left_out: Sequence[Mapping[str, Any]]
    retried: bool
    withdrawn: Statuses
    outdated: Mapping[str, str]

    @property
    def workers(self) -> int:
        """How many runs there are at a time."""
        return self.launcher.parallelism(len(self.todo), self.resources)

    @property
    def gpu_share(self) -> float:
        """The part of a GPU that a run on GPUs has."""
        return self.resources.gpus or 1 / getattr(self.launcher, "runs_per_gpu", 1)

    @property
    def _job(self) -> RunJob:
        config = self.config
        return RunJob(str(self.store.root), config.run_options(), config.plugins, config.pack)

    def costs(self) -> Costs | None:
        """Estimates from the runs that are done; None if none is."""
        done = (run_id for run_id, state in self.states.items() if state == DONE)
        return finished_costs(self.store, self.planned, done)

    def obstacles(self) -> list[str]:
        """What stands in the way of the runs: a device or a dataset that is not available."""
        lines = []
        try:
            self._check_device()
        except UserError as error:
            lines.append(str(error))
        return [*lines, *self._absent_data(fetched=False), *self._absent_data(fetched=True)]

    def _absent_data(self, fetched: bool) -> list[str]:
        """Which published datasets are not there, of those that a run fetches by itself or not."""
        data_dir = self.config.data_dir
        specs = {self.runs[run_id].dataset: self.runs[run_id] for run_id in self.todo}
        infos = {name: get_dataset_class(name, spec).info for name, spec in specs.items()}
        return [
            f"{name} is not in {data_dir!r}: get it with `domainbed data download {in_shell(name)} "
            f"--data_dir {in_shell(data_dir)}`{' (a first run does so by itself)' * fetched}, or "
            "give another --data_dir"
            for name, info in infos.items()
            if info and info.folder and info.fetched == fetched
            if not (Path(data_dir) / info.folder).exists()
        ]

    @property
    def others(self) -> list[str]:
        """The runs of earlier launches, queued or running, that this one leaves to them."""
        running = {run_id for run_id, state in self.states.items() if state == RUNNING}
        theirs = (running | self.in_hand).difference(self.todo)
        return [run_id for run_id in self.states if run_id in theirs]

    def execute(self) -> dict[str, str]:
        """Submits the runs; those of a blocking launcher have ended when this returns.

        Returns:
            By run id, the error of each failed run that could not be written (the disk is full).

        Raises:
            UserError: see `submit`.
            KeyboardInterrupt: the runs were stopped, and can be resumed.
        """
        unwritten: dict[str, str] = {}
        handle = self.submit()
        if not self.launcher.blocking:
            return unwritten
        assert isinstance(handle, BlockingHandle)
        runs = [self.runs[run_id] for run_id in self.todo]
        display = Display(
            steps=[spec.steps for spec in runs],
            kinds=[f"{spec.dataset_label} {spec.algorithm}" for spec in runs],
        )

        def on_event(event: Event) -> None:
            if event.kind == FAILED:
                run_id = self.todo[event.index]
                try:
                    self._job.on_failure(self.runs[run_id], event.error)
                except OSError:
                    unwritten[run_id] = event.error.strip().splitlines()[-1]
            display.on_event(event)

        with contextlib.closing(display):
            handle.wait(on_event)
        return unwritten

    def submit(self) -> Handle:
        """Writes the plan and hands the runs to the launcher; an engine's are marked as pending.

        Raises:
            UserError: the output folder cannot be written, there is no such device, or the
                launcher refuses. So does a launcher of this machine where a dataset is not there.
        """
        self._check_device()  # one error now, not one in each run
        for absent in self._absent_data(fetched=False):
            if self.launcher.blocking:
                raise UserError(absent, "data_dir")
            log.warning("warning: %s", absent)  # it may lie on the machines of the engine
        if self.withdrawn:
            cancel(self.store, self.withdrawn, self.config.launcher)
        if redone := packed_runs(self.store.root).keys() & set(self.todo):
            unpack(self.store.root, redone)
        self.store.write_plan(self.config, self.planned, self.left_out, common_of(self.runs))
        for run_id in self.todo if self.retried else ():
            # Not where another launch has taken it up already.
            with contextlib.suppress(Busy), self.store.folder(run_id).exclusive():
                self.store.folder(run_id).errors.unlink(missing_ok=True)
        handle = self.launcher.submit(
            self._job,
            [self.runs[run_id] for run_id in self.todo],
            self.resources,
            self.store.launcher_folder.absolute(),
        )
        for index, run_id in enumerate(() if self.launcher.blocking else self.todo):
            run_folder, engine = self.store.folder(run_id), self.config.launcher
            run_folder.mark_pending(engine["name"], handle.jobs[index], engine)
            if handle.logs:
                run_folder.link_log(handle.logs[index])
        if self.finished_by_engine:
            try:
                self.launcher.submit_after(
                    list(dict.fromkeys(handle.jobs)),
                    partial(self.finish, sorted({file.parent for file in handle.logs})),
                    self.resources,
                    self.store.launcher_folder.absolute(),
                )
            except UserError as error:
                log.warning("warning: the job for when all have ended was refused (%s)", error)
        return handle

    @property
    def finished_by_engine(self) -> bool:
        """Whether `finish` is a job of the engine, after all others, where it has these runs."""
        asked = self.config.pack or self.config.on_finish
        return bool(asked and self.todo) and self.launcher.has_after and not self.launcher.blocking

    @property
    def finish(self) -> Callable[..., None]:
        """See `finish`; picklable."""
        return partial(finish, self.store.root.absolute(), self.config.on_finish, self.config.pack)

    def _check_device(self) -> None:
        if self.launcher.blocking:  # else it is chosen on the machine of each run
            require_precision(self.config.precision, choose_device(self.config.device))


def pack_finished(root: Path) -> None:
    """Packs what is finished; where that fails, the sweep continues without."""
    try:
        pack(root)
    except (UserError, OSError) as error:
        log.warning("warning: finished runs were not packed (%s)", error)


def finish(root: Path, command: str | None, packs: bool, of_jobs: Sequence[Path] = ()) -> None:
    """What is done when the runs of a launch have ended; it changes nothing about the outcome.

    Args:
        root: of the sweep.
        command: of the user's; what came of the sweep is in its environment.
        packs: whether finished runs are packed.
        of_jobs: folders of the engine's jobs, then removed as well if all runs are done.
    """
    if packs:
        pack_finished(root)
    store = Store(root)
    states = Counter(store.states(store.planned()).values())
    for folder in of_jobs if packs and set(states) == {DONE} else ():
        shutil.rmtree(folder, ignore_errors=True)
    if not command:
        return
    told = {
        "DOMAINBED_SWEEP": str(root),
        "DOMAINBED_DONE": str(states[DONE]),
        "DOMAINBED_FAILED": str(states[FAILED]),
        # Last: `domainbed` is found, also on a node whose PATH does not lead to this Python.
        "PATH": os.pathsep.join(
            [os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)]
        ),
    }
    sys.stdout.flush()
    found = subprocess.run(command, shell=True, env={**os.environ, **told}, check=False)
    if found.returncode:
        print(f"warning: on_finish ended with status {found.returncode}", file=sys.stderr)


def prepare(
    config: SweepConfig,
    retry: bool = False,
    specs: Iterable[RunSpec] | None = None,
    resubmit: bool = False,
) -> Launch:
    """Plans a sweep and reads the states of its runs; nothing is written yet.

    Args:
        config: of the sweep.
        retry: run the failed ones again, and no others.
        specs: runs in place of those of the config.
        resubmit: withdraw what is queued, and submit it again with the options of this config.

    Raises:
        UserError: the folder holds a sweep with other settings, or an engine cannot be asked.
    """
    left_out = config.left_out if specs is None else []
    by_id = {spec.run_id: spec for spec in (config.plan() if specs is None else specs)}
    store, options = Store(config.output_dir), dict(config.launcher)
    # A folder that is a link is left out, of which `statuses` warns.
    runs = {i: spec for i, spec in by_id.items() if not (store.root / i).is_symlink()}
    planned = {run_id: spec.planned() for run_id, spec in runs.items()}
    store.refuse_other_settings(config, planned, common_of(runs))
    launcher, resources = create_launcher(options.pop("name"), options)
    resources = resources.model_copy(update={"device": config.device})
    statuses = store.statuses(runs)
    states = {run_id: status.state for run_id, status in statuses.items()}
    begun = [i for i, s in states.items() if s in (DONE, INTERRUPTED) or (retry and s == FAILED)]
    redone = _made_with_other_plugins(config, store, begun, planned)
    taken = in_hand(statuses, config.launcher)
    at_work = {status.job for status in statuses.values() if status.state == RUNNING}
    again = {
        i for i in taken if resubmit and states[i] == PENDING and statuses[i].job not in at_work
    }
    taken -= again
    # A run whose pending job its engine has forgotten is done again. A run of another process is
    # left to a launcher that waits, which finds out whether that process is still alive.
    skipped = {DONE, FAILED} if launcher.blocking else {DONE, FAILED, RUNNING}
    todo = [
        i
        for i, s in states.items()
        if i not in taken
        if i in redone or i in again or (s == FAILED if retry else s not in skipped)
    ]
    return Launch(
        config, store, launcher, resources, runs, planned, states, taken, todo, left_out, retry,
        withdrawn={run_id: statuses[run_id] for run_id in again},
        outdated=_outdated({i: statuses[i] for i in taken if states[i] == PENDING}, config),
    )  # fmt: skip


def _outdated(waiting: Statuses, config: SweepConfig) -> dict[str, str]:
    """Of the runs that stay queued with other options, what differs."""
    here = json.loads(json.dumps(config.launcher))
    there = {i: each.options for i, each in waiting.items() if each.options not in ({}, here)}
    return {
        i: ", ".join(f"{k} {v}" for k, v in its.items() if v != here.get(k)) or "no others"
        for i, its in there.items()
    }


def _made_with_other_plugins(
    config: SweepConfig,
    store: Store,
    run_ids: Iterable[str],
    planned: Mapping[str, PlannedRun],
) -> set[str]:
    """The runs to redo, since plug-ins changed; they are counted as done until they are redone.

    Raises:
        UserError: there are some, and the config does not say what to do about them.
    """
    if config.plugins_changed == "accept" or not config.used_plugins():
        return set()
    found = {i: names for i in run_ids if (names := store.folder(i).changed_plugins())}
    if found and config.plugins_changed is None:
        first = describe_run(planned[next(iter(found))])
        names = sorted({name for of_run in found.values() for name in of_run})
        runs = f"{count_runs(len(found))} in {str(store.root)!r}, such as {first},"
        raise made_with_others(f"{runs} {'was' if len(found) == 1 else 'were'}", names)
    return set(found)


def common_of(runs: Mapping[str, RunSpec]) -> dict[Cell, dict[str, Any]]:
    """What the runs of each dataset and algorithm have in common, and the dataset's domains."""
    firsts: dict[Cell, RunSpec] = {}
    for spec in runs.values():
        firsts.setdefault((spec.dataset_label, spec.algorithm), spec)
    found = {}
    for cell, spec in firsts.items():
        values = common_to({**spec.as_json(), "identity": spec.identity()})
        with contextlib.suppress(UserError):  # it may not be registered where it is rerun
            values["domains"] = list(get_dataset_class(spec.dataset, spec).ENVIRONMENTS)
        found[cell] = json.loads(json.dumps(values))
    return found


@dataclass(frozen=True)
class RunJob(Job):
    """What a launcher does with each run; it holds all that a new process needs.

    Attributes:
        output_dir: the sweep's folder.
        options: of the run.
        plugins: what to import first.
        pack: whether every 50th run, by its id, packs those that are finished.
    """

    output_dir: str
    options: RunOptions
    plugins: tuple[str, ...] = ()
    pack: bool = False

    def __call__(self, spec: RunSpec, on_step: Callable[[int], None]) -> None:
        """Trains `spec` in its folder; an error is written there and raised.

        Raises:
            Busy: another launch is running it, or it has failed in another launch.
            Interrupted: it was asked to stop.
            UserError: the sweep's folder is gone.
        """
        store = Store(self.output_dir)
        if not store.plan.is_file():
            raise UserError(
                f"{self.output_dir} was removed while its runs were in progress: launch the "
                "sweep again"
            )
        folder = store.folder(spec.run_id)
        if folder.last_error() and not folder.done.exists():
            raise Busy(f"{folder.path} has failed in another launch since this one was planned")
        try:
            import_plugins(self.plugins)
            run(spec, folder, self.options, on_step=on_step)
        except (Busy, Interrupted):
            raise
        except (Exception, SystemExit) as error:
            with contextlib.suppress(OSError):  # `Launch.execute` reports it
                _write_error(folder, _with_summary(error, spec))
            raise
        if self.pack and int(spec.run_id, 16) % _RUNS_BETWEEN_PACKS == 0:
            pack_finished(store.root)

    def on_failure(self, spec: RunSpec, error: str) -> None:
        """Writes the error into the run's folder, unless there is one, or the run is done.

        Raises:
            OSError: it cannot be written.
        """
        folder = Store(self.output_dir).folder(spec.run_id)
        if not folder.last_error() and not folder.is_done():
            _write_error(folder, error)


def _write_error(folder: RunFolder, text: str) -> None:
    folder.path.mkdir(exist_ok=True)  # but not the sweep's folder, which may have been removed
    write_text(folder.errors, text)


def _with_summary(error: BaseException, spec: RunSpec) -> str:
    """The traceback, with a last line that says what to do."""
    lines = traceback.format_exc().strip().splitlines()
    first, *_ = str(error).strip().splitlines() or [""]
    told = reason_of(error) if isinstance(error, Exception) else ""
    if told and is_out_of_memory(error):
        told += f"; batch_size is {spec.hparams.get('batch_size')}"
    summary = (told or f"{type(error).__name__}: {first}").splitlines()[0]
    if told or not lines[-1].endswith(summary):
        lines.append(summary)
    return "\n".join(lines) + "\n"
