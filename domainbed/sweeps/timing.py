"""How long runs will take, measured on a few updates where no run is finished yet."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from domainbed.config.run_fields import RunOptions
from domainbed.spec import RunSpec
from domainbed.training.evaluation import EvaluationSplit, Evaluator, splits_to_evaluate
from domainbed.training.experiment import Experiment, build
from domainbed.training.machine import process_set_up

UPDATES = 10
IMAGES = 256
SECONDS = 20.0
"""After so many seconds no further update is measured."""

RECORD_BYTES = 2_000
"""What a line of results.jsonl takes, most of it what defines the run."""


@dataclass(frozen=True)
class Timing:
    """The speed of a dataset's runs.

    Attributes:
        update: seconds per image of an update.
        evaluation: seconds per image of an evaluation.
        train_domains: how many domains an update draws a minibatch of.
        images: that a record evaluates.
        updates: how many were measured.
        device: "cpu", "cuda" or "mps".
        model_bytes: of the weights.
    """

    update: float
    evaluation: float
    train_domains: int
    images: int
    updates: int
    device: str
    model_bytes: int

    def seconds(self, runs: Iterable[RunSpec]) -> float:
        """Of all runs, one after the other."""
        total = 0.0
        for run in runs:
            records = _records(run)
            images = run.hparams["batch_size"] * self.train_domains
            total += run.steps * images * self.update + records * self.images * self.evaluation
        return total

    def disk(self, run: RunSpec, options: RunOptions) -> int:
        """Bytes that a run leaves, but for predictions."""
        records = _records(run)
        at_records = {"all": records, "selected": 1 + len(run.averages)}.get(options.weights, 0)
        models = (options.weights != "none") * (1 + len(run.averages)) + at_records
        return models * self.model_bytes + records * RECORD_BYTES


def _records(run: RunSpec) -> int:
    return len(range(0, run.steps, run.checkpoint_freq))


def measure(spec: RunSpec, options: RunOptions, threads: int) -> Timing:
    """Does a few updates of a run, and a part of an evaluation; nothing is written.

    Args:
        spec: of the run.
        options: where the data lies and what computes.
        threads: of PyTorch, as a worker of the sweep has them.

    Raises:
        UserError: see `training.experiment.build`.
    """
    with process_set_up(threads):
        experiment = build(spec, options)
        updates, seconds = _updates(experiment)
        images = spec.hparams["batch_size"] * len(experiment.train_envs)
        everything = spec.eval_splits == "all"
        splits = splits_to_evaluate(experiment.splits, spec.test_envs, everything)
        return Timing(
            update=seconds / (updates * images),
            evaluation=_evaluation(experiment, splits[0]),
            train_domains=len(experiment.train_envs),
            images=sum(len(split.indices) for split in splits),
            updates=updates,
            device=experiment.device.type,
            model_bytes=_weights_bytes(experiment),
        )


def _updates(experiment: Experiment) -> tuple[int, float]:
    """How many updates were timed, and their seconds; the first, which sets up, is not."""
    done, began = 0, time.monotonic()
    steps = range(UPDATES + 1)
    for minibatches, unlabeled in zip(experiment.minibatches(steps), experiment.unlabeled(steps)):
        with experiment.precision():
            metrics = experiment.algorithm.update(minibatches, unlabeled)
        list(map(float, metrics.values()))  # waits for a GPU
        if done == 0:
            began = time.monotonic()
        done += 1
        if done > 1 and time.monotonic() - began > SECONDS:
            break
    return done - 1, time.monotonic() - began


def _evaluation(experiment: Experiment, split: EvaluationSplit) -> float:
    """Seconds per image."""
    evaluator = Evaluator(experiment.domains, experiment.workers, metrics=experiment.spec.metrics)
    part = EvaluationSplit(split.domain, split.name, split.indices[:IMAGES])
    began = time.monotonic()
    with experiment.precision():
        evaluator.evaluate(experiment.algorithm, [part], 0)
    return (time.monotonic() - began) / len(part.indices)


def _weights_bytes(experiment: Experiment) -> int:
    """Of the weights as a file holds them: those that several modules share, once."""
    state = experiment.algorithm.state_dict().values()
    tensors = [value for value in state if isinstance(value, torch.Tensor)]
    return sum({each.data_ptr(): each.nbytes for each in tensors}.values())
