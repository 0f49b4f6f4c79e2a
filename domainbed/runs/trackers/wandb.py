"""Records for Weights & Biases; WANDB_MODE=offline keeps them in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainbed.runs.states import DONE
from domainbed.runs.trackers.base import TRACKERS, TrackedRun, Tracker


@TRACKERS.register(name="wandb")
class WeightsAndBiases(Tracker):
    """One run of the project that is called after the sweep, or that WANDB_PROJECT names."""

    packages = ("wandb",)
    _run: Any

    def begin(self, run: TrackedRun) -> None:
        import os

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
