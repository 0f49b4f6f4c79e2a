"""SelfReg: samples of a class are drawn together, across domains, without negative pairs."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import (
    DOMAINBED,
    PAPER,
    Draws,
    Metrics,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.erm import ERM, ForwardPass

_SHARE_OF_FEATURES = 0.3
_BETA = 0.5


def partners_in_class(labels: torch.Tensor, draws: Draws) -> torch.Tensor:
    """For each sample two samples of its class, which may be itself.

    Class by class, in their order, two random permutations of the class's samples.

    Args:
        labels: (N,), on the CPU.
        draws: of the permutations.

    Returns:
        (2, N) positions.
    """
    partners = torch.empty(2, len(labels), dtype=torch.long)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        for row in partners:
            row[members] = members[draws.permutation(len(members))]
    return partners


def dissimilarity(
    own: torch.Tensor, others: torch.Tensor, partners: torch.Tensor, weight: float
) -> torch.Tensor:
    """λ MSE(own, first) + (1 − λ) MSE(own, λ first + (1 − λ) second), a scalar.

    Args:
        own: (N, k).
        others: (N, k), of which `first` and `second` are the rows at `partners`.
        partners: (2, N) positions.
        weight: λ.
    """
    first, second = others[partners[0]], others[partners[1]]
    mixed = weight * first + (1 - weight) * second
    return weight * F.mse_loss(own, first) + (1 - weight) * F.mse_loss(own, mixed)


def projection(width: int) -> nn.Sequential:
    """P: three linear layers with batch norm, of them two with ReLU, (N, d) to (N, d)."""
    hidden = width if width == 2048 else 2 * width
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, width),
        nn.BatchNorm1d(width),
    )


@register_algorithm
class SelfReg(ERM):
    """Self-supervised contrastive regularisation.

        λ ~ Beta(0.5, 0.5);  o = w(z), h = P(z)
        o', o'' (h', h''): o (h) with the samples of each class in a random order
        D(a, b', b'') = λ MSE(a, b') + (1 − λ) MSE(a, λ b' + (1 − λ) b'')
        loss = CE(o, y) + min(CE(o, y), 1) · [D(o, o', o'') + 0.3 D(z, h', h'')]

    z = φ(x): (N, d), o: (N, C), of all domains; MSE is a mean over entries, the factor min(CE, 1)
    a constant (Kim et al. 2021, section 3).

    With `fidelity: paper` the projection P is trained with φ and w. In DomainBed, and by default,
    no optimizer has it: it keeps its random weights, except for the statistics of its batch norm.
    As in DomainBed, weights are not averaged, and domains are not added one after the other.

    Attributes:
        cdpl: P, under the name that DomainBed gives it.
        draws: of λ and the permutations.
    """

    paper = (
        "Kim, Yoo, Park, Kim, Lee, SelfReg: Self-supervised Contrastive Regularization for Domain "
        "Generalization, ICCV 2021, arXiv 2104.09841"
    )
    options = two_readings(DOMAINBED, "DomainBed: the projection is random, never trained")

    needs_classes = True  # its pairs are of one class
    least_in_all = 2  # for P's batch norm

    def build(self) -> None:
        super().build()
        self.cdpl = projection(self.featurizer.n_outputs)
        if self.option("fidelity") == PAPER:
            self.optimizer = self.new_optimizer(self.network, self.cdpl)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        weight = self.draws.beta(_BETA, _BETA)
        partners = partners_in_class(forward.y.cpu(), self.draws).to(forward.y.device)
        projected = self.cdpl(forward.features)
        of_logits = dissimilarity(forward.logits, forward.logits, partners, weight)
        of_features = dissimilarity(forward.features, projected, partners, weight)
        penalty = of_logits + _SHARE_OF_FEATURES * of_features
        risk = forward.pooled_risk()
        return risk + risk.detach().clamp(max=1) * penalty, {"nll": risk, "penalty": penalty}
