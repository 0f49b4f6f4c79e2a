"""Which weights of a run stay on disk (of each record, the last, or the selected), and their files.

Only a run that selects reads its records: that takes pandas along, half a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from domainbed.algorithms import Algorithm, get_algorithm_class
from domainbed.config.run_fields import RunOptions
from domainbed.core.files import file_digest, write_text, written_aside
from domainbed.core.names import average_in
from domainbed.core.record_keys import AVERAGES_BY_TITLE
from domainbed.errors import UserError
from domainbed.networks.pretrained import load_plain
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training.averages import Averages
from domainbed.training.experiment import Experiment
from domainbed.training.provenance import args_of
from domainbed.training.ranks import is_first

if TYPE_CHECKING:
    from domainbed.selection import SelectionMethod


class KeptModels:
    """Writes the weights that `options.weights` asks for, and removes those no longer needed.

    With "selected" a record's weights stay as long as a selection method would choose its step
    from the records so far. Methods that compare runs, or the runs of a pair, do not count. Of a
    run with several stages only the last weights can be chosen.

    Args:
        experiment: of the run.
        folder: of the run.
        options: what is kept.
        last: the last step that has a record.

    Raises:
        UserError: a selection method is unknown.
    """

    def __init__(
        self, experiment: Experiment, folder: RunFolder, options: RunOptions, last: int
    ) -> None:
        self._folder, self._options, self._last = folder, options, last
        self._spec = experiment.spec
        self._methods: list[SelectionMethod] = []
        self._selects_records = options.weights == "selected" and experiment.stages == 1
        if options.weights == "selected":
            from domainbed.selection import SELECTION_METHODS

            names = SELECTION_METHODS if options.selection is None else options.selection
            for method in [SELECTION_METHODS[name] for name in names]:
                if not method.needs_pairs and method.counts(self._spec.test_envs):
                    self._methods.append(method)

    def after_record(
        self, experiment: Experiment, averages: Averages, step: int, ended: bool
    ) -> None:
        """Writes the weights at the last record in results.jsonl, if they are to be kept.

        Args:
            experiment: at its stage.
            averages: of its weights.
            step: of the record.
            ended: whether the stage ends there.
        """
        if self._options.weights == "all":
            file = self._folder.model_file("", step, experiment.stage_number)
            self._save(experiment, averages, "", file)
        elif self._selects_records and not is_final(self._spec, step, ended):
            for name, chosen in self._chosen(step, ended):
                if chosen == step:
                    self._save(experiment, averages, name, self._folder.model_file(name, step))

    def after_checkpoint(self, step: int, ended: bool) -> None:
        """Removes what is no longer chosen: a run resumed from the checkpoint does not need it."""
        if not self._selects_records:
            return
        chosen = self._chosen(step, ended)
        wanted = {self._folder.model_file(name, step) for name, step in chosen}
        for file in self._folder.path.glob("model_step*.pkl"):
            if file not in wanted:
                _digest_file(file).unlink(missing_ok=True)
                file.unlink(missing_ok=True)

    def at_end(self, experiment: Experiment, averages: Averages) -> None:
        """Writes the last weights, unless no method would choose any."""
        if self._options.weights == "none":
            return
        if self._options.weights == "selected" and not self._methods:
            return
        for name in ("", *averages):
            self._save(experiment, averages, name, self._folder.model_file(name))

    def _save(self, experiment: Experiment, averages: Averages, name: str, file: Path) -> None:
        """Writes the last weights, or with a `name` those of an average.

        All processes of a run put an average in place, as they share its passes; one writes it.
        """
        with averages.in_place(name) if name else nullcontext():
            if is_first():
                save_model(experiment, file, args_of(experiment, self._folder, self._options))

    def _chosen(self, step: int, ended: bool) -> set[tuple[str, int]]:
        """What to keep after the record of a step: steps of each average, and of the last, ""."""
        from domainbed.runs.load import read_batch  # it imports pandas, half a second

        at_end = ended or step == self._last
        # What always chooses the last step will not stay with one before it.
        methods = [method for method in self._methods if at_end or not method.chooses_last]
        file = self._folder.results
        records = read_batch([(file, file.read_bytes())], lambda: None).as_records()
        chosen = set()
        for method in methods:
            for row in method.score(records).to_dict("records"):
                average = AVERAGES_BY_TITLE.get(average_in(row["algorithm"]), "")
                chosen.add((average, int(row["step"])))
        return chosen


def is_final(spec: RunSpec, step: int, ended: bool = False) -> bool:
    """Whether the weights at a step are those that a run ends with; `ended`: its last record.

    What an algorithm does at its end may change them after the last record.
    """
    changes = get_algorithm_class(spec.algorithm).on_end is not Algorithm.on_end
    return (ended or step == spec.steps - 1) and not changes


def save_model(experiment: Experiment, file: Path, args: Mapping[str, Any]) -> None:
    """Writes the weights with what is needed to rebuild the algorithm, and their digest.

    The keys are DomainBed's and some more.
    """
    with written_aside(file) as aside:
        torch.save(
            {
                "args": dict(args),
                "model_input_shape": tuple(experiment.dataset.input_shape),
                "model_num_classes": experiment.dataset.num_classes,
                "model_num_domains": len(experiment.train_envs),
                "model_hparams": experiment.spec.hparams,
                "model_dict": experiment.algorithm.state_dict(),
                "model_classes": list(experiment.dataset.class_names),
                "model_reads_images": experiment.dataset.reads_images,
            },
            aside,
        )
        write_text(_digest_file(file), file_digest(aside) + "\n")


def read_model(file: Path, run_id: str) -> dict[str, Any]:
    """What `save_model` wrote; reading it runs no code from the file.

    Raises:
        UserError: it was not kept, is damaged, or is another run's.
    """
    if not file.is_file():
        raise UserError(
            f"{file.parent} holds no {file.name}: train the run again, in another folder and "
            "without --skip_model_save"
        )
    known = _digest_file(file)
    if known.exists() and known.read_bytes().strip() != file_digest(file).encode():
        raise UserError(f"{file} is damaged (its digest is another): train the run again")
    try:
        content = load_plain(file)
        owner, _ = content["args"]["run_id"], content["model_dict"]
    except Exception as error:  # unpickling what is no model raises anything
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}): train the run again"
        ) from error
    if owner != run_id:
        raise UserError(f"{file} holds the weights of another run ({owner}): train the run again")
    return dict(content)


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
