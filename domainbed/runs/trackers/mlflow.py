"""Records for MLflow, to MLFLOW_TRACKING_URI; without it into `mlruns` in the sweep's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from domainbed.runs.states import DONE, INTERRUPTED
from domainbed.runs.trackers.base import TRACKERS, TrackedRun, Tracker

_TAG = "domainbed.run_id"
_LONGEST_PARAM = 500
_STATUS = {DONE: "FINISHED", INTERRUPTED: "KILLED"}


@TRACKERS.register(name="mlflow")
class MLflow(Tracker):
    """One run of the experiment that is called after the sweep."""

    packages = ("mlflow",)
    _client: Any
    _run: str

    def begin(self, run: TrackedRun) -> None:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            # The default store needs a database; files do where nobody serves one.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        own = (run.folder.absolute().parent / "mlruns").as_uri()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        experiment = self._experiment(run.sweep)
        known = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.run_id}'")
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {_TAG: run.run_id}
        self._run = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        for name, value in run.spec.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            self._client.log_param(self._run, name, shown[:_LONGEST_PARAM])

    def record(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, state: str) -> None:
        self._client.set_terminated(self._run, _STATUS.get(state, "FAILED"))

    def _experiment(self, name: str) -> str:
        """The experiment's id; another worker may make it at the same time."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                made: str = self._client.create_experiment(name)
                return made
            except Exception:  # of MLflow's stores, each has its own
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)
