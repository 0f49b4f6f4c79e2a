"""The averages of the weights of a run, beside any algorithm.

An average is of all parameters and floating-point buffers of an algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.algorithms import Algorithm
from domainbed.algorithms.base import concatenate
from domainbed.errors import UserError
from domainbed.spec import RunSpec
from domainbed.training.experiment import Experiment
from domainbed.training.running_averages import EMA, SMA, Average, State, Weights, WiSE, copied
from domainbed.training.swad import SWAD

STATISTICS_BATCHES = 64
"""Minibatches of each training domain that re-estimate the statistics of batch norm."""


class Averages:
    """The averages that a run's spec asks for, over the algorithm of its experiment.

    Args:
        experiment: as it is before its first update.

    Raises:
        UserError: the run has several stages, or no weights.
    """

    def __init__(self, experiment: Experiment) -> None:
        spec, self._experiment = experiment.spec, experiment
        if spec.averages and len(experiment.algorithm.training_stages()) > 1:
            raise UserError(
                f"averages is {list(spec.averages)}, and the run has several stages, each with a "
                "model of its own: leave averages out, or choose hyper-parameters with one stage",
                "averages",
            )
        algorithm = experiment.algorithm
        buffers = [name for name, each in algorithm.named_buffers() if each.is_floating_point()]
        self._names = [*(name for name, _ in algorithm.named_parameters()), *buffers]
        if spec.averages and not self._names:
            raise UserError(
                f"averages is {list(spec.averages)}, and {spec.algorithm} has no weights: leave "
                "averages out",
                "averages",
            )
        weights = self._weights() if spec.averages else []
        self._by_name: dict[str, Average] = {
            name: _new_average(name, spec, weights) for name in spec.averages
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def add(self) -> None:
        """To be called after each update that is not recorded."""
        if self._by_name:
            weights = self._weights()
            for average in self._by_name.values():
                average.add(weights)

    def add_recorded(self, update: int, loss: float) -> dict[str, float]:
        """To be called after each recorded update, with the loss of validation.

        Returns:
            what to record of the averages.
        """
        weights = self._weights() if self._by_name else []
        return {
            f"{name}_{key}": value
            for name, average in self._by_name.items()
            for key, value in average.add_recorded(weights, update, loss).items()
        }

    @contextmanager
    def in_place(self, name: str) -> Iterator[None]:
        """The algorithm has the averaged weights here; those that it had come back.

        The running statistics of batch norm that trains are estimated anew, on the first
        minibatches of the run.
        """
        algorithm = self._experiment.algorithm
        weights, counts = self._weights(), _batch_counts(algorithm)
        before = copied([*weights, *counts])
        torch._foreach_copy_(weights, self._by_name[name].weights)
        try:
            estimate_statistics(self._experiment)
            yield
        finally:
            torch._foreach_copy_([*weights, *counts], before)

    def state(self) -> State:
        """For a checkpoint."""
        return {name: average.state() for name, average in self._by_name.items()}

    def restore(self, state: State) -> None:
        for name, average in self._by_name.items():
            average.restore(state[name])

    def _weights(self) -> Weights:
        algorithm = self._experiment.algorithm
        found = {**dict(algorithm.named_parameters()), **dict(algorithm.named_buffers())}
        return [found[name].detach() for name in self._names]


@torch.no_grad()
def estimate_statistics(experiment: Experiment) -> None:
    """Estimates running statistics of batch norm that trains, at the weights that there are.

    They are those of the first minibatches of the run: no minibatch has shown the activations of
    averaged weights yet.
    """
    algorithm = experiment.algorithm
    layers = _training_batch_norms(algorithm)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    algorithm.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over minibatches, and not a moving one
        layer.train()
    with experiment.precision():
        for minibatches in experiment.minibatches(
            range(min(STATISTICS_BATCHES, experiment.spec.steps))
        ):
            for x in _batches(algorithm, minibatches):
                algorithm.predict(x)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
    algorithm.train()


def _new_average(name: str, spec: RunSpec, weights: Weights) -> Average:
    if name == "ema":
        return EMA(weights, spec.ema_decay)
    if name == "sma":
        return SMA(weights, spec.sma_start)
    if name == "wise":
        return WiSE(weights, spec.wise_alpha)
    return SWAD(weights, spec.swad_n_converge, spec.swad_n_tolerance, spec.tolerance_ratio)


def _training_batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Those that normalise by the batch, and keep running statistics to predict with."""
    layers = [each for each in network.modules() if isinstance(each, _BatchNorm)]
    return [each for each in layers if each.training and each.track_running_stats]


def _batch_counts(network: nn.Module) -> Weights:
    """The numbers of batches that trained batch norm layers have seen, which are no weights."""
    counts = [layer.num_batches_tracked for layer in _training_batch_norms(network)]
    return [count for count in counts if count is not None]


def _batches(algorithm: Algorithm, minibatches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """The inputs that the algorithm's passes see at once: by domain, or of all domains."""
    apart = algorithm.predicts_batches or getattr(algorithm, "passes_by_domain", False)
    return [x for x, _ in minibatches] if apart else [concatenate(minibatches)[0]]
