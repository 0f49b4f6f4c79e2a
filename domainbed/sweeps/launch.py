"""Launching a sweep: dropping what is done, doing the rest, and telling what came of it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from domainbed.config.run_fields import RunOptions
from domainbed.core.files import write_text
from domainbed.core.plugins import import_plugins
from domainbed.core.stopping import Interrupted
from domainbed.datasets import get_dataset_class
from domainbed.errors import UserError, is_out_of_memory, reason_of
from domainbed.launchers import Event, Handle, Job, Launcher, Resources, create_launcher
from domainbed.runs.folder import Busy, RunFolder
from domainbed.runs.states import BUSY, DONE, FAILED, RUNNING
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.costs import Costs, finished_costs
from domainbed.sweeps.display import Display
from domainbed.sweeps.following import Following
from domainbed.sweeps.grid import LeftOut, left_out, plan
from domainbed.sweeps.jobs import in_hand
from domainbed.sweeps.status import Status, status_of
from domainbed.sweeps.store import Store, planned_run
from domainbed.training import run
from domainbed.training.machine import choose_device, require_precision


@dataclass(frozen=True)
class Launch:
    """A sweep that is ready to be launched.

    Attributes:
        config: what the user asked for.
        store: where the runs go.
        runs: all runs of the sweep, by run id.
        states: the state of each when this was made.
        in_hand: those that an engine has queued or running.
        left_out: runs that the sweep asks for, and that cannot be.
        retried: whether failed runs are to be done again.
    """

    config: SweepConfig
    store: Store
    runs: Mapping[str, RunSpec]
    states: Mapping[str, str]
    in_hand: Set[str] = frozenset()
    left_out: Sequence[LeftOut] = ()
    retried: bool = False

    @property
    def todo(self) -> list[RunSpec]:
        """The runs to do: for a retry the failed ones, else all that nobody has done or failed at.

        One whose pending job its engine has forgotten is to be done again. What another process is
        at is left to a launcher that waits, which finds out whether it is still at it.
        """
        left = {DONE, FAILED} if self.blocking else {DONE, FAILED, RUNNING}
        wanted = [
            i for i, s in self.states.items() if (s == FAILED if self.retried else s not in left)
        ]
        return [self.runs[run_id] for run_id in wanted if run_id not in self.in_hand]

    @property
    def workers(self) -> int:
        """How many runs are done at the same time."""
        launcher, resources = self._launcher
        return launcher.parallelism(len(self.todo), resources)

    @property
    def gpu_share(self) -> float:
        """The part of a GPU that a run on GPUs has."""
        launcher, resources = self._launcher
        return resources.gpus or 1 / getattr(launcher, "runs_per_gpu", 1)

    @property
    def blocking(self) -> bool:
        """Whether the runs are done only while this process waits."""
        launcher, _ = self._launcher
        return launcher.blocking

    @property
    def _job(self) -> RunJob:
        return RunJob(str(self.store.root), self.config.run_options(), self.config.plugins)

    @cached_property
    def _launcher(self) -> tuple[Launcher, Resources]:
        options = dict(self.config.launcher)
        launcher, resources = create_launcher(options.pop("name"), options)
        return launcher, resources.model_copy(update={"device": self.config.device})

    def costs(self) -> Costs | None:
        """What runs take, from those that are done; None if none is."""
        return finished_costs(self.store, self.runs, self.states)

    def status(self) -> Status:
        """What became of the runs by now."""
        return status_of(self.store, {i: planned_run(run) for i, run in self.runs.items()})

    def obstacles(self) -> list[str]:
        """What would keep the runs from being done: no such device here, or datasets not there."""
        lines = []
        try:
            self._check_device()
        except UserError as error:
            lines.append(str(error))
        for name in dict.fromkeys(spec.dataset for spec in self.todo):
            info = get_dataset_class(name).info
            if info and info.folder and not (Path(self.config.data_dir) / info.folder).exists():
                by_itself = " (a first run does so by itself)" * info.fetched
                lines.append(
                    f"{name} is not in {self.config.data_dir!r}: get it with `domainbed download "
                    f"{name} --data_dir {self.config.data_dir}`{by_itself}, or give another "
                    "--data_dir"
                )
        return lines

    @property
    def others(self) -> list[RunSpec]:
        """The runs that earlier launches have queued or running, and this one leaves to them."""
        todo = {spec.run_id for spec in self.todo}
        theirs = [i for i, s in self.states.items() if s == RUNNING or i in self.in_hand]
        return [self.runs[run_id] for run_id in theirs if run_id not in todo]

    def execute(self, with_others: bool = False) -> dict[str, str]:
        """Does the runs, and returns when none is left to do. What fails stops nobody.

        Args:
            with_others: return when those in the hands of other launches have ended as well.

        Returns:
            By run id, why a run failed of which that could not be written down: on a full disk.

        Raises:
            UserError: see `submit`.
            KeyboardInterrupt: what was under way here is stopped, and can be resumed; what was
                handed to an engine goes on.
        """
        todo, unwritten = self.todo, dict[str, str]()
        others = self.others if with_others else []
        handle = self.submit()
        display = Display([spec.steps for spec in [*todo, *others]])
        following = Following(self.store, self.config.launcher, display.on_event)

        def on_event(event: Event) -> None:
            if event.kind == BUSY and with_others:
                following.add(event.index, todo[event.index])
                return
            if event.kind == FAILED:
                unwritten.update(self._unwritten(todo[event.index], event.error))
            display.on_event(event)

        with contextlib.closing(display), contextlib.closing(following):
            for index, spec in enumerate(others, len(todo)):
                following.add(index, spec)
            handle.wait(on_event)
            following.wait()
        return unwritten

    def submit(self) -> Handle:
        """Writes the plan and hands the runs to the launcher; an engine's are marked as pending.

        Raises:
            UserError: the output folder cannot be written, there is no such device, or the
                launcher refuses.
        """
        self._check_device()  # one error now, not one in each run
        todo = self.todo
        self.store.write_plan(self.config, self.runs, self.left_out)
        for spec in todo if self.retried else ():
            _forget_failure(self.store.folder(spec))
        launcher, resources = self._launcher
        handle = launcher.submit(self._job, todo, resources, self.store.launcher_folder.absolute())
        for index, spec in enumerate(() if self.blocking else todo):
            folder = self.store.folder(spec)
            folder.mark_pending(self.config.launcher["name"], handle.jobs[index])
            for file in handle.logs(index):
                folder.link_log(file)
        return handle

    def _check_device(self) -> None:
        if self.blocking:  # else it is chosen where a run is done, which this machine is not
            require_precision(self.config.precision, choose_device(self.config.device))

    def _unwritten(self, spec: RunSpec, error: str) -> dict[str, str]:
        """The last line of a failed run's error by its id, if it cannot be written down."""
        try:
            self._job.on_failure(spec, error)
        except OSError:
            return {spec.run_id: error.strip().splitlines()[-1]}
        return {}


def prepare(config: SweepConfig, retry: bool = False) -> Launch:
    """Plans a sweep and looks at what is there of it; nothing is written yet.

    Raises:
        UserError: a run that cannot be, or the folder holds a sweep with other settings.
    """
    return prepare_runs(config, plan(config), retry, left_out(config))


def prepare_runs(
    config: SweepConfig,
    specs: Iterable[RunSpec],
    retry: bool = False,
    lacking: Sequence[LeftOut] = (),
) -> Launch:
    """As `prepare`, of these runs in place of those that the config asks for.

    Raises:
        UserError: the folder holds a sweep with other settings.
    """
    store = Store(config.output_dir)
    planned = {spec.run_id: spec for spec in specs}
    # A folder that is a link is left out, of which `states` warns.
    runs = {i: spec for i, spec in planned.items() if not (store.root / i).is_symlink()}
    store.refuse_other_settings(config, runs)
    statuses = store.statuses(runs)
    states = {run_id: status.state for run_id, status in statuses.items()}
    handed_on = in_hand(statuses, config.launcher)
    return Launch(config, store, runs, states, handed_on, lacking, retry)


@dataclass(frozen=True)
class RunJob(Job):
    """What a launcher does with each run. It carries all that a fresh process needs to know.

    Attributes:
        output_dir: the sweep's folder.
        options: of the run.
        plugins: what to import first.
    """

    output_dir: str
    options: RunOptions
    plugins: tuple[str, ...] = ()

    def __call__(self, spec: RunSpec, on_step: Callable[[int], None]) -> None:
        """Trains `spec` in its folder; an error is written into it, and raised.

        Raises:
            Busy: another launch is at work on the run, or has failed at it.
            Interrupted: it was asked to stop.
            UserError: the sweep's folder is gone.
        """
        store = Store(self.output_dir)
        if not store.plan.is_file():
            raise UserError(
                f"{self.output_dir} was removed while its runs were under way: launch the sweep "
                "again to do them anew"
            )
        folder = store.folder(spec)
        if folder.last_error() and not folder.done.exists():
            raise Busy(f"another launch has failed at {folder.path} since this one was planned")
        try:
            import_plugins(self.plugins)
            run(spec, folder, self.options, on_step=on_step)
        except (Busy, Interrupted):
            raise
        except (Exception, SystemExit) as error:
            with contextlib.suppress(OSError):  # the launch tells of it, see `Launch.execute`
                _write_error(folder, _with_summary(error, spec))
            raise

    def on_failure(self, spec: RunSpec, error: str) -> None:
        """Writes the error into the run's folder, unless there is one, or the run is done.

        Raises:
            OSError: it cannot be written.
        """
        folder = Store(self.output_dir).folder(spec)
        if not folder.last_error() and not folder.done.exists():
            _write_error(folder, error)


def _write_error(folder: RunFolder, text: str) -> None:
    folder.path.mkdir(exist_ok=True)  # but not the sweep's, which somebody may have removed
    write_text(folder.errors, text)


def _with_summary(error: BaseException, spec: RunSpec) -> str:
    """The traceback, with a last line that says it all."""
    lines = traceback.format_exc().strip().splitlines()
    first, *_ = str(error).strip().splitlines() or [""]
    told = reason_of(error) if isinstance(error, Exception) else ""
    if told and is_out_of_memory(error):
        told += f"; batch_size is {spec.hparams.get('batch_size')}"
    summary = (told or f"{type(error).__name__}: {first}").splitlines()[0]
    if told or not lines[-1].endswith(summary):
        lines.append(summary)
    return "\n".join(lines) + "\n"


def _forget_failure(folder: RunFolder) -> None:
    """Makes a failed run one that is to go on, unless another launch has it in hand already."""
    with contextlib.suppress(Busy), folder.exclusive():
        folder.errors.unlink(missing_ok=True)
