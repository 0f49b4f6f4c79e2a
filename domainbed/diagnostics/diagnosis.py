"""The diagnosis of a trained run: what its domains agree on, before and after training."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.config.run_fields import DiagnosisOptions, RunOptions
from domainbed.core.seeding import split_seed
from domainbed.diagnostics.curvature import (
    DIAGONAL_CURVATURES,
    Closeness,
    Comparison,
    Curvature,
    closeness,
    compare,
    full_hessian,
    gradient_mean,
    gradient_variance,
)
from domainbed.diagnostics.inconsistency import (
    Inconsistency,
    diagonal_ratios,
    full_ratios,
    inconsistency,
)
from domainbed.diagnostics.landscape import (
    LINE,
    Landscape,
    Line,
    parameters_of,
    plane_of,
    risks_along,
)
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.training.experiment import Experiment
from domainbed.training.trained import load_trained_weights, rebuild


@dataclass(frozen=True)
class DiagnosedDomain:
    """A domain, and how many of its images were looked at."""

    number: int
    name: str
    is_training: bool
    images: int


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
class Diagnosis:
    """A run, before and after its training. `rendering` shows it.

    Attributes:
        run: the run in words.
        spec: its identity, as in run.json.
        epsilon, damping: as in `DiagnosisOptions`.
        parameters: of the classifier.
        domains: those that all lists follow.
        before: at the initial weights.
        after: at the trained weights.
        landscape: if it was asked for.
    """

    run: str
    spec: dict[str, Any]
    epsilon: float
    damping: float
    parameters: int
    domains: list[DiagnosedDomain]
    before: Stage
    after: Stage
    landscape: Landscape | None


@dataclass(frozen=True)
class _Measurements:
    """A copy of the classifier in double precision, with all domains' (features, labels) for it."""

    head: nn.Module
    samples: list[tuple[torch.Tensor, torch.Tensor]]

    def of_each(self, quantity: Curvature) -> torch.Tensor:
        """(E, …): `quantity(head, features, labels)` of every domain."""
        return torch.stack([quantity(self.head, *pair) for pair in self.samples])


def diagnose(folder: Path | str, options: DiagnosisOptions | None = None) -> Diagnosis:
    """Looks at a trained run's classifier on its training and test domains.

    Raises:
        UserError: the folder holds no finished run with its weights, the run has no such domain,
            its algorithm has no featurizer and classifier, or training diverged.
    """
    options = options or DiagnosisOptions()
    run = RunFolder(folder)
    machine = RunOptions(
        data_dir=options.data_dir, device=options.device, num_workers=options.num_workers
    )
    experiment = rebuild(run, machine, options.dataset)
    network = _network(experiment)
    indices = [_chosen(experiment, e, options.samples) for e in range(len(experiment.domains))]
    domains = [
        DiagnosedDomain(number, name, number in experiment.train_envs, len(indices[number]))
        for number, name in enumerate(experiment.domain_names)
    ]
    of_landscape = _of_landscape(options, domains)
    initial, before = parameters_of(network), _measurements(experiment, network, indices)
    stage_before = _stage(before, domains, options)
    load_trained_weights(experiment, run)
    after = _measurements(experiment, network, indices)
    landscape = None
    if of_landscape:
        trained = parameters_of(network)
        images = (experiment.batches(d, indices[d]) for d in of_landscape)
        risks = [risks_along(network, initial, trained, LINE, batches) for batches in images]
        samples = [after.samples[d] for d in of_landscape]
        plane = plane_of(before.head, after.head, samples, experiment.spec.seed)
        landscape = Landscape(of_landscape, Line(LINE, risks), plane)
    return Diagnosis(
        run=experiment.spec.describe(),
        spec=experiment.spec.as_json(),
        epsilon=options.epsilon,
        damping=options.damping,
        parameters=sum(p.numel() for p in after.head.parameters()),
        domains=domains,
        before=stage_before,
        after=_stage(after, domains, options),
        landscape=landscape,
    )


def _network(experiment: Experiment) -> nn.Sequential:
    """The featurizer and the classifier that the algorithm predicts with, in evaluation mode.

    Raises:
        UserError: labels are not classes; the algorithm has no such parts, or looks at more than
            them to predict.
    """
    if experiment.label_type.kind != "classes":
        raise UserError(
            f"{experiment.spec.describe()} cannot be diagnosed: labels are "
            f"{experiment.spec.labels!r}, and risks and curvatures are of the cross-entropy of "
            "classes"
        )
    if experiment.algorithm.predicts_batches:
        raise UserError(
            f"{experiment.spec.algorithm} cannot be diagnosed: its predictions depend on the other "
            "images of a batch"
        )
    try:
        parts = experiment.algorithm.predicting_parts()
    except AttributeError as error:
        raise UserError(
            f"{experiment.spec.algorithm} cannot be diagnosed ({error}): only algorithms with a "
            "featurizer and a classifier can"
        ) from error
    return nn.Sequential(*parts).eval()


def _chosen(experiment: Experiment, domain: int, samples: int) -> list[int]:
    """The images of a domain's in-split to look at, at random in each trial; 0 for all."""
    inside = experiment.splits[domain].inside
    source = np.random.RandomState(split_seed(experiment.spec.trial_seed, domain))
    return [inside[i] for i in source.permutation(len(inside))[: samples or None]]


def _of_landscape(options: DiagnosisOptions, domains: list[DiagnosedDomain]) -> list[int]:
    """The two domains of the landscape; none where it was not asked for."""
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


@torch.no_grad()
def _measurements(
    experiment: Experiment, network: nn.Sequential, indices: list[list[int]]
) -> _Measurements:
    """On the CPU; features are (n, d), labels (n,)."""
    featurizer, head = network
    samples = []
    for domain, of_domain in enumerate(indices):
        batches = experiment.batches(domain, of_domain)
        pairs = [(featurizer(x).cpu().double(), y.cpu()) for x, y in batches]
        features, labels = map(torch.cat, zip(*pairs))
        samples.append((features, labels))
    return _Measurements(copy.deepcopy(head).cpu().double(), samples)


def _stage(
    measured: _Measurements, domains: list[DiagnosedDomain], options: DiagnosisOptions
) -> Stage:
    risks = measured.of_each(_risk)
    if not risks.isfinite().all():
        raise UserError(
            f"the risks are {risks.tolist()}: training diverged; train with a smaller 'lr'"
        )
    diagonals = {
        name: measured.of_each(curvature)
        for name, curvature in DIAGONAL_CURVATURES.items()
        if name in options.curvatures
    }
    ratios = {name: diagonal_ratios(d, options.damping) for name, d in diagonals.items()}
    if "full_hessian" in options.curvatures:
        ratios["full_hessian"] = full_ratios(measured.of_each(full_hessian), options.damping)
    training = [domain.number for domain in domains if domain.is_training]
    exact = diagonals.pop("hessian", None)
    return Stage(
        risks=risks.tolist(),
        accuracies=measured.of_each(_accuracy).tolist(),
        gradient_means=compare(measured.of_each(gradient_mean)),
        gradient_variances=compare(measured.of_each(gradient_variance)),
        inconsistency={
            name: inconsistency(risks, *found, training, options.epsilon)
            for name, found in ratios.items()
        },
        closeness_to_hessian={}
        if exact is None
        else {name: closeness(diagonal, exact) for name, diagonal in diagonals.items()},
    )


@torch.no_grad()
def _risk(head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(features), labels)


@torch.no_grad()
def _accuracy(head: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (head(features).argmax(dim=1) == labels).double().mean()
