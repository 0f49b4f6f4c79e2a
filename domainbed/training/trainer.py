"""Training one run, from its spec to its records."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainbed.algorithms import get_algorithm_class
from domainbed.datasets import get_dataset_class, load_dataset
from domainbed.errors import UserError
from domainbed.files import write_text, written_aside
from domainbed.images.packed import PackedDomain
from domainbed.run_folder import RunFolder
from domainbed.seeding import seed_everything
from domainbed.spec import RunSpec
from domainbed.training import checkpoint
from domainbed.training.checkpoint import Progress
from domainbed.training.environment import choose_device, describe
from domainbed.training.evaluation import Evaluator, splits_to_evaluate
from domainbed.training.minibatches import (
    IndexDraws,
    LoadedMinibatches,
    PackedMinibatches,
    TensorMinibatches,
    labels_of,
    tensor_domain,
)
from domainbed.training.progress import ProgressTable
from domainbed.training.splits import split_domains, without_unreadable


@dataclass(frozen=True)
class RunOptions:
    """What a run needs of the machine; nothing here changes its result.

    Attributes:
        data_dir: where the datasets lie.
        device: "cpu", "cuda", "mps"; None finds one.
        eval_splits: "needed" leaves the training domains' in-splits to the last record; "all"
            evaluates them at every record.
        skip_model_save: do not write the trained weights.
        save_model_every_checkpoint: write the weights at every record.
        num_workers: worker processes in all that read images; None chooses.
        echo: print the progress table on the terminal.
        on_step: called after every step with the number of steps taken.
    """

    data_dir: str = "data"
    device: str | None = None
    eval_splits: str = "needed"
    skip_model_save: bool = False
    save_model_every_checkpoint: bool = False
    num_workers: int | None = None
    echo: bool = False
    on_step: Callable[[int], None] | None = None


def run(spec: RunSpec, folder: RunFolder | Path | str, options: RunOptions | None = None) -> None:
    """Trains `spec` in `folder`: begins, goes on where a killed run stopped, or does nothing.

    Raises:
        Busy: another process is at work in the folder.
        UserError: the folder holds another run, or the spec does not fit the data.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    with folder.exclusive():
        _claim(folder, spec)
        if not folder.done.exists():
            Trainer(spec, folder, options or RunOptions()).train()


def _claim(folder: RunFolder, spec: RunSpec) -> None:
    """Writes down whose folder it is, or makes sure that it is this run's."""
    identity = json.loads(json.dumps(spec.identity()))
    owner = folder.read_json(folder.spec)
    if not folder.has_results():  # nothing to lose: a run that failed at its start, say
        write_text(folder.spec, json.dumps(identity, indent=2, sort_keys=True) + "\n")
    elif owner is None:
        raise UserError(
            f"{folder.path} holds results, but no run.json says of which run: choose another "
            "--output_dir"
        )
    elif owner != identity:
        changed = [name for name in identity if owner.get(name) != identity[name]]
        first = changed[0]
        raise UserError(
            f"{folder.path} holds another run ({first} is {owner.get(first)!r} there and "
            f"{identity[first]!r} here): choose another --output_dir"
        )


class Trainer:
    """One run under way. `train` is the loop; the rest is what it calls."""

    def __init__(self, spec: RunSpec, folder: RunFolder, options: RunOptions) -> None:
        self.spec, self.folder, self.options = spec, folder, options
        self.device = choose_device(options.device)
        self.hparams = spec.resolved_hparams()
        self.dataset = load_dataset(
            spec.dataset, options.data_dir, spec.test_envs, self.hparams, spec.trial_seed
        )
        self.train_envs = [e for e in range(len(self.dataset)) if e not in spec.test_envs]
        self.splits = split_domains(
            [len(domain) for domain in self.dataset],  # type: ignore[arg-type]
            spec.test_envs,
            spec.holdout_fraction,
            spec.trial_seed,
            spec.uda_holdout_fraction,
            getattr(self.dataset, "out_splits", None),
        )
        self.unreadable = [list(getattr(domain, "unreadable", ())) for domain in self.dataset]
        self.splits = without_unreadable(self.splits, self.unreadable)
        seed_everything(spec.seed)
        torch.backends.cudnn.deterministic = True
        self.algorithm = get_algorithm_class(spec.algorithm)(
            self.dataset.input_shape, self.dataset.num_classes, len(self.train_envs), self.hparams
        )
        # PyTorch's stubs know no overload with both a device and a memory format.
        self.algorithm.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.algorithm.train()
        self.resident = [tensor_domain(domain, self.device) for domain in self.dataset]
        self.evaluator = self._new_evaluator()
        self.table = ProgressTable(folder.out, options.echo, spec.steps, self._without_column())

    def train(self) -> None:
        """All steps that are left, with a record and a checkpoint at every interval."""
        progress = self._resume()
        history: dict[str, list[float]] = defaultdict(list)
        steps = range(progress.next_step, self.spec.steps)
        began = step_began = time.monotonic()
        for step, minibatches, unlabeled in zip(
            steps, self._minibatches(steps), self._unlabeled(steps)
        ):
            with self._precision():
                metrics = self.algorithm.update(minibatches, unlabeled)
            history["step_time"].append(time.monotonic() - step_began)
            for name, value in metrics.items():
                history[name].append(float(value))
            if self._is_recorded(step):
                line = self._record(step, history)
                history.clear()
                seconds = progress.seconds + time.monotonic() - began
                began = time.monotonic()
                progress = Progress(step + 1, (*progress.records, line), seconds)
                self._save(progress)
            if self.options.on_step:
                self.options.on_step(step + 1)
            step_began = time.monotonic()
        self._finish(progress)

    def _without_column(self) -> set[str]:
        """What the progress table leaves out, to be as wide as a terminal."""
        training = {f"env{e}_in_acc" for e in self.train_envs}
        return {"epoch"} | training | (set() if self.device.type == "cuda" else {"mem_gb"})

    def _resume(self) -> Progress:
        progress = checkpoint.load(self.folder.checkpoint, self.algorithm)
        if progress.next_step:
            self.table.line(f"Resuming at step {progress.next_step} of {self.spec.steps}")
        else:
            self.table.line(self.spec.describe())
            self.table.line(f"Hyper-parameters: {json.dumps(self.hparams, sort_keys=True)}")
            if skipped := sum(map(len, self.unreadable)):
                self.table.line(f"Images skipped, because they cannot be read: {skipped}")
            self._keep_earlier_records()
        # A kill may have come between a record and its checkpoint, or within the record's line.
        write_text(self.folder.results, "".join(progress.records))
        self._write_environment(progress)
        return progress

    def _keep_earlier_records(self) -> None:
        """Where the checkpoint of records is gone, they are to be made again; the old ones stay."""
        if self.folder.has_results():
            kept = self.folder.path / "results.before.jsonl"
            self.folder.results.replace(kept)
            self.table.line(f"No checkpoint to go on from: earlier records are kept in {kept}")

    def _is_recorded(self, step: int) -> bool:
        return step % self.spec.checkpoint_freq == 0 or step == self.spec.steps - 1

    def _record(self, step: int, history: Mapping[str, Sequence[float]]) -> str:
        """Evaluates, appends the record to results.jsonl, and returns its line."""
        batches_per_epoch = (
            min(len(split.inside) for split in self.splits) / self.hparams["batch_size"]
        )
        last = step == self.spec.steps - 1
        splits = splits_to_evaluate(
            self.splits, self.spec.test_envs, last or self.options.eval_splits == "all"
        )
        with self._precision():
            accuracies = self.evaluator.accuracies(self.algorithm, splits, step)
        record = {
            "step": step,
            "epoch": step / batches_per_epoch,
            **{name: float(np.mean(values)) for name, values in history.items()},
            **accuracies,
            "mem_gb": self._memory(),
        }
        self.table.record(record)
        record |= {"hparams": self.hparams, "args": self._args()}
        line = json.dumps(record, sort_keys=True) + "\n"
        with self.folder.results.open("a", encoding="utf-8") as stream:
            stream.write(line)
        return line

    def _save(self, progress: Progress) -> None:
        if self.options.save_model_every_checkpoint:
            self._save_model(self.folder.model_at(progress.next_step - 1))
        checkpoint.save(self.folder.checkpoint, self.algorithm, progress)

    def _finish(self, progress: Progress) -> None:
        if not self.options.skip_model_save:
            self._save_model(self.folder.model)
        self._write_environment(progress)
        self.folder.errors.unlink(missing_ok=True)
        write_text(self.folder.done, "done")
        self.folder.checkpoint.unlink(missing_ok=True)

    def _save_model(self, file: Any) -> None:
        """The weights with what is needed to rebuild the algorithm; the keys are DomainBed's."""
        with written_aside(file) as aside:
            torch.save(
                {
                    "args": self._args(),
                    "model_input_shape": tuple(self.dataset.input_shape),
                    "model_num_classes": self.dataset.num_classes,
                    "model_num_domains": len(self.train_envs),
                    "model_hparams": self.hparams,
                    "model_dict": self.algorithm.state_dict(),
                },
                aside,
            )

    def _args(self) -> dict[str, Any]:
        return {
            **self.spec.identity(),
            "hparams": json.dumps(self.spec.hparams) if self.spec.hparams else None,
            "environments": list(get_dataset_class(self.spec.dataset).ENVIRONMENTS),
            "data_dir": self.options.data_dir,
            "output_dir": str(self.folder.path),
            "skip_model_save": self.options.skip_model_save,
            "save_model_every_checkpoint": self.options.save_model_every_checkpoint,
        }

    def _write_environment(self, progress: Progress) -> None:
        facts = {**describe(self.device), "seconds": progress.seconds}
        write_text(self.folder.environment, json.dumps(facts, indent=2) + "\n")

    def _memory(self) -> float:
        """The peak of GPU memory so far, in GiB; 0 without a GPU, as in DomainBed."""
        on_gpu = self.device.type == "cuda"
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if on_gpu else 0.0

    def _precision(self) -> AbstractContextManager[Any]:
        if self.spec.precision == "bf16":
            # No cache of cast weights: an update that steps several times (Fish) would go on
            # with the weights from before its first step.
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def _minibatches(self, steps: range) -> Iterator[Any]:
        indices = {e: self.splits[e].inside for e in self.train_envs}
        balanced, augmented = self.hparams["class_balanced"], self.hparams["data_augmentation"]
        return self._source(indices, balanced, augmented).iterate(steps)

    def _unlabeled(self, steps: range) -> Iterator[list[torch.Tensor] | None]:
        if self.spec.task != "domain_adaptation":
            return iter([None] * len(steps))
        indices = {e: self.splits[e].unlabeled for e in self.spec.test_envs}
        # As in DomainBed, images of test domains are never augmented.
        source = self._source(indices, class_balanced=False, augment=False)
        return ([x for x, _ in pairs] for pairs in source.iterate(steps))

    def _source(
        self, indices: Mapping[int, list[int]], class_balanced: bool, augment: bool
    ) -> TensorMinibatches | PackedMinibatches | LoadedMinibatches:
        """Minibatches of the given domains' images, from the device, a pack, or files."""
        resident = [pair for e in indices if (pair := self.resident[e]) is not None]
        gathered = len(resident) == len(indices)
        draws = [
            IndexDraws(
                chosen,
                self.hparams["batch_size"],
                self.spec.seed,
                e,
                labels=labels_of(self.dataset[e], chosen) if class_balanced else None,
                device=self.device if gathered else "cpu",
            )
            for e, chosen in indices.items()
        ]
        if gathered:
            return TensorMinibatches(resident, draws)
        packed = isinstance(self.dataset[0], PackedDomain)
        return (PackedMinibatches if packed else LoadedMinibatches)(
            self.dataset.datasets,  # type: ignore[arg-type]
            draws,
            self.spec.seed,
            self.device,
            self._num_workers(),
            augment,
        )

    def _new_evaluator(self) -> Evaluator:
        augmented = self.spec.augment_validation and self.hparams["data_augmentation"]
        return Evaluator(
            self.dataset.datasets,
            self.resident,
            self.device,
            self._num_workers(),
            self.train_envs if augmented else (),
            self.spec.seed,
        )

    def _num_workers(self) -> int:
        """Readers in all, whatever the number of domains: one per core that PyTorch may use."""
        if self.options.num_workers is not None:
            return self.options.num_workers
        return min(8, torch.get_num_threads())
