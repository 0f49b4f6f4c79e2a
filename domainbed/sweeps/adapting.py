"""Test-time adaptation of the finished runs of a sweep, as rows in the same tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from domainbed.algorithms import Algorithm
from domainbed.algorithms.t3a import SUPPORTS, Templates
from domainbed.config.run_fields import RunOptions
from domainbed.core.names import averaged_algorithm
from domainbed.errors import UserError
from domainbed.sweeps.averaging import finished_runs, write_beside
from domainbed.training.initial_weights import linear_head
from domainbed.training.trained import load_trained_weights, rebuild


class AdaptedHead(Algorithm):
    """A trained featurizer with a linear classifier that T3A adjusts."""

    predicts_batches = True

    def __init__(self, featurizer: nn.Module, head: nn.Linear, supports: int) -> None:
        nn.Module.__init__(self)
        self.featurizer, self.head, self.supports = featurizer, head, supports

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        templates = Templates(self.head, self.supports)
        return lambda x: templates(self.featurizer(x))


def adapt_runs(
    root: Path | str,
    algorithms: Sequence[str] | None = None,
    supports: Sequence[int] = SUPPORTS,
    machine: RunOptions | None = None,
    dataset: str | None = None,
) -> Iterator[str]:
    """Adapts each finished run with T3A, writes a record of it beside the run, and yields a line.

    M is the one of `supports` that validates best, on the out-splits of the training domains; of
    equal ones the first. A run that does not predict by a linear classifier is left out.

    Args:
        root: the folder of the sweep.
        algorithms: only their runs; None for all.
        supports: values of M.
        machine: where the data lies and what computes.
        dataset: see `trained.read_spec`.

    Raises:
        UserError: no finished runs, none that can be adapted, or weights that were not kept.
    """
    adapted_runs = 0
    for member in finished_runs(root, algorithms, dataset):
        spec, experiment = member.spec, rebuild(member.folder, machine, dataset)
        load_trained_weights(experiment, member.folder)
        try:
            parts = linear_head(experiment)
        except UserError as error:
            yield f"{spec.describe()}: left out: {error}"
            continue
        adapted = {m: replace(experiment, algorithm=AdaptedHead(*parts, m)) for m in supports}
        accuracies = {m: each.validation_accuracy() for m, each in adapted.items()}
        best = max(accuracies, key=lambda m: accuracies[m])
        write_beside(
            Path(root),
            averaged_algorithm(spec.algorithm, "T3A"),
            adapted[best],
            runs=[spec.run_id],
            kind="adapted",
            hparams_seed=spec.hparams_seed,
            hparams={**spec.hparams, "t3a_supports": best},
        )
        accuracy = f"validation {100 * accuracies[best]:.1f}"
        yield f"{spec.describe()}: M {best or 'all'}, {accuracy}"
        adapted_runs += 1
    if not adapted_runs:
        raise UserError(f"no run in {str(root)!r} predicts by a linear classifier on features")
