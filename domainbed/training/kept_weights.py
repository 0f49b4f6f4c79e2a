"""Which weights of a run stay on disk: those of each record, the last ones, or what is selected.

Selection is imported by who selects: it takes pandas along, half a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.algorithms import Algorithm, get_algorithm_class
from domainbed.config.run_fields import RunOptions
from domainbed.core.names import averaged_algorithm
from domainbed.runs.folder import RunFolder
from domainbed.runs.record_keys import AVERAGES, parse_average_key, parse_record_key
from domainbed.spec import RunSpec
from domainbed.training.averages import Averages
from domainbed.training.experiment import Experiment
from domainbed.training.model_file import digest_file, save_model
from domainbed.training.ranks import is_first

if TYPE_CHECKING:
    from domainbed.runs.records import Records
    from domainbed.selection import SelectionMethod

_VALUES = ["run", "step", "domain", "split", "metric", "value"]


class KeptWeights:
    """Writes the weights that `options.weights` asks for, and removes those that it no longer does.

    With "selected" a record's weights stay as long as a selection method would choose its step, of
    the records so far. A method that compares runs, or a run's pairs, is left out: see
    `left_out`. Of a run of several stages there is one record to choose from, its last.

    Args:
        experiment: of the run.
        folder: of the run.
        options: what is kept.
        last: the last step that has a record.

    Raises:
        UserError: a selection method is unknown.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        options: RunOptions,
        last: int,
    ) -> None:
        self._folder, self._last = folder, last
        self._kept, self._spec = options.weights, experiment.spec
        self._domains = len(experiment.domains)
        self._has_stages = len(experiment.algorithm.training_stages()) > 1
        self._methods = _choosing(self._spec, options) if self._kept == "selected" else []

    def after_record(
        self,
        experiment: Experiment,
        averages: Averages,
        step: int,
        lines: Sequence[str],
        ended: bool,
        args: Mapping[str, Any],
    ) -> None:
        """Writes what is to be kept of the weights at a record.

        Args:
            experiment: at its stage.
            averages: of its weights.
            step: of the record.
            lines: all records so far.
            ended: whether the stage ends there.
            args: what defines the run, for the file.
        """
        if self._kept == "all":
            file = self._folder.model_at(step, experiment.stage_number)
            _save(experiment, averages, "", file, args)
        elif self._kept == "selected" and not self._has_stages:
            for name, steps in self._chosen(lines, ended).items():
                if step in steps and not is_final(self._spec, step, ended):
                    file = self._folder.model_at(step, average=name)
                    _save(experiment, averages, name, file, args)

    def after_checkpoint(self, lines: Sequence[str], ended: bool) -> None:
        """Removes what is no longer chosen: a run that goes on from the checkpoint needs it not."""
        if self._kept != "selected" or self._has_stages:
            return
        wanted = {
            self._folder.model_at(step, average=name)
            for name, steps in self._chosen(lines, ended).items()
            for step in steps
        }
        for file in self._folder.path.glob("model_step*.pkl"):
            if file not in wanted:
                digest_file(file).unlink(missing_ok=True)
                file.unlink(missing_ok=True)

    def at_end(self, experiment: Experiment, averages: Averages, args: Mapping[str, Any]) -> None:
        """Writes the last weights, unless nobody would choose any."""
        if self._kept == "none" or (self._kept == "selected" and not self._methods):
            return
        for name in ("", *averages):
            file = self._folder.averaged_model(name) if name else self._folder.model
            _save(experiment, averages, name, file, args)

    def _chosen(self, lines: Sequence[str], ended: bool) -> dict[str, set[int]]:
        """The steps to keep of the last weights, "", and of each average."""
        records = [json.loads(line) for line in lines]
        at_end = ended or records[-1]["step"] == self._last
        return {
            name: set(self._choices(records_of(self._spec, self._domains, records, name), at_end))
            for name in ("", *self._spec.averages)
        }

    def _choices(self, records: Records, at_end: bool) -> Iterator[int]:
        for method in self._methods:
            # What always chooses the last step will not stay with one before it.
            if at_end or not method.chooses_last:
                yield from method.score(records)["step"].astype(int)


def _save(
    experiment: Experiment, averages: Averages, name: str, file: Path, args: Mapping[str, Any]
) -> None:
    """Writes the last weights, or with a `name` those of an average.

    All processes of a run put an average in place, as they share its passes; one of them writes.
    """
    with averages.in_place(name) if name else nullcontext():
        if is_first():
            save_model(experiment, file, args)


def is_final(spec: RunSpec, step: int, ended: bool = False) -> bool:
    """Whether the weights at a step are those that a run ends with; `ended`: its last record.

    What an algorithm does at its end may change them after the last record.
    """
    changes = get_algorithm_class(spec.algorithm).on_end is not Algorithm.on_end
    return (ended or step == spec.steps - 1) and not changes


def left_out(methods: Iterable[str]) -> list[str]:
    """Those of the methods whose choice of a step depends on other runs."""
    from domainbed.selection import SELECTION_METHODS

    return [name for name in methods if SELECTION_METHODS[name].needs_pairs]


def _choosing(spec: RunSpec, options: RunOptions) -> list[SelectionMethod]:
    """The methods that choose a step of this run, from its records alone."""
    from domainbed.selection import SELECTION_METHODS

    names = options.selection if options.selection is not None else list(SELECTION_METHODS)
    methods = [SELECTION_METHODS[name] for name in names]
    return [m for m in methods if not m.needs_pairs and m.counts(spec.test_envs)]


def records_of(
    spec: RunSpec, domains: int, records: Sequence[Mapping[str, Any]], average: str = ""
) -> Records:
    """One run's records as selection reads them.

    Args:
        spec: of the run.
        domains: how many there are.
        records: as in results.jsonl, of one stage.
        average: the one whose measurements are meant; empty for the last weights.
    """
    import pandas as pd

    from domainbed.runs.records import RUN_KEYS, Records

    rows = [
        (0, record["step"], *parsed, float(value))
        for record in records
        for key, value in record.items()
        if isinstance(value, (int, float)) and (parsed := _parsed(key, average))
    ]
    name = averaged_algorithm(spec.algorithm, AVERAGES[average]) if average else spec.algorithm
    facts = {key: [getattr(spec, key)] for key in RUN_KEYS}
    facts |= {"dataset": [spec.dataset_label], "algorithm": [name], "num_domains": [domains]}
    facts |= {"num_records": [len(records)], "last_step": [records[-1]["step"]]}
    return Records(pd.DataFrame(facts), pd.DataFrame(rows, columns=_VALUES))


def _parsed(key: str, average: str) -> tuple[int, str, str] | None:
    from domainbed.runs.records import NO_DOMAIN

    of_average = parse_average_key(key)
    if average:
        return parse_record_key(of_average[1]) if of_average and of_average[0] == average else None
    return None if of_average else (parse_record_key(key) or (NO_DOMAIN, "", key))
