"""The restarts of a config, computed in worker processes where missing, and the table of them.

One result file each. The table is as in Ramé et al. 2022, with the published values beside.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from domainbed.core.device import choose_device
from domainbed.core.files import read_sealed_json, sealed_json, write_text
from domainbed.core.stopping import Interrupted, stop_requested
from domainbed.errors import UserError
from domainbed.experiments.irm_colored_mnist.restart import read_images, run_restart
from domainbed.experiments.irm_colored_mnist.settings import Config, Settings
from domainbed.launchers import Event, Job, LocalLauncher, Resources
from domainbed.launchers.base import environment_set
from domainbed.reporting.published import irm_colored_mnist_values
from domainbed.reporting.section import SECTION_RENDERERS, Section
from domainbed.runs.states import FAILED
from domainbed.sweeps.display import Display
from domainbed.training.artifacts import describe

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
        result = read_sealed_json(file)
        if not set(result) >= _RESULT:
            raise ValueError("fields are missing")
    except (OSError, ValueError, RecursionError) as error:
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
    folder = Path(config.output_dir)
    try:
        result_file(config, todo[0]).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {str(folder)!r} cannot be made ({error.strerror}): choose another "
            "output_dir"
        ) from error
    display = Display([config.steps] * len(todo))
    errors: list[str] = []

    def on_event(event: Event) -> None:
        display.on_event(event)
        if event.kind == FAILED:
            errors.append(event.error)

    wanted = {name: value for name, value in _KEEP_MEMORY.items() if name not in os.environ}
    with contextlib.closing(display), environment_set(wanted):
        launcher, resources = LocalLauncher(workers=config.jobs), Resources(device=config.device)
        launcher.submit(RestartJob(config), todo, resources, folder).wait(on_event)
    return errors


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
            if stop_requested():  # a restart takes minutes: the next call starts it again
                raise Interrupted
            on_step(steps)

        result = run_restart(
            *(config.settings, algorithm, number, images, digits, device),
            on_step=on_step_unless_stopped,
        )
        result["environment"] = {  # without the name of the machine: a result may be handed on
            key: fact for key, fact in describe(device).items() if key != "host"
        }
        write_text(result_file(config, restart), sealed_json(result, indent=2))


# ---- the table ----

_MEASURES = {
    "train_acc": "train acc",
    "test_acc": "test acc",
    "gray_test_acc": "grey test acc",
}


def table(results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each algorithm, in the order of `results`, which share their settings.

    Columns: algorithm; restarts, how many; for train_acc (mean of the two training domains),
    test_acc and gray_test_acc the mean over restarts in percent, and as …_std the standard
    deviation (of the population: divided by n, as NumPy does); seconds, the mean per restart; and
    for each accuracy published_… and published_…_std, unless `why_unpublished` says why not.
    """
    rows = []
    for algorithm in dict.fromkeys(result["algorithm"] for result in results):
        own = [result for result in results if result["algorithm"] == algorithm]
        row: dict[str, Any] = {"algorithm": algorithm, "restarts": len(own)}
        for name in _MEASURES:
            values = 100 * np.array([result[name] for result in own])
            row |= {name: values.mean(), f"{name}_std": values.std()}
        rows.append(row | {"seconds": np.mean([result["seconds"] for result in own])})
    ours = pd.DataFrame(rows)
    if not results or why_unpublished(results[0]["settings"]):
        return ours
    published = published_values(results[0]["settings"]["label_flip"])
    return ours.merge(published, how="left", on="algorithm")


def why_unpublished(settings: Mapping[str, Any]) -> str:
    """Why no published values can stand beside results of these settings; "" where they can."""
    paper = Settings().identity()
    others = [name for name in paper if name != "label_flip" and settings[name] != paper[name]]
    if others:
        said = [f"{name} is {settings[name]} (the paper's: {paper[name]})" for name in others]
        return f"the settings are not the paper's: {', '.join(said)}"
    if published_values(settings["label_flip"]) is None:
        return f"there are none for label_flip {settings['label_flip']}"
    return ""


def published_values(label_flip: float) -> pd.DataFrame | None:
    """Ramé et al. 2022, table 2; None where there are none for `label_flip`.

    Columns: algorithm, and published_X for every X of the file, in percent.
    """
    values = irm_colored_mnist_values()
    values = values[np.isclose(values["label_flip"], label_flip)].drop(columns="label_flip")
    renamed = values.set_index("algorithm").add_prefix("published_").reset_index()
    return renamed if len(renamed) else None


def to_text(results: Sequence[dict[str, Any]], format_: str) -> str:
    """`table` in a format: in CSV and JSON unrounded, in JSON with every restart's result."""
    frame = table(results)
    if format_ == "json":
        rows = json.loads(frame.to_json(orient="records", double_precision=15))
        return json.dumps({"table": rows, "results": list(results)}, indent=2) + "\n"
    columns = {"algorithm": "Algorithm", "restarts": "restarts"}
    for name, label in _MEASURES.items():
        columns[name] = label
        if f"published_{name}" in frame:
            columns[f"published_{name}"] = "published"
    columns["seconds"] = "s per restart"
    rows = [[_cell(row, name) for name in columns] for _, row in frame.iterrows()]
    section = Section(
        *("irm_colored_mnist", "Colored MNIST in the setup of IRM", list(columns.values())),
        *(rows, _notes(results), frame),
    )
    return SECTION_RENDERERS[format_]([section])


def _cell(row: pd.Series, name: str) -> str:
    value = row[name]
    if pd.isna(value):
        return "-"
    if f"{name}_std" in row:
        return f"{value:.1f} +/- {row[f'{name}_std']:.1f}"
    return f"{value:.0f}" if name == "seconds" else str(value)


def _notes(results: Sequence[dict[str, Any]]) -> list[str]:
    seeds = {result["restart"]: result["seeds"] for result in results}
    lines = [
        "Accuracy in percent after the last update: mean and standard deviation (divided by n) "
        "over restarts."
    ]
    reason = why_unpublished(results[0]["settings"]) if results else ""
    if reason:
        lines.append(f"No published values beside: {reason}.")
    for name in ("data", "initialisation"):
        values = ", ".join(f"{number}: {of[name]}" for number, of in sorted(seeds.items()))
        lines.append(f"Seeds ({name}) by restart: {values}.")
    return lines
