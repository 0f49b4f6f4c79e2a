"""CAD and CondCAD: a contrastive bottleneck that takes the domain out of the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.pairs import log_probability, mean_over, others, same, similarities
from domainbed.algorithms.pooled import ForwardPass
from domainbed.algorithms.readings import DOMAINBED, reading, two_readings
from domainbed.config.dimensions import Choice, Fixed

BASE_TEMPERATURE = 0.07


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
    return mean_over(scale * log_probability(scores, support, event), event.any(dim=1))


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
        "temperature": Choice(0.1, (0.05, 0.1), "τ, of the similarities", above=0),
        "is_normalized": Fixed(False, "scale the bottleneck's inputs to length 1"),
        "is_project": Fixed(False, "take the bottleneck behind a head of its own"),
        "is_flipped": Fixed(
            True, "maximise the other domains' probability, not minimise the own domain's"
        ),
    }

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams["is_project"]:
            width: Any = self.featurizer.n_outputs
            self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
            self.optimizer = self.new_optimizer(nn.ModuleList([self.network, self.project]))

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        z = self.project(forward.features) if self.hparams["is_project"] else forward.features
        scores = similarities(z, self.hparams["temperature"], self.hparams["is_normalized"])
        pairs = self.support_and_event(forward.y, forward.domains)
        settings = self.hparams["temperature"], self.hparams["is_flipped"]
        penalty = domain_bottleneck(scores, *pairs, *settings)
        risk = forward.pooled_risk()
        loss = risk + self.hparams["lmbda"] * penalty
        return loss, {"clf_loss": risk, "bn_loss": penalty, "total_loss": loss}

    def support_and_event(
        self, y: torch.Tensor, domains: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which pairs B is about, see `domain_bottleneck`, of samples with labels y (N,)."""
        raise NotImplementedError

    def event(self, domains: torch.Tensor) -> torch.Tensor:
        """(N, N) the pairs of different domains; where not flipped, of the same."""
        own = same(domains)
        return ~own if self.hparams["is_flipped"] else own


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
        if reading(self.options, self.hparams) == DOMAINBED:
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
