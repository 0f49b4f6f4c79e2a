"""Averages of a run's weights, beside any algorithm.

θ_t are the weights after update t, counted from 1, and θ_0 those that training starts with. An
average is of all parameters and floating-point buffers of an algorithm, and costs one pass over
them per update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.algorithms import Algorithm
from domainbed.algorithms.base import concatenate
from domainbed.algorithms.erm_plus_plus import mean_rate
from domainbed.core.minibatch import mapped
from domainbed.errors import UserError
from domainbed.training.experiment import Experiment

Weights = list[torch.Tensor]
State = dict[str, Any]

STATISTICS_BATCHES = 64
"""Minibatches of each training domain that re-estimate the statistics of batch norm."""


class Average(ABC):
    """One average of weights along a training.

    Attributes:
        stored: the names of the attributes that it depends on, beside its constructor's arguments.
    """

    stored: tuple[str, ...]

    @abstractmethod
    def current(self) -> Weights:
        """The average, if training ended here."""

    @abstractmethod
    def add(self, weights: Weights) -> None:
        """Takes the weights after an update that is not recorded."""

    def add_recorded(self, weights: Weights, update: int, loss: float) -> dict[str, float]:
        """Takes the weights after a recorded update, and their validation loss.

        Returns:
            what to record about the average.
        """
        self.add(weights)
        return {}

    def state(self) -> State:
        """All that the average depends on, as plain values, for `restore`."""
        return {name: getattr(self, name) for name in self.stored}

    def restore(self, state: State) -> None:
        """Continues from a state, whose tensors are on the device of the weights."""
        for name in self.stored:
            setattr(self, name, state[name])


class MovingAverage(Average):
    """θ̄_0 = θ_0, and θ̄_t = θ̄_{t−1} + r(t) · (θ_t − θ̄_{t−1}).

    The exponential one has r(t) = 1 − d, so that θ̄_t = d · θ̄_{t−1} + (1 − d) · θ_t. The simple one
    from update t₀ on (Arpit et al. 2022, arXiv 2110.10832, eq. 1) is θ_t for t ≤ t₀, and the mean
    of θ_{t₀} … θ_t from there on; the code of its authors begins one update earlier, with t₀ − 1.

    Args:
        weights: θ_0.
        rate: r.
    """

    stored = ("average", "updates")

    def __init__(self, weights: Weights, rate: Callable[[int], float]) -> None:
        self.average, self.rate, self.updates = copied(weights), rate, 0

    def current(self) -> Weights:
        return self.average

    def add(self, weights: Weights) -> None:
        self.updates += 1
        torch._foreach_lerp_(self.average, weights, self.rate(self.updates))


class WiSE(Average):
    """Between the first weights and the current ones (Wortsman et al. 2022, arXiv 2109.01903).

    θ̄_t = (1 − α) · θ_0 + α · θ_t

    Args:
        weights: θ_0, and the tensors in which training changes them.
        alpha: α.
    """

    stored = ("first",)

    def __init__(self, weights: Weights, alpha: float) -> None:
        self.first, self.last, self.alpha = copied(weights), weights, alpha

    def current(self) -> Weights:
        return list(torch._foreach_lerp(self.first, self.last, self.alpha))

    def add(self, weights: Weights) -> None:
        self.last = weights


@dataclass
class Mean:
    """The arithmetic mean of `count` weights, to which more can be added; of none, any weights."""

    weights: Weights
    count: int = 1

    def add(self, weights: Weights, count: int = 1) -> None:
        """Takes weights, or the mean of `count` of them."""
        self.count += count
        torch._foreach_lerp_(self.weights, weights, count / self.count)

    def add_all(self, means: Iterable[Mean]) -> None:
        for mean in means:
            self.add(mean.weights, mean.count)


@dataclass
class _Record:
    """A record that may turn out to be t_s: its weights, and the mean of those after it."""

    update: int
    loss: float
    at: Mean
    after: Mean


class SWAD(Average):
    """Stochastic weight averaging, densely (Cha et al. 2021, arXiv 2102.08604, algorithm 1).

    With the losses of validation E⁽¹⁾, E⁽²⁾, … at records, θ̄ is the mean of the weights after every
    update from t_s to t_e:

        t_s: the first record i with E⁽ⁱ⁾ = min(E⁽ⁱ⁾ … E⁽ⁱ⁺ᴺˢ⁻¹⁾), and then l = r · mean of these
        t_e: the first record i after it with l < min(E⁽ⁱ⁺¹⁾ … E⁽ⁱ⁺ᴺᵉ⁾)

    As in the algorithm, t_s = 0 as long as there is no such record, and t_e is the last update as
    long as there is none.

    Only what may still count is kept: of the last N_s records the weights at the record and the
    mean of those between it and the next one, until t_s is known; from then on the mean since t_s,
    and what it was at the last record that was not above l.

    Attributes:
        start, end: the updates t_s and t_e; 0 and None as long as they are not known.

    Args:
        weights: θ_0.
        n_converge: N_s.
        n_tolerance: N_e, at least N_s.
        ratio: r, at least 1.
    """

    stored = ("start", "end", "limit", "last_good", "bad")

    def __init__(self, weights: Weights, n_converge: int, n_tolerance: int, ratio: float) -> None:
        self.n_converge, self.n_tolerance, self.ratio = n_converge, n_tolerance, ratio
        self.start = 0
        self.end: int | None = None
        self.limit: float | None = None
        # Since t_s; before that is known, until the first of `window`.
        self.mean = Mean(copied(weights))
        self.window: list[_Record] = []
        self.kept = self.mean  # as it was at the record `last_good`
        self.last_good, self.bad = 0, 0

    def current(self) -> Weights:
        mean = deepcopy(self.mean)
        mean.add_all(part for record in self.window for part in (record.at, record.after))
        return mean.weights

    def add(self, weights: Weights) -> None:
        if self.end is None:
            last = self.window[-1].after if self.window else self.mean
            last.add(weights)

    def add_recorded(self, weights: Weights, update: int, loss: float) -> dict[str, float]:
        if self.end is None and self.limit is None:
            at, after = Mean(copied(weights)), Mean(copied(weights), 0)
            self.window.append(_Record(update, loss, at, after))
            self._look_for_start()
        elif self.end is None:
            self.mean.add(weights)
            self._look_for_end(update, loss)
        return {"start": self.start, "end": update if self.end is None else self.end}

    def _look_for_start(self) -> None:
        if len(self.window) > self.n_converge:
            oldest = self.window.pop(0)
            self.mean.add_all([oldest.at, oldest.after])
        losses = [record.loss for record in self.window]
        if len(losses) < self.n_converge or not all(losses[0] <= loss for loss in losses):
            return
        limit = self.ratio * sum(losses) / len(losses)
        # As r is at least 1, the limit is below the first loss by rounding only.
        self.start, self.limit = self.window[0].update, max(limit, losses[0])
        window, self.window = self.window, []
        self.mean = window[0].at
        self._look_for_end(window[0].update, window[0].loss)
        for before, record in pairwise(window):
            self.mean.add_all([before.after, record.at])
            self._look_for_end(record.update, record.loss)

    def _look_for_end(self, update: int, loss: float) -> None:
        """Takes the loss of a record; `mean` ends with the weights there."""
        assert self.limit is not None
        if loss <= self.limit:
            self.kept, self.last_good, self.bad = deepcopy(self.mean), update, 0
            return
        self.bad += 1
        if self.bad == self.n_tolerance:
            self.mean, self.end = self.kept, self.last_good

    def state(self) -> State:
        means = {"mean": asdict(self.mean), "kept": asdict(self.kept)}
        return {**super().state(), **means, "window": [asdict(record) for record in self.window]}

    def restore(self, state: State) -> None:
        super().restore(state)
        self.mean, self.kept = Mean(**state["mean"]), Mean(**state["kept"])
        self.window = [
            _Record(**{**record, "at": Mean(**record["at"]), "after": Mean(**record["after"])})
            for record in state["window"]
        ]


@dataclass
class _Segment:
    """The updates from `first` to the record at `last`, whose loss it is; or several segments.

    The mean is of the updates' weights, or of the segments' means. One without a count stands for
    a segment that the first that is taken replaces.
    """

    mean: Mean
    first: int = 0
    last: int = 0
    loss: float = 0.0

    def take(self, segment: _Segment) -> None:
        if self.mean.count == 0:
            self.first = segment.first
        self.last = segment.last
        self.mean.add(segment.mean.weights)


class AuthorsSWAD(Average):
    """SWAD as its authors' code has it (khanrc/swad 252190e, domainbed/swad.py, LossValley).

    A segment is the updates since the record before, and θ̄ is the mean of segments' means. With
    N_s, N_e, r and E⁽ⁱ⁾ as in `SWAD`, at the record k where E⁽ⁱ⁾ is the lowest of the last N_s for
    i = k − N_s + 1:

    - l = r · mean of these. The oldest N_e − N_s + 1 of the last N_e segments are taken, but for
      the first of them, and only after the one that follows the last of them above l.
    - At each later record the oldest of the last N_e segments is taken, unless it ends before
      segment i, until all of them are above l. So a segment may be taken more than once.
    - Where training ends before that, the others follow in turn as long as one is not above l.

    Before there is such a record, θ̄ is the last segment's mean; afterwards and until a segment is
    taken, segment i's.

    The arguments are those of `SWAD`.
    """

    stored = ("limit", "dead", "converged")

    def __init__(self, weights: Weights, n_converge: int, n_tolerance: int, ratio: float) -> None:
        self.n_converge, self.n_tolerance, self.ratio = n_converge, n_tolerance, ratio
        self.limit: float | None = None
        self.dead, self.converged = False, 0
        self.running = Mean(copied(weights), 0)  # since the last record
        self.segments: list[_Segment] = []  # the last N_e
        self.taken = _Segment(Mean(copied(weights), 0))

    def current(self) -> Weights:
        return self._final().mean.weights

    def add(self, weights: Weights) -> None:
        self.running.add(weights)

    def add_recorded(self, weights: Weights, update: int, loss: float) -> dict[str, float]:
        self.add(weights)
        if not self.dead:
            first = self.segments[-1].last + 1 if self.segments else 1
            new = _Segment(self.running, first, update, loss)
            self.segments = [*self.segments, new][-self.n_tolerance :]
            self.running = Mean(copied(weights), 0)
            if self.limit is None:
                self._look_for_start()
            elif self.segments[0].last >= self.converged:
                self.dead = min(segment.loss for segment in self.segments) > self.limit
                if not self.dead:
                    self.taken.take(self.segments[0])
        final = self._final()
        return {"start": final.first, "end": final.last}

    def _look_for_start(self) -> None:
        window = self.segments[-self.n_converge :]
        losses = [segment.loss for segment in window]
        if len(losses) < self.n_converge or losses[0] > min(losses):
            self.taken = _untaken(self.segments[-1])
            return
        self.limit = self.ratio * sum(losses) / len(losses)
        self.converged, self.taken = window[0].last, _untaken(window[0])
        oldest = self.segments[: self.n_tolerance - self.n_converge + 1]
        above = [place for place, segment in enumerate(oldest) if segment.loss > self.limit]
        for segment in oldest[above[-1] + 2 if above else 1 :]:
            self.taken.take(segment)

    def _final(self) -> _Segment:
        """What is taken if training ends here."""
        final, others = deepcopy(self.taken), self.segments[1:]
        while self.limit is not None and not self.dead and others:
            if min(segment.loss for segment in others) > self.limit:
                break
            final.take(others.pop(0))
        return final

    def state(self) -> State:
        parts = {"running": asdict(self.running), "taken": asdict(self.taken)}
        return {**super().state(), **parts, "segments": [asdict(each) for each in self.segments]}

    def restore(self, state: State) -> None:
        super().restore(state)
        self.running = Mean(**state["running"])
        self.taken, *self.segments = (
            _Segment(**{**each, "mean": Mean(**each["mean"])})
            for each in (state["taken"], *state["segments"])
        )


def _untaken(segment: _Segment) -> _Segment:
    return replace(segment, mean=Mean(copied(segment.mean.weights), 0))


def copied(weights: Weights) -> Weights:
    return [each.detach().clone() for each in weights]


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
        kinds: dict[str, Callable[[Weights], Average]] = {
            "ema": lambda theta: MovingAverage(theta, lambda t: 1 - spec.ema_decay),
            "sma": lambda theta: MovingAverage(theta, lambda t: mean_rate(t, spec.sma_start + 1)),
            "swad": lambda theta: (SWAD if spec.swad_rule == "paper" else AuthorsSWAD)(
                theta, spec.swad_n_converge, spec.swad_n_tolerance, spec.tolerance_ratio
            ),
            "wise": lambda theta: WiSE(theta, spec.wise_alpha),
        }
        self._by_name: dict[str, Average] = {
            name: kinds[name](self._weights()) for name in spec.averages
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def add(self) -> None:
        """Called after each update that is not recorded."""
        for average in self._by_name.values():
            average.add(self._weights())

    def add_recorded(self, update: int, loss: float) -> dict[str, float]:
        """Called after each recorded update, with the validation loss.

        Returns:
            what to record about the averages.
        """
        return {
            f"{name}_{key}": value
            for name, average in self._by_name.items()
            for key, value in average.add_recorded(self._weights(), update, loss).items()
        }

    @contextmanager
    def in_place(self, name: str) -> Iterator[None]:
        """The algorithm has the averaged weights here, and its own again afterwards.

        The running statistics of batch norm that trains are estimated again, on the first
        minibatches of the run.
        """
        algorithm = self._experiment.algorithm
        weights = self._weights()
        # The numbers of batches that trained batch norm layers have seen are no weights.
        numbers = [layer.num_batches_tracked for layer in _training_batch_norms(algorithm)]
        counts = [number for number in numbers if number is not None]
        before = copied([*weights, *counts])
        torch._foreach_copy_(weights, self._by_name[name].current())
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
            average.restore(mapped(lambda own: own.to(self._experiment.device), state[name]))

    def _weights(self) -> Weights:
        algorithm = self._experiment.algorithm
        found = {**dict(algorithm.named_parameters()), **dict(algorithm.named_buffers())}
        return [found[name].detach() for name in self._names]


@torch.no_grad()
def estimate_statistics(experiment: Experiment) -> None:
    """Estimates the running statistics of batch norm that trains, at the current weights.

    They are of the first minibatches of the run: no pass has seen the activations of averaged
    weights yet.
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


def _training_batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers that normalise by the batch, and keep running statistics to predict with."""
    layers = [each for each in network.modules() if isinstance(each, _BatchNorm)]
    return [each for each in layers if each.training and each.track_running_stats]


def _batches(algorithm: Algorithm, minibatches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """The inputs that the algorithm's passes see at once: by domain, or of all domains."""
    apart = algorithm.predicts_batches or getattr(algorithm, "passes_by_domain", False)
    return [x for x, _ in minibatches] if apart else [concatenate(minibatches)[0]]
