"""Test-time adaptation of the finished runs of a sweep, as rows in the same tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from domainbed.algorithms import Algorithm
from domainbed.algorithms.t3a import SUPPORTS, Templates
from domainbed.config.run_fields import RunOptions
from domainbed.core.names import averaged_algorithm
from domainbed.errors import UserError
from domainbed.sweeps.averaging import Member, finished_runs
from domainbed.sweeps.beside import write_beside
from domainbed.training.experiment import Experiment
from domainbed.training.initial_weights import linear_head
from domainbed.training.trained import load_trained_weights, rebuild


@dataclass(frozen=True)
class Adapted:
    """What adaptation of one run came to.

    Attributes:
        member: the run.
        supports: M, which validated best; None where the run cannot be adapted.
        told: for people.
    """

    member: Member
    supports: int | None
    told: str

    def describe(self) -> str:
        """One line for people."""
        return f"{self.member.spec.describe()}: {self.told}"


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
) -> Iterator[Adapted]:
    """Adapts each finished run with T3A, and writes a record of it beside the run.

    M is the one of `supports` that validates best, on the out-splits of the training domains; of
    equal ones the first. A run that does not predict by a linear classifier is left out.

    Args:
        root: the folder of the sweep.
        algorithms: only their runs; None for all.
        supports: values of M.
        machine: where the data lies and what computes.
        dataset: see `trained.read_spec`.

    Raises:
        UserError: no finished runs, or weights that were not kept.
    """
    for member in finished_runs(root, algorithms, dataset):
        experiment = rebuild(member.folder, machine, dataset)
        load_trained_weights(experiment, member.folder)
        try:
            featurizer, head = linear_head(experiment)
        except UserError as error:
            yield Adapted(member, None, f"left out: {error}")
            continue
        yield _adapt(Path(root), experiment, member, featurizer, head, supports)


def _adapt(
    root: Path,
    experiment: Experiment,
    member: Member,
    featurizer: nn.Module,
    head: nn.Linear,
    supports: Sequence[int],
) -> Adapted:
    def with_supports(most: int) -> Experiment:
        return replace(experiment, algorithm=AdaptedHead(featurizer, head, most))

    accuracies = {most: with_supports(most).validation_accuracy() for most in supports}
    best = max(accuracies, key=lambda most: accuracies[most])
    spec = member.spec
    write_beside(
        root,
        averaged_algorithm(spec.algorithm, "T3A"),
        with_supports(best),
        runs=[spec.run_id],
        kind="adapted",
        hparams_seed=spec.hparams_seed,
        hparams={**spec.hparams, "t3a_supports": best},
    )
    return Adapted(member, best, f"M {best or 'all'}, validation {100 * accuracies[best]:.1f}")
