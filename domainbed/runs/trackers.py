"""Where records are also sent to: TensorBoard, Weights & Biases, MLflow, or what is registered.

A tracker is a class with three methods, see `Tracker`. Its library is imported when a run uses it.
"""

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from domainbed.core.registry import Registry, require_subclass
from domainbed.core.seeding import global_sources_kept
from domainbed.errors import UserError, log
from domainbed.runs.states import DONE, INTERRUPTED

_RUN_ID_TAG = "domainbed.run_id"
_LONGEST_PARAM = 500
_MLFLOW_STATUS = {DONE: "FINISHED", INTERRUPTED: "KILLED"}


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about a run.

    Attributes:
        run_id: the same in every session of the run.
        name: the run in words.
        sweep: the name of the folder that the run's folder is in.
        folder: the run's own, for files.
        spec: what defines the run, as JSON values.
        next_step: the step that it resumes at; 0 for a new run.
    """

    run_id: str
    name: str
    sweep: str
    folder: Path
    spec: Mapping[str, Any]
    next_step: int = 0


class Tracker(ABC):
    """Where the records of one run are sent, beside results.jsonl. A new one is made for each run.

    If a method raises, the run is tracked no longer, with a warning, and continues. A run that is
    resumed gets another tracker; records since its last checkpoint are sent twice.
    """

    packages: tuple[str, ...] = ()
    """Modules that must be installed."""

    @abstractmethod
    def begin(self, run: TrackedRun) -> None:
        """Called once, before any record."""

    @abstractmethod
    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a record: its step, counted over all stages, and its finite numbers by key."""

    @abstractmethod
    def end(self, state: str) -> None:
        """Called once at the end: "done", "failed" or "interrupted"."""


TRACKERS: Registry[type[Tracker]] = Registry(
    "tracker",
    entry_point_group="domainbed.trackers",
    check=lambda entry: require_subclass(entry, Tracker),
)


class Trackers:
    """The trackers of one run, none of which can harm it.

    Args:
        names: of registered trackers.

    Raises:
        UserError: a name is unknown, or what the tracker needs is not installed.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._active: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            cls = TRACKERS[name]
            if lacking := [package for package in cls.packages if find_spec(package) is None]:
                raise UserError(
                    f"tracker {name!r} needs {lacking[0]}: pip install {lacking[0]}",
                    "trackers",
                )
            with self._given_up_if_it_fails(name):
                self._active[name] = cls()

    def record(self, step: int, record: Mapping[str, Any]) -> None:
        """Sends the finite numbers of a record."""
        values = {
            name: float(value)
            for name, value in record.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and name != "step"
        }
        self.each(lambda tracker: tracker.record(step, values))

    def each(self, call: Callable[[Tracker], object]) -> None:
        """Calls a method of each tracker; one that fails gets no further calls."""
        for name, tracker in [*self._active.items()]:
            with self._given_up_if_it_fails(name):
                call(tracker)

    @contextmanager
    def _given_up_if_it_fails(self, name: str) -> Iterator[None]:
        """What a tracker draws at random leaves the run's random sources as they were."""
        try:
            with global_sources_kept():
                yield
        except (Exception, SystemExit) as error:
            self._active.pop(name, None)
            reason = (str(error).strip().splitlines() or [""])[0]
            log.warning(
                "warning: tracker %s gets no more records of this run, which continues (%s: %s)",
                name, type(error).__name__, reason,
            )  # fmt: skip


@TRACKERS.register(name="tensorboard")
class TensorBoard(Tracker):
    """Event files in `tensorboard/` in the run's folder.

    `tensorboard --logdir FOLDER` shows those of a run or of a whole sweep.
    """

    packages = ("tensorboard",)
    _writer: Any

    def begin(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides what an interrupted session wrote from this step on.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.next_step)
        self._writer.add_text("run", f"{run.name}\n\n    {json.dumps(run.spec)}", run.next_step)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, state: str) -> None:
        self._writer.close()


@TRACKERS.register(name="wandb")
class WeightsAndBiases(Tracker):
    """One run of the project that is named after the sweep, or by WANDB_PROJECT.

    WANDB_MODE=offline keeps the records in the run's folder.
    """

    packages = ("wandb",)
    _run: Any

    def begin(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.sweep),
            id=run.run_id,
            name=run.name,
            config=dict(run.spec),
            dir=str(run.folder),
            resume="allow",
            reinit="create_new",  # a worker does many runs
            settings=wandb.Settings(console="off", silent=True),
        )

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def end(self, state: str) -> None:
        self._run.finish(exit_code=int(state != DONE))


@TRACKERS.register(name="mlflow")
class MLflow(Tracker):
    """One run of the experiment that is named after the sweep.

    Sent to MLFLOW_TRACKING_URI; without it, written to `mlruns` in the sweep's folder.
    """

    packages = ("mlflow",)
    _client: Any
    _run: str

    def begin(self, run: TrackedRun) -> None:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            # The default store needs a database; files do where there is no server.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        own = (run.folder.absolute().parent / "mlruns").as_uri()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        experiment = self._experiment(run.sweep)
        known = self._client.search_runs([experiment], f"tags.`{_RUN_ID_TAG}` = '{run.run_id}'")
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(
            experiment, tags={_RUN_ID_TAG: run.run_id}, run_name=run.name
        ).info.run_id
        for name, value in run.spec.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            self._client.log_param(self._run, name, shown[:_LONGEST_PARAM])

    def record(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        self._client.log_batch(
            self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()]
        )

    def end(self, state: str) -> None:
        self._client.set_terminated(self._run, _MLFLOW_STATUS.get(state, "FAILED"))

    def _experiment(self, name: str) -> str:
        """The experiment's id; another worker may create it at the same time."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:  # each of MLflow's stores has its own
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)
