"""Records for TensorBoard: `tensorboard --logdir FOLDER` of a run or of a whole sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from domainbed.runs.trackers.base import TRACKERS, TrackedRun, Tracker


@TRACKERS.register(name="tensorboard")
class TensorBoard(Tracker):
    """Event files in `tensorboard/` in the run's folder."""

    packages = ("tensorboard",)
    _writer: Any

    def begin(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an interrupted session wrote from this step on is shown no more.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.next_step)
        self._writer.add_text("run", f"{run.name}\n\n    {json.dumps(run.spec)}", run.next_step)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, state: str) -> None:
        self._writer.close()
