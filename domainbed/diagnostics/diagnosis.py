"""The diagnosis of a trained run: what its domains agree on, before and after training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.config.diagnosis_options import CURVATURES, DiagnosisOptions
from domainbed.config.run_fields import RunOptions
from domainbed.diagnostics.comparison import Closeness, Comparison, closeness, compare
from domainbed.diagnostics.curvature import (
    DIAGONAL_CURVATURES,
    full_hessian,
    gradient_mean,
    gradient_variance,
)
from domainbed.diagnostics.inconsistency import (
    Pair,
    diagonal_ratios,
    full_ratios,
    pairs,
    score,
)
from domainbed.diagnostics.landscape import (
    Line,
    Plane,
    filter_normalised_direction,
    risks_along,
    risks_on_plane,
)
from domainbed.diagnostics.reading import features, network_of, sampled
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.training.experiment import Experiment
from domainbed.training.trained import load_trained_weights, rebuild

_LINE = [i / 20 for i in range(-10, 31)]
_PLANE_X = [i / 10 for i in range(-5, 16)]
_PLANE_Y = [i / 10 for i in range(-10, 11)]


@dataclass(frozen=True)
class Domain:
    """A domain that was looked at."""

    number: int
    name: str
    is_training: bool
    images: int


@dataclass(frozen=True)
class Inconsistency:
    """The score under one kind of curvature.

    Attributes:
        score: over pairs of training domains, which the theory speaks of; None if there is one.
        score_with_test: over pairs of all domains.
        pairs: all ordered pairs.
        damped: how many curvatures of each domain lie below the damping.
    """

    score: float | None
    score_with_test: float | None
    pairs: list[Pair]
    damped: list[int]


@dataclass(frozen=True)
class Stage:
    """All that was measured at one set of weights; lists have an entry per domain.

    Attributes:
        risks: mean cross-entropies, in nats.
        accuracies: fractions of right predictions.
        gradient_means: of the classifier's gradients.
        gradient_variances: of the classifier's gradients.
        inconsistency: by curvature.
        closeness_to_hessian: by curvature, if the diagonal Hessian is among them.
    """

    risks: list[float]
    accuracies: list[float]
    gradient_means: Comparison
    gradient_variances: Comparison
    inconsistency: dict[str, Inconsistency]
    closeness_to_hessian: dict[str, Closeness]


@dataclass(frozen=True)
class Landscape:
    """Risks of two domains around the weights: of the network, and of the classifier alone."""

    domains: list[int]
    line: Line
    plane: Plane


@dataclass(frozen=True)
class Diagnosis:
    """A run, before and after its training. `rendering` shows it.

    Attributes:
        run: the run in words.
        spec: its identity, as in run.json.
        epsilon, damping: as in `DiagnosisOptions`.
        parameters: of the classifier.
        domains: those that all lists follow.
        before: at the weights that training began with.
        after: at the trained weights.
        landscape: if it was asked for.
    """

    run: str
    spec: dict[str, Any]
    epsilon: float
    damping: float
    parameters: int
    domains: list[Domain]
    before: Stage
    after: Stage
    landscape: Landscape | None


@dataclass(frozen=True)
class _Samples:
    """A classifier in double precision, and all domains' (features, labels) to apply it to."""

    head: nn.Module
    pairs: list[tuple[torch.Tensor, torch.Tensor]]


def diagnose(folder: Path | str, options: DiagnosisOptions | None = None) -> Diagnosis:
    """Looks at a trained run's classifier on its training and test domains.

    Raises:
        UserError: an option is wrong, the folder holds no finished run with its weights, its
            algorithm has no featurizer and classifier, or training diverged.
    """
    options = options or DiagnosisOptions()
    _check(options)
    run = RunFolder(folder)
    machine = RunOptions(
        data_dir=options.data_dir, device=options.device, num_workers=options.num_workers
    )
    experiment = rebuild(run, machine, options.dataset)
    looked_at = _LookedAt(
        experiment,
        network_of(experiment),
        [sampled(experiment, e, options.samples) for e in range(len(experiment.domains))],
    )
    domains = _domains(looked_at)
    chosen = _chosen_for_landscape(options, domains)
    initial = looked_at.parameters()
    samples_before = _samples(looked_at)
    before = _stage(samples_before, domains, options)
    load_trained_weights(experiment, run)
    samples_after = _samples(looked_at)
    after = _stage(samples_after, domains, options)
    landscape = None
    if chosen:
        line = _line(looked_at, initial, chosen)
        plane = _plane(samples_before.head, samples_after, chosen, experiment.spec.seed)
        landscape = Landscape(chosen, line, plane)
    return Diagnosis(
        run=experiment.spec.describe(),
        spec=experiment.spec.as_json(),
        epsilon=options.epsilon,
        damping=options.damping,
        parameters=sum(p.numel() for p in samples_after.head.parameters()),
        domains=domains,
        before=before,
        after=after,
        landscape=landscape,
    )


@dataclass(frozen=True)
class _LookedAt:
    """An experiment, its network, and the positions of the images looked at, by domain."""

    experiment: Experiment
    network: nn.Sequential
    indices: list[list[int]]

    def parameters(self) -> dict[str, torch.Tensor]:
        """A copy of the network's parameters as they are now."""
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}


def _check(options: DiagnosisOptions) -> None:
    unknown = [name for name in options.curvatures if name not in CURVATURES]
    if unknown:
        raise UserError(f"unknown curvature {unknown[0]!r}: known are {', '.join(CURVATURES)}")
    rules = [
        ("epsilon", 0 < options.epsilon < float("inf"), "a number above 0"),
        ("damping", 0 < options.damping < float("inf"), "a number above 0"),
        ("samples", options.samples >= 0, "0 (all) or more"),
        ("num_workers", options.num_workers >= 0, "0 or more"),
        ("landscape", len(set(options.landscape or ())) in (0, 2), "two domains"),
    ]
    for name, holds, expected in rules:
        if not holds:
            raise UserError(f"{name} is {getattr(options, name)!r}: expected {expected}")


def _domains(looked_at: _LookedAt) -> list[Domain]:
    experiment = looked_at.experiment
    return [
        Domain(number, name, number in experiment.train_envs, len(looked_at.indices[number]))
        for number, name in enumerate(experiment.domain_names)
    ]


def _chosen_for_landscape(options: DiagnosisOptions, domains: list[Domain]) -> list[int]:
    if options.landscape is None:
        return []
    if not options.landscape:
        training_first = sorted(domains, key=lambda domain: not domain.is_training)
        return [domain.number for domain in training_first[:2]]
    outside = [d for d in options.landscape if not 0 <= d < len(domains)]
    if outside:
        raise UserError(
            f"landscape of domain {outside[0]}: expected numbers between 0 and {len(domains) - 1}"
        )
    return list(options.landscape)


def _samples(looked_at: _LookedAt) -> _Samples:
    head = copy.deepcopy(looked_at.network[1]).cpu().double()
    return _Samples(
        head,
        [
            features(looked_at.experiment, looked_at.network, domain, indices)
            for domain, indices in enumerate(looked_at.indices)
        ],
    )


def _stage(samples: _Samples, domains: list[Domain], options: DiagnosisOptions) -> Stage:
    risks, accuracies = _risks_and_accuracies(samples)
    diagonals = {
        name: _per_domain(DIAGONAL_CURVATURES[name], samples)
        for name in DIAGONAL_CURVATURES
        if name in options.curvatures
    }
    ratios = {name: diagonal_ratios(d, options.damping) for name, d in diagonals.items()}
    if "full_hessian" in options.curvatures:
        ratios["full_hessian"] = full_ratios(_per_domain(full_hessian, samples), options.damping)
    exact = diagonals.pop("hessian", None)
    return Stage(
        risks=risks.tolist(),
        accuracies=accuracies.tolist(),
        gradient_means=compare(_per_domain(gradient_mean, samples)),
        gradient_variances=compare(_per_domain(gradient_variance, samples)),
        inconsistency={
            name: _inconsistency(domains, risks, *found, options.epsilon)
            for name, found in ratios.items()
        },
        closeness_to_hessian={}
        if exact is None
        else {name: closeness(diagonal, exact) for name, diagonal in diagonals.items()},
    )


@torch.no_grad()
def _risks_and_accuracies(samples: _Samples) -> tuple[torch.Tensor, torch.Tensor]:
    """(E,) mean cross-entropies and (E,) fractions of right predictions."""
    logits = [samples.head(features) for features, _ in samples.pairs]
    labels = [y for _, y in samples.pairs]
    risks = torch.stack([F.cross_entropy(s, y) for s, y in zip(logits, labels)])
    if not risks.isfinite().all():
        raise UserError(
            f"the risks are {risks.tolist()}: training diverged; train with a smaller 'lr'"
        )
    hits = [(s.argmax(dim=1) == y).double() for s, y in zip(logits, labels)]
    return risks, torch.stack([domain_hits.mean() for domain_hits in hits])


def _per_domain(quantity: Any, samples: _Samples) -> torch.Tensor:
    """(E, …): `quantity(head, features, labels)` of every domain."""
    return torch.stack([quantity(samples.head, z, y) for z, y in samples.pairs])


def _inconsistency(
    domains: list[Domain],
    risks: torch.Tensor,
    ratios: torch.Tensor,
    damped: torch.Tensor,
    epsilon: float,
) -> Inconsistency:
    numbers = [domain.number for domain in domains]
    found = pairs(numbers, risks, ratios, epsilon)
    training = [domain.number for domain in domains if domain.is_training]
    return Inconsistency(score(found, training), score(found, numbers), found, damped.tolist())


def _line(looked_at: _LookedAt, initial: dict[str, torch.Tensor], chosen: list[int]) -> Line:
    experiment, trained = looked_at.experiment, looked_at.parameters()
    batches = [
        experiment.domains[d].evaluation_batches(looked_at.indices[d], workers=experiment.workers)
        for d in chosen
    ]
    risks = [risks_along(looked_at.network, initial, trained, _LINE, each) for each in batches]
    return Line(_LINE, risks)


def _plane(before: nn.Module, after: _Samples, chosen: list[int], seed: int) -> Plane:
    """On the trained featurizer's features."""
    start = {name: p.detach() for name, p in before.named_parameters()}
    end = {name: p.detach() for name, p in after.head.named_parameters()}
    step = {name: end[name] - start[name] for name in start}
    aside = filter_normalised_direction(end, seed)
    risks = [
        risks_on_plane(after.head, start, step, aside, _PLANE_X, _PLANE_Y, *after.pairs[domain])
        for domain in chosen
    ]
    return Plane(_PLANE_X, _PLANE_Y, risks)
