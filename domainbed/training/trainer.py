"""Training one run: the loop, its records and its checkpoints."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from domainbed.algorithms import Algorithm
from domainbed.algorithms.base import chosen_options, trained_parameters
from domainbed.algorithms.optimizers import OptimizerGuard
from domainbed.config.run_fields import RunOptions
from domainbed.core.device import choose_device, require_precision
from domainbed.core.files import append_text, as_json_values, check_guard, write_text
from domainbed.core.names import (
    FULL_DATA,
    average_key,
    parse_average_key,
    parse_record_key,
    record_key,
)
from domainbed.core.stopping import Interrupted, stop_requested, stopping_at_once
from domainbed.errors import UserError
from domainbed.metrics import Value, recorded_names, selecting_metric
from domainbed.runs.folder import NOT_WHOLE, RunFolder
from domainbed.runs.ownership import seconds_from
from domainbed.runs.scratch import on_scratch
from domainbed.runs.states import DONE, FAILED, INTERRUPTED
from domainbed.runs.trackers import TrackedRun, Trackers
from domainbed.spec import RunSpec
from domainbed.training import checkpoint, ranks
from domainbed.training.artifacts import (
    KeptModels,
    args_of,
    claim,
    refuse_other_data,
    write_environment,
)
from domainbed.training.averages import Averages
from domainbed.training.checkpoint import Progress
from domainbed.training.evaluation import RecordedSplits
from domainbed.training.experiment import Experiment, build, set_initial_weights
from domainbed.training.machine import peak_memory, process_set_up
from domainbed.training.progress import History, ProgressTable
from domainbed.training.remarks import remarks
from domainbed.training.state import unseen
from domainbed.training.trained import save_predictions

OnStep = Callable[[int], None]


def run(
    spec: RunSpec,
    folder: RunFolder | Path | str,
    options: RunOptions | None = None,
    *,
    echo: bool = False,
    on_step: OnStep | None = None,
) -> None:
    """Trains `spec` in `folder`: starts, resumes a run that was interrupted, or does nothing.

    Sets up this process for it, see `machine.process_set_up`.

    Args:
        spec: resolved.
        folder: the run's own.
        options: where it is trained and what is kept; None for the defaults.
        echo: print the progress table on the terminal.
        on_step: called after every step with the number of steps taken; with several stages, as
            if all of them together had the steps of one.

    Raises:
        Busy: another process owns the folder.
        Interrupted: a stop was requested; the run resumes when this is called again.
        UserError: the folder holds something else, or was made with other plug-ins; or the spec
            does not fit the data.
    """
    options = options or RunOptions()
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    claimed = partial(claim, spec=spec, plugins_changed=options.plugins_changed)
    with ranks.own_folder(folder, claimed) as (folder, began):
        if began is None:
            return
        scratch = on_scratch(folder, options.scratch, on_step)
        with process_set_up(began.get("threads")), scratch as (folder, on_step):
            with stopping_at_once():
                experiment = ranks.together(partial(_built, spec, options, began.get("encoding")))
                ranks.together(partial(refuse_other_data, folder, began, experiment))
            ranks.together(
                partial(Trainer, experiment, folder, options, began, echo, on_step)
            ).train()


def sums_of_weights(algorithm: Algorithm) -> list[float] | None:
    """The sum of each parameter that optimizers may change; None where none is meant to change."""
    trained = trained_parameters(algorithm)
    if not algorithm.uses_optimizer or not trained:
        return None
    return torch.stack([weight.detach().double().sum().cpu() for weight in trained]).tolist()


def _built(spec: RunSpec, options: RunOptions, encoding: Any) -> Experiment:
    require_precision(spec.precision, choose_device(options.device))
    return build(spec, options, encoding)


class Trainer:
    """One run under way, in a folder that this process owns. `train` is the loop.

    `began` is the environment that an earlier session of the run noted; empty if there was none.
    The other arguments are as for `run`.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        options: RunOptions,
        began: Mapping[str, Any],
        echo: bool = False,
        on_step: OnStep | None = None,
    ) -> None:
        self.experiment, self.spec, self.folder = experiment, experiment.spec, folder
        self.options, self.began, self.on_step = options, began, on_step
        self.history = History(self.spec.algorithm, self.spec.on_divergence == "continue")
        self.averages = Averages(experiment)
        last = max(step for step in range(self.spec.steps) if self._is_recorded(step))
        self.splits = RecordedSplits(
            self.spec,
            experiment.algorithm,
            experiment.train_envs,
            bool(experiment.validation),
            last,
            selecting_metric(options.selection_metric, self.spec.labels, self.spec.metrics),
        )
        self.kept = KeptModels(experiment, folder, options, last)
        self.trackers = Trackers(options.trackers if ranks.is_first() else ())
        self._new_table = partial(
            ProgressTable, folder.out, echo, self.spec.steps, self._has_column
        )
        self.table = self._new_table()
        # A checkpoint takes as long as some updates: runs of seconds need none.
        self._between = seconds_from("DOMAINBED_CHECKPOINT_SECONDS", 5.0)
        self._saved = time.monotonic()

    @property
    def algorithm(self) -> Algorithm:
        """That of the current stage."""
        return self.experiment.algorithm

    def train(self) -> None:
        """All stages that are left; there is one, unless the algorithm asks for more."""
        state = FAILED
        try:
            progress = self._train_stage(self._resume())
            while progress.stage < self.experiment.stages:
                progress = self._train_stage(self._next_stage(progress))
            self._finish(progress)
            state = DONE
        except (KeyboardInterrupt, Interrupted):
            state = INTERRUPTED
            raise
        finally:
            self.trackers.each(lambda tracker: tracker.end(state))

    def _train_stage(self, progress: Progress) -> Progress:
        """All steps that are left, with a record at every interval.

        A checkpoint follows it, unless the last one was written moments ago.
        """
        self.history.restore(progress.history)
        self.experiment.facts.begin(max(progress.next_step - 1, 0))
        steps = range(progress.next_step, self.spec.steps)
        self.guard = OptimizerGuard(
            self.algorithm, chosen_options(type(self.algorithm), self.spec.hparams)
        )
        weights = sums_of_weights(self.algorithm)
        began = step_began = time.monotonic()
        for step, minibatches, unlabeled in zip(
            steps, self.experiment.minibatches(steps), self.experiment.unlabeled(steps)
        ):
            self.experiment.facts.begin(step)
            self.history.add(self._updated(minibatches, unlabeled), step)
            if self._is_recorded(step):
                self.history.settle()
            else:
                self.averages.add()
            self.history.add_time(time.monotonic() - step_began)
            if self._is_recorded(step):
                if step > 0:  # an algorithm may gather gradients of several updates
                    self.guard.require_steps()
                line, ended = self._record(step)
                progress = replace(
                    progress,
                    next_step=self.spec.steps if ended else step + 1,
                    records=(*progress.records, line),
                    seconds=progress.seconds + time.monotonic() - began,
                    history={},
                )
                began = time.monotonic()
                self.kept.after_record(self.experiment, self.averages, step, ended)
                if ranks.of_first(began - self._saved >= self._between):
                    self._save_checkpoint(progress)
                    self.kept.remove_others()
            if self.on_step:
                of_all_stages = (progress.stage - 1) * self.spec.steps + step + 1
                self.on_step(of_all_stages // self.experiment.stages)
            if progress.next_step == self.spec.steps:
                break
            if ranks.any_of_them(stop_requested()):
                seconds = progress.seconds + time.monotonic() - began
                self._stop(replace(progress, next_step=step + 1, seconds=seconds))
            step_began = time.monotonic()
        self.algorithm.on_end()
        if steps and weights is not None and weights == sums_of_weights(self.algorithm):
            raise UserError(
                f"no weight of {self.spec.algorithm} changed in {len(steps)} updates: the class is "
                "trained in another way. Call what trains it in 'on_start' or 'on_step'; one that "
                "needs no training says so by 'uses_optimizer = False'"
            )
        return progress

    def _updated(self, *of_step: Any) -> Any:
        """What the algorithm's update returns."""
        try:
            with self.experiment.precision(), self.guard, self.algorithm.context():
                metrics = self.algorithm.update(*of_step)
                self.algorithm.on_step()
                return metrics
        except Exception:
            self.history.settle()  # that training diverged before is the better reason
            raise

    def _stop(self, progress: Progress) -> NoReturn:
        """Saves also what was done since the last record."""
        self.history.settle()
        self._save_checkpoint(replace(progress, history=self.history.values()))
        self.table.line(f"Stopping at step {progress.next_step} of {self.spec.steps}, as requested")
        raise Interrupted

    def _next_stage(self, progress: Progress) -> Progress:
        """A fresh model, which takes over from the trained one; a killed run resumes from here."""
        before = self.algorithm
        self._enter_stage(progress.stage + 1)
        set_initial_weights(self.experiment)
        self.algorithm.take_over(before)
        self.algorithm.on_start()
        progress = replace(progress, stage=progress.stage + 1, next_step=0)
        self._save_checkpoint(progress)
        return progress

    def _enter_stage(self, number: int) -> Algorithm:
        """The algorithm of a stage as its constructor makes it."""
        if number != self.experiment.stage_number:
            self.experiment = self.experiment.further_stage(number)
            self.table.line(f"Stage {number} of {self.experiment.stages}")
            self.table = self._new_table()
        return self.algorithm

    def _has_column(self, key: str) -> bool:
        """Whether the progress table, which is as wide as a terminal, shows a number of a record.

        Of accuracies, losses and the like of a split it shows what tells of generalization.
        """
        average, of_weights = parse_average_key(key) or ("", key)
        parsed = parse_record_key(of_weights.removeprefix(FULL_DATA))
        if parsed is None:
            return key != "epoch" and (key != "mem_gb" or self.experiment.device.type == "cuda")
        domain, split, metric = parsed
        is_training = domain not in self.spec.test_envs
        is_in_accuracy = (split, metric) == ("in", "accuracy")
        if average:
            return is_in_accuracy and not is_training
        return metric in recorded_names(self.spec.metrics) and not (is_in_accuracy and is_training)

    def _resume(self) -> Progress:
        check_guard(self.folder.path)  # building took a while
        if self.folder.done.exists():
            self.table.line(f"{NOT_WHOLE}: the run is done again")
            self.folder.done.unlink()
        # In all processes, before the first one replaces or removes what it reads.
        progress = ranks.together(
            lambda: checkpoint.load(
                self.folder,
                self.spec.run_id,
                self._enter_stage,
                self.averages.restore,
                self.table.line,
            )
        )
        if progress.records:
            self.table.line(f"Resuming at step {progress.next_step} of {self.spec.steps}")
            self.history.diverged = any(
                json.loads(line).get("diverged") for line in progress.records
            )
            self.splits.restore(progress.records, self.averages)
        else:
            self._announce()
            set_initial_weights(self.experiment)
            self.averages = Averages(self.experiment)  # which start with these
            self.algorithm.on_start()
        # The run may have been killed between a record and its checkpoint, or within the line.
        write_text(self.folder.results, "".join(progress.records))
        write_environment(self.folder, self.experiment, self.began, progress)
        self.trackers.each(lambda tracker: tracker.begin(self._tracked(progress)))
        return progress

    def _tracked(self, progress: Progress) -> TrackedRun:
        path, spec = self.folder.path.absolute(), self.spec
        return TrackedRun(
            spec.run_id,
            spec.describe(),
            path.parent.name,
            path,
            spec.as_json(),
            (progress.stage - 1) * spec.steps + progress.next_step,
        )

    def _announce(self) -> None:
        """Prints what a new run is; keeps earlier records whose checkpoint is gone."""
        self.table.line(self.spec.describe())
        self.table.line(f"Hyper-parameters: {json.dumps(self.spec.hparams, sort_keys=True)}")
        if skipped := sum(len(domain.unreadable) for domain in self.experiment.domains):
            self.table.line(f"Images skipped, because they cannot be read: {skipped}")
        for note in (*self.experiment.dataset.notes, *remarks(self.experiment)):
            self.table.line(note)
        for name in unseen(self.algorithm):
            self.table.line(f"warning: {name} cannot be saved: an interrupted run starts again")
        if self.folder.has_results():  # and no checkpoint: its records are made again
            kept = self.folder.path / "results.before.jsonl"
            self.folder.results.replace(kept)
            self.table.line(f"No checkpoint to resume from: earlier records are kept in {kept}")

    def _is_recorded(self, step: int) -> bool:
        last = step == self.spec.steps - 1
        return step % self.spec.checkpoint_freq == 0 or (last and self.spec.record_last_step)

    def _record(self, step: int) -> tuple[str, bool]:
        """Evaluates, and appends the record to results.jsonl.

        Returns:
            the record's line, and whether the algorithm ends the stage there.
        """
        measured = self._measured(step)
        # The first process's, so that all decide alike.
        record: dict[str, Any] = ranks.of_first(
            {
                "step": step,
                "epoch": step / self.experiment.batches_per_epoch,
                **self.history.means(),
                **{self._key(m.domain, m.split, m.metric): m.value for m in measured},
                **(validation := self._of_stage(measured)),
                **self._of_averages(step, validation.get("val_loss", math.nan)),
                "mem_gb": peak_memory(self.experiment.device),
            }
        )
        self.table.record(record)
        ended = bool(self.algorithm.on_record(record))
        record = as_json_values(record) | {
            "hparams": self.spec.hparams,
            "args": args_of(self.experiment, self.folder, self.options),
        }
        if self.history.diverged:
            record["diverged"] = True
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        append_text(self.folder.results, line, to_disk=True)
        self.trackers.record((self.experiment.stage_number - 1) * self.spec.steps + step, record)
        return line, ended

    def _measured(self, step: int, average: str = "") -> list[Value]:
        return self.splits.measure(
            self.experiment.stage_splits,
            step,
            partial(self.experiment.evaluate, step, on_batch=self.table.evaluating),
            average,
        )

    def _of_averages(self, step: int, loss: float) -> dict[str, float]:
        """What a record has about averaged weights; `loss` is the last weights' validation loss."""
        found = self.averages.add_recorded(step + 1, loss)
        for name in self.averages:
            with self.averages.in_place(name):
                found |= {
                    average_key(name, self._key(m.domain, m.split, m.metric)): m.value
                    for m in self._measured(step, name)
                }
        return found

    def _key(self, domain: int, split: str, metric: str) -> str:
        return record_key(domain, split, metric, self.experiment.stage.data == "all")

    def _of_stage(self, measured: Sequence[Value]) -> dict[str, Any]:
        """What a record has only if the run has several stages, or a stage validates."""
        chosen = {
            metric: [
                m.value
                for m in measured
                if (m.metric, m.split) == (metric, "out") and m.domain in self.experiment.train_envs
            ]
            for metric in self.experiment.validation
        }
        number = {"stage": self.experiment.stage_number} if self.experiment.stages > 1 else {}
        return number | {f"val_{name}": float(np.mean(values)) for name, values in chosen.items()}

    def _save_checkpoint(self, progress: Progress) -> None:
        """By the first process; the others wait, as none may end before it is written."""
        self._saved = time.monotonic()
        ranks.together(
            lambda: checkpoint.save(
                self.folder, self.spec.run_id, self.algorithm, progress, self.averages.state()
            )
        )

    def _finish(self, progress: Progress) -> None:
        self.kept.at_end(self.experiment, self.averages)
        self.kept.remove_others()
        if self.options.save_predictions:
            save_predictions(self.experiment, self.folder)
        write_environment(self.folder, self.experiment, self.began, progress)
        check_guard(self.folder.path)
        self.folder.errors.unlink(missing_ok=True)
        self.folder.mark_done("".join(progress.records))
        checkpoint.remove(self.folder)
