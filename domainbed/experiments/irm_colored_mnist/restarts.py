"""The restarts of a config: one result file each, computed in worker processes where missing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.core.files import write_text
from domainbed.core.stopping import Interrupted, stop_requested
from domainbed.errors import UserError
from domainbed.experiments.irm_colored_mnist.data import read_images
from domainbed.experiments.irm_colored_mnist.settings import Config
from domainbed.experiments.irm_colored_mnist.training import run_restart
from domainbed.launchers import Event, Job, LocalLauncher, Resources
from domainbed.launchers.base import environment_set
from domainbed.runs.states import FAILED
from domainbed.sweeps.following import Display
from domainbed.training.machine import choose_device
from domainbed.training.provenance import describe

Restart = tuple[int, str]
"""Its number and its algorithm."""

_RESULT = {
    *("algorithm", "restart", "settings", "seeds", "seconds"),
    *("train_acc", "test_acc", "gray_test_acc"),
}
# glibc would hand memory back to the system after every use of a tensor of more than 32 MB, and
# ask for it again, page by page: a third of the time of a Fishr update on one core.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def planned(config: Config) -> list[Restart]:
    """All restarts of `config`; a number's algorithms, which share the data, are neighbours."""
    return list(itertools.product(config.restarts, config.algorithms))


def missing(config: Config) -> list[Restart]:
    """The planned restarts that have no result yet."""
    return [restart for restart in planned(config) if not result_file(config, restart).exists()]


def result_file(config: Config, restart: Restart) -> Path:
    """Where a restart's result lies: in a folder of its settings."""
    number, algorithm = restart
    return Path(config.output_dir) / config.settings.digest() / f"{algorithm}_{number}.json"


def read_results(config: Config) -> list[dict[str, Any]]:
    """The results of all planned restarts that have one.

    Raises:
        UserError: a file is damaged.
    """
    files = [result_file(config, restart) for restart in planned(config)]
    return [_read(file) for file in files if file.exists()]


def _read(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or not set(result) >= _RESULT:
            raise ValueError("fields are missing")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): remove it to compute it again") from error
    return result


def compute(config: Config) -> list[str]:
    """Computes the restarts that are missing, as many at a time as `config.jobs`.

    Returns:
        the tracebacks of those that failed; they stop no other.

    Raises:
        UserError: MNIST is missing, the folder cannot be made, or there is no such device.
        KeyboardInterrupt: what was under way is dropped; what was finished stays.
    """
    todo = missing(config)
    if not todo:
        return []
    choose_device(config.device)  # one error now, not one in each restart
    read_images(config.data_dir)
    _make_folder(result_file(config, todo[0]).parent)
    display = Display([config.steps] * len(todo))
    errors: list[str] = []

    def on_event(event: Event) -> None:
        display.on_event(event)
        if event.kind == FAILED:
            errors.append(event.error)

    wanted = {name: value for name, value in _KEEP_MEMORY.items() if name not in os.environ}
    with contextlib.closing(display), environment_set(wanted):
        launcher, resources = LocalLauncher(workers=config.jobs), Resources(device=config.device)
        folder = Path(config.output_dir)
        launcher.submit(RestartJob(config), todo, resources, folder).wait(on_event)
    return errors


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {str(folder)!r} cannot be made ({error.strerror}): choose another "
            "output_dir"
        ) from error


@dataclass(frozen=True)
class RestartJob(Job):
    """What a worker process does with each restart."""

    config: Config

    def __call__(self, restart: Restart, on_step: Callable[[int], None]) -> None:
        """Computes a restart and writes its result."""
        number, algorithm = restart
        config = self.config
        device = choose_device(config.device)
        images, digits = read_images(config.data_dir)

        def on_step_unless_stopped(steps: int) -> None:
            if stop_requested():  # a restart takes minutes: it is begun anew another time
                raise Interrupted
            on_step(steps)

        result = run_restart(
            *(config.settings, algorithm, number, images, digits, device),
            on_step=on_step_unless_stopped,
        )
        result["environment"] = describe(device)
        write_text(result_file(config, restart), json.dumps(result, indent=2) + "\n")
