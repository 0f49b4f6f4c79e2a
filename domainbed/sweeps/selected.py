"""What a selection method chose in a sweep, as a model that is ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.core.names import average_in
from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.runs.folder import RunFolder
from domainbed.runs.record_keys import AVERAGES_BY_TITLE
from domainbed.runs.records import Records
from domainbed.selection import SELECTION_METHODS, SelectionMethod
from domainbed.training.kept_models import is_final
from domainbed.training.trained import Model, model_in, read_spec


@dataclass(frozen=True)
class Choice:
    """A step of a run.

    Attributes:
        folder: of the run.
        step: that was chosen.
        average: of which the weights are; empty for the last ones.
        is_last: whether the run has no later record.
    """

    folder: RunFolder
    step: int
    average: str
    is_last: bool


def load_selected(
    sweep: Path | str,
    *,
    dataset: str,
    algorithm: str,
    test_env: int,
    selection: str,
    trial_seed: int | None = None,
    device: str | None = None,
) -> Model:
    """The model that a selection method chose for a cell of the tables.

    Its weights are those of the chosen step: a sweep keeps them with `keep: selected`, or `all`.

    Args:
        sweep: the folder of the sweep.
        dataset: as in the tables.
        algorithm: as in the tables; "ERM + SWAD" for averaged weights.
        test_env: the test domain.
        selection: the short name of a method.
        trial_seed: which trial's choice; None for the first one's.
        device: cpu, cuda or mps; None finds the best there is.

    Raises:
        UserError: there is no such choice, its run is not finished, or its weights were not kept.

    Example:
        >>> model = load_selected(  # doctest: +SKIP
        ...     "results/mine",
        ...     dataset="PACS",
        ...     algorithm="ERM",
        ...     test_env=0,
        ...     selection="training-domain",
        ... )
        >>> model.classes  # doctest: +SKIP
        ['dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person']
    """
    wanted = {"dataset": dataset, "algorithm": algorithm, "test_env": test_env}
    if trial_seed is not None:
        wanted["trial_seed"] = trial_seed
    method = SELECTION_METHODS[selection]
    records = load_records(sweep)
    runs = records.runs
    records = records.only((runs["dataset"] == dataset) & (runs["algorithm"] == algorithm))
    found = [] if records.runs.empty else _rows(method.select(records), wanted)
    if not found:
        cell = ", ".join(f"{name} {value!r}" for name, value in wanted.items())
        raise UserError(
            f"{method.name} chose nothing in {str(sweep)!r} for {cell}: `domainbed collect` shows "
            "the cells, and with --explain what they lack"
        )
    choice = choice_of(records, min(found, key=lambda row: row["trial_seed"]))
    return model_in(choice.folder, weights_of(choice, method), device)


def choice_of(records: Records, row: Mapping[str, Any]) -> Choice:
    """Where the choice of a row, as `SelectionMethod.select` makes it, lies."""
    runs = records.runs
    same = runs["test_envs"] == (row["test_env"],)
    for key in ("dataset", "algorithm", "hparams_seed", "trial_seed"):
        same &= runs[key] == row[key]
    run = runs[same].iloc[0]
    average = AVERAGES_BY_TITLE.get(average_in(row["algorithm"]), "")
    step = int(row["step"])
    return Choice(RunFolder(run["folder"]), step, average, step == run["last_step"])


def weights_of(choice: Choice, method: SelectionMethod) -> Path:
    """The file of the weights at the step that was chosen.

    Raises:
        UserError: they were not kept, or the run is not finished.
    """
    folder, average = choice.folder, choice.average
    at_step = folder.model_at(choice.step, average=average)
    if at_step.is_file():
        return at_step
    spec = read_spec(folder)
    last = folder.averaged_model(average) if average else folder.model
    ended = choice.is_last and spec.record_last_step
    if last.is_file() and is_final(spec, choice.step, ended):
        return last
    keep = "all" if method.needs_pairs else "selected"
    raise UserError(
        f"{folder.path} holds no weights of step {choice.step}, which {method.name} chose: do the "
        f"sweep in another folder with `keep: {keep}`"
    )


def _rows(chosen: Any, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = chosen.to_dict("records")
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]
