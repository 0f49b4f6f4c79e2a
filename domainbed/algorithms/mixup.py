"""Mixup between domains: convex combinations of images of two domains, and of their losses."""

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import Metrics, Minibatches, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import LogUniform
from domainbed.metrics.labels import CLASSES, LabelType

Pair = tuple[torch.Tensor, torch.Tensor]


def cyclic_pairs(minibatches: Minibatches, order: Sequence[int]) -> list[tuple[Pair, Pair]]:
    """Each domain with the one after it in `order`, the last with the first, cut to one length."""
    pairs = []
    for i, j in zip(order, [*order[1:], order[0]]):
        (x_i, y_i), (x_j, y_j) = minibatches[i], minibatches[j]
        size = min(len(y_i), len(y_j))
        pairs.append(((x_i[:size], y_i[:size]), (x_j[:size], y_j[:size])))
    return pairs


def mixed_risk(
    logits: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    weight: float,
    label_type: LabelType = CLASSES,
) -> torch.Tensor:
    """λ L(logits, first) + (1 − λ) L(logits, second): (B, C) and labels (B, …) to a scalar."""
    risk = label_type.risk
    return weight * risk(logits, first) + (1 - weight) * risk(logits, second)


@register_algorithm
class Mixup(ERM):
    """Inter-domain Mixup.

        π a random order of the domains; for e = 1 … E, i = π_e, j = π_{e+1} (cyclic), b = min B:
            λ ~ Beta(mixup_alpha, mixup_alpha)
            p = w(φ(λ x_i + (1 − λ) x_j))                                   (b, C)
            L_e = λ CE(p, y_i) + (1 − λ) CE(p, y_j)
        loss = mean_e L_e

    x_i: (b, *input_shape), the first b of the domain. All pairs go through the network in one
    pass. As in DomainBed inputs are mixed and not features, and the cross-entropies of both
    domains' labels are mixed, which is the cross-entropy with mixed one-hot labels. With one
    domain it is ERM.

    Attributes:
        draws: of the orders and the weights.
    """

    paper = (
        "Yan, Song, Li, Zou, Ren, Improve Unsupervised Domain Adaptation with Mixup Training, "
        "2020, arXiv 2001.00677; Xu et al., Adversarial Domain Adaptation with Domain Mixup, "
        "AAAI 2020, arXiv 1912.01805"
    )
    search_space = {
        "mixup_alpha": LogUniform(
            0.2, -1, 1, "both parameters of the Beta distribution of the weights", above=0
        )
    }
    passes_by_domain = True
    needs_tensor = True

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        domains = list(zip(forward.by_domain(forward.x), forward.by_domain(forward.y)))
        pairs = cyclic_pairs(domains, self.draws.permutation(len(domains)).tolist())
        alpha = self.hparams["mixup_alpha"]
        weights = [self.draws.beta(alpha, alpha) for _ in pairs]
        through = self.forward_pass(
            [
                (weight * x_i + (1 - weight) * x_j, y_i)
                for weight, ((x_i, y_i), (x_j, _)) in zip(weights, pairs)
            ]
        )
        risks = [
            mixed_risk(logits, y_i, y_j, weight, self.label_type)
            for logits, weight, ((_, y_i), (_, y_j)) in zip(
                through.by_domain(through.logits), weights, pairs
            )
        ]
        return torch.stack(risks).mean(), {}
