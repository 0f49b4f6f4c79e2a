"""SWAD: the average of the weights between two updates that the loss of validation chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from domainbed.training.running_averages import Mean, State, Weights


class SWAD:
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

    def __init__(self, weights: Weights, n_converge: int, n_tolerance: int, ratio: float) -> None:
        self.n_converge, self.n_tolerance, self.ratio = n_converge, n_tolerance, ratio
        self.start = 0
        self.end: int | None = None
        self.limit: float | None = None
        self.mean = Mean(weights)  # since t_s; before it is known, until the first of `window`
        self.window: list[_Record] = []
        self.kept = self.mean  # as it was at the record `last_good`
        self.last_good, self.bad = 0, 0

    @property
    def weights(self) -> Weights:
        return self.mean.copy().add_all(list(_parts(self.window))).weights

    def add(self, weights: Weights) -> None:
        if self.end is not None:
            return
        if self.window:
            self.window[-1].add(weights)
        else:
            self.mean.add(weights)

    def add_recorded(self, weights: Weights, update: int, loss: float) -> dict[str, float]:
        if self.end is None and self.limit is None:
            self.window.append(_Record(update, loss, Mean(weights)))
            self._look_for_start()
        elif self.end is None:
            self.mean.add(weights)
            self._look_for_end(update, loss)
        return {"start": self.start, "end": update if self.end is None else self.end}

    def _look_for_start(self) -> None:
        if len(self.window) > self.n_converge:
            self.mean.add_all(list(_parts(self.window[:1])))
            del self.window[0]
        losses = [record.loss for record in self.window]
        if len(losses) < self.n_converge or not all(losses[0] <= loss for loss in losses):
            return
        limit = self.ratio * sum(losses) / len(losses)
        # As r is at least 1, the limit is below the first loss by rounding only.
        self.start, self.limit = self.window[0].update, max(limit, losses[0])
        first, *others = self.window
        self.window, self.mean = [], first.at
        self._look_for_end(first.update, first.loss)
        before = first
        for record in others:
            self.mean.add_all(before.after).add_all([record.at])
            self._look_for_end(record.update, record.loss)
            before = record

    def _look_for_end(self, update: int, loss: float) -> None:
        """What one record says; `mean` ends with the weights there."""
        assert self.limit is not None
        if loss <= self.limit:
            self.kept, self.last_good, self.bad = self.mean.copy(), update, 0
            return
        self.bad += 1
        if self.bad == self.n_tolerance:
            self.mean, self.end = self.kept, self.last_good

    def state(self) -> State:
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        means = {name: getattr(self, name).state() for name in ("mean", "kept")}
        return {**numbers, **means, "window": [record.state() for record in self.window]}

    def restore(self, state: State) -> None:
        for name in self._NUMBERS:
            setattr(self, name, state[name])
        device = self.mean.weights[0].device
        self.mean, self.kept = (Mean.restored(state[name], device) for name in ("mean", "kept"))
        self.window = [_Record.restored(record, device) for record in state["window"]]

    _NUMBERS = ("start", "end", "limit", "last_good", "bad")


class _Record:
    """A record that may turn out to be t_s: its weights, and the mean of those after it, if any."""

    def __init__(self, update: int, loss: float, at: Mean, after: Sequence[Mean] = ()) -> None:
        self.update, self.loss, self.at, self.after = update, loss, at, list(after)

    def add(self, weights: Weights) -> None:
        if self.after:
            self.after[0].add(weights)
        else:
            self.after.append(Mean(weights))

    def state(self) -> State:
        means = {"at": self.at.state(), "after": [mean.state() for mean in self.after]}
        return {"update": self.update, "loss": self.loss, **means}

    @classmethod
    def restored(cls, state: State, device: torch.device) -> _Record:
        after = [Mean.restored(mean, device) for mean in state["after"]]
        return cls(state["update"], state["loss"], Mean.restored(state["at"], device), after)


def _parts(records: Sequence[_Record]) -> Iterator[Mean]:
    for record in records:
        yield record.at
        yield from record.after
