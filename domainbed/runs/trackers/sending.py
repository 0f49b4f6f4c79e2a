"""Sending records to trackers, none of which harms a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from domainbed.core.seeding import global_sources_kept
from domainbed.errors import UserError
from domainbed.runs.trackers.base import TRACKERS, TrackedRun, Tracker

log = logging.getLogger(__name__)


def _called(call: Callable[[Tracker], object], tracker: Tracker) -> bool:
    call(tracker)
    return True


class Trackers:
    """The trackers of one run.

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
                    f"tracker {name!r} needs {lacking[0]}: install it with `pip install "
                    "'domainbed[trackers]'`",
                    "trackers",
                )
            if made := self._kept_from_harm(name, cls):
                self._active[name] = made

    def begin(self, run: TrackedRun) -> None:
        """Tells each of the run."""
        self._each(lambda tracker: tracker.begin(run))

    def record(self, step: int, record: Mapping[str, Any]) -> None:
        """Sends the finite numbers of a record."""
        values = {
            name: float(value)
            for name, value in record.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and name != "step"
        }
        self._each(lambda tracker: tracker.record(step, values))

    def end(self, state: str) -> None:
        """Tells each that the run has ended, and lets go of them."""
        self._each(lambda tracker: tracker.end(state))
        self._active.clear()

    def _each(self, call: Callable[[Tracker], object]) -> None:
        for name, tracker in [*self._active.items()]:
            if not self._kept_from_harm(name, partial(_called, call, tracker)):
                del self._active[name]

    def _kept_from_harm(self, name: str, call: Callable[[], Any]) -> Any:
        """What a call returns; None, after a warning, where it fails. No random draw is taken."""
        try:
            with global_sources_kept():
                return call()
        except (Exception, SystemExit) as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            log.warning(
                "warning: tracker %s gets no more records of this run, which goes on (%s: %s)",
                name, type(error).__name__, reason,
            )  # fmt: skip
            return None
