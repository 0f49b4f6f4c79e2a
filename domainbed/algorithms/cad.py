"""CAD and CondCAD: a contrastive bottleneck that takes the domain out of the features."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import DOMAINBED, Metrics, register_algorithm, two_readings
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import Choice, Fixed
from domainbed.core.device import full_precision

BASE_TEMPERATURE = 0.07


def similarities(z: torch.Tensor, temperature: float, is_normalized: bool = False) -> torch.Tensor:
    """(N, N) z_i · z_j / τ of features z (N, d), scaled to length 1 before if that is asked for."""
    # In full precision: they are exponents.
    with full_precision(z.device):
        full = z.to(torch.promote_types(z.dtype, torch.float32))
        full = F.normalize(full, dim=1) if is_normalized else full
        return full @ full.T / temperature


def masked_log_softmax(
    scores: torch.Tensor, support: torch.Tensor, floor: float = 0.0
) -> torch.Tensor:
    """log p, p_i· the softmax of row i over the entries that `support` holds.

    Args:
        scores: (N, M).
        support: (N, M) of truth values.
        floor: added to the sums that the p are shares of.

    Returns:
        (N, M); outside the support the lowest finite number, without a gradient, so that a row
        without support has no NaN.
    """
    kept = outside(scores, support)
    total = kept.logsumexp(dim=1, keepdim=True)
    if floor:
        total = torch.logaddexp(total, total.new_full((), math.log(floor)))
    return kept - total


def outside(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`values` with the lowest finite number wherever `kept` does not hold."""
    return values.masked_fill(~kept, torch.finfo(values.dtype).min)


def same(labels: torch.Tensor) -> torch.Tensor:
    """(N, N) whether two samples have the same of `labels` (N,)."""
    return labels.unsqueeze(0) == labels.unsqueeze(1)


def others(size: int, device: torch.device) -> torch.Tensor:
    """(N, N) whether two samples are not one and the same."""
    return ~torch.eye(size, dtype=torch.bool, device=device)


def domain_bottleneck(
    scores: torch.Tensor,
    support: torch.Tensor,
    event: torch.Tensor,
    temperature: float,
    is_flipped: bool = True,
) -> torch.Tensor:
    """∓ (τ / 0.07) · mean_i log Σ_{j in event_i} p_ij, p_i· the softmax of the scores of row i.

    Args:
        scores: (N, N) similarities of the samples, divided by τ.
        support: (N, N) the pairs that the softmaxes are over.
        event: (N, N) those of them whose probability counts; rows without any are left out.
        temperature: τ.
        is_flipped: whether to maximise that probability (−); else it is minimised (+).

    Returns:
        a scalar; 0 if all rows are left out.
    """
    # In DomainBed's order, rounding included: Adam makes large steps of small gradients.
    scores = scores - scores.detach().clone().fill_diagonal_(0).amax(dim=1, keepdim=True)
    scale = (-1 if is_flipped else 1) * temperature / BASE_TEMPERATURE
    # Of a row with an empty event this is a finite number without meaning, and no gradient.
    logarithms = outside(masked_log_softmax(scores, support), event).logsumexp(dim=1)
    counted = event.any(dim=1)
    return (scale * logarithms).where(counted, 0.0).sum() / counted.sum().clamp(min=1)


class DomainBottleneck(ERM):
    """loss = CE + lmbda · B, with B of `domain_bottleneck`.

    Attributes:
        project: with `is_project`, the head on whose (N, 128) outputs B is taken.
    """

    paper = (
        "Ruan, Dubois, Maddison, Optimal Representations for Covariate Shift, ICLR 2022, "
        "arXiv 2201.00057"
    )
    search_space = {
        "lmbda": Choice(
            0.1, (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2), "weight of the bottleneck", least=0
        ),
        "temperature": Choice(0.1, (0.05, 0.1), "temperature τ of the similarities", above=0),
        "is_normalized": Fixed(False, "scale the bottleneck's inputs to length 1"),
        "is_project": Fixed(False, "take the bottleneck behind a head of its own"),
        "is_flipped": Fixed(
            True, "maximise the other domains' probability, not minimise the own domain's"
        ),
    }

    def build(self) -> None:
        super().build()
        if self.hparams["is_project"]:
            width = self.featurizer.n_outputs
            self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
            self.optimizer = self.new_optimizer(self.network, self.project)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        z = self.project(forward.features) if self.hparams["is_project"] else forward.features
        scores = similarities(z, self.hparams["temperature"], self.hparams["is_normalized"])
        penalty = domain_bottleneck(
            scores,
            *self.support_and_event(forward.y, forward.domains),
            self.hparams["temperature"],
            self.hparams["is_flipped"],
        )
        risk = forward.pooled_risk()
        loss = risk + self.hparams["lmbda"] * penalty
        return loss, {"clf_loss": risk, "bn_loss": penalty, "total_loss": loss}

    needs_classes = True  # which pairs count depends on them, but for CAD in the reading `paper`

    def support_and_event(
        self, y: torch.Tensor, domains: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which pairs B is about, see `domain_bottleneck`, of samples with labels y (N,)."""
        raise NotImplementedError

    def event(self, domains: torch.Tensor) -> torch.Tensor:
        """(N, N) the pairs of different domains; where not flipped, of the same."""
        return same(domains) != self.hparams["is_flipped"]


@register_algorithm
class CAD(DomainBottleneck):
    """The contrastive adversarial domain bottleneck, which bounds I(domain; z).

        p_ij = softmax over all j ≠ i of z_i · z_j / τ
        B = −(τ / 0.07) · mean_i log Σ_{j of another domain} p_ij

    z: (N, d). With `is_flipped: false`, B = +(τ / 0.07) · mean_i log Σ_{j ≠ i of i's domain} p_ij;
    DomainBed counts i among the j of its own domain there. Rows without such j are left out, and
    B is 0 if there are none, as with one domain.

    DomainBed also leaves out rows without another sample of their class, though this bottleneck
    is meant for data without labels; with `fidelity: paper` it looks at no label.
    """

    options = two_readings(DOMAINBED, "domainbed: drops samples that are alone in their class")

    def support_and_event(
        self, y: torch.Tensor, domains: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        support = others(len(y), y.device)
        event = support & self.event(domains)
        if self.option("fidelity") == DOMAINBED:
            event = event & (support & same(y)).any(dim=1, keepdim=True)
        return support, event


@register_algorithm
class CondCAD(DomainBottleneck):
    """CAD within each class, which bounds I(domain; z | class).

        p_ij = softmax over the j ≠ i of i's class of z_i · z_j / τ
        B = −(τ / 0.07) · mean_i log Σ_{j of another domain} p_ij

    z: (N, d). The rest is as in `CAD`; rows without a sample of their class in another domain
    (with `is_flipped: false` in their own) are left out.
    """

    def support_and_event(
        self, y: torch.Tensor, domains: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        support = others(len(y), y.device) & same(y)
        return support, support & self.event(domains)
