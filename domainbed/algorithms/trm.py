"""TRM: classifiers of single domains should do well on the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from domainbed.algorithms.base import (
    DOMAINBED,
    PAPER,
    Metrics,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.erm import AnnealedPenalty, ForwardPass
from domainbed.config.dimensions import LogUniform
from domainbed.core.device import full_precision

HEAD_STEPS, HEAD_RATE = 30, 0.1
NEUMANN_TERMS, NEUMANN_BOUND = 10, 10.0
_NO_LABEL = -100  # of padding


class DomainHeads:
    """E linear classifiers v_e, each on the features of its own domain.

    Args:
        weights, biases: (E, C, d) and (E, C).
        features: E tensors (B, d), of each domain.
        labels: E tensors (B,).
    """

    def __init__(
        self,
        weights: torch.Tensor,
        biases: torch.Tensor,
        features: Sequence[torch.Tensor],
        labels: Sequence[torch.Tensor],
    ) -> None:
        self.weights, self.biases = weights, biases
        self.features = pad_sequence(list(features), batch_first=True)  # (E, B, d)
        self.labels = pad_sequence(list(labels), batch_first=True, padding_value=_NO_LABEL)
        self.sizes = self.features.new_tensor([len(y) for y in labels])

    def risks(self) -> torch.Tensor:
        """(E,) the mean cross-entropy of each on its own domain."""
        logits = torch.baddbmm(self.biases.unsqueeze(1), self.features, self.weights.mT)
        losses = F.cross_entropy(
            logits.flatten(0, 1), self.labels.flatten(), reduction="none", ignore_index=_NO_LABEL
        )
        return losses.view(self.labels.shape).sum(dim=1) / self.sizes

    def risk_gradients(self) -> torch.Tensor:
        """(E, C, d) the risks' gradients for the weights, which can be differentiated on."""
        return torch.autograd.grad(self.risks().sum(), self.weights, create_graph=True)[0]

    def train(self, steps: int, rate: float) -> None:
        """Steps of gradient descent on their risks, for weights and biases."""
        with torch.enable_grad():
            for _ in range(steps):
                own = [self.weights, self.biases]
                pairs = zip(own, torch.autograd.grad(self.risks().sum(), own), strict=True)
                self.weights, self.biases = (
                    (p - rate * g).detach().requires_grad_() for p, g in pairs
                )


def cross_risks(
    heads: DomainHeads, features: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
) -> torch.Tensor:
    """(E, E) the mean cross-entropy of each head, by row, on each domain, by column."""
    columns = []
    for z, y in zip(features, labels, strict=True):
        logits = (z @ heads.weights.mT + heads.biases.unsqueeze(1)).mT  # (E, C, B)
        losses = F.cross_entropy(logits, y.expand(len(logits), -1), reduction="none")
        columns.append(losses.mean(dim=1))
    return torch.stack(columns, dim=1)


def inverse_hessian_product(
    vectors: torch.Tensor, heads: DomainHeads, by_paper: bool = True
) -> torch.Tensor:
    """H_e⁻¹ v_e ≈ v_e0 + v_e1 + … with v_e,t+1 = (1 − H_e) v_et: (E, C, d) to (E, C, d).

    H_e is the Hessian of the risk of head e on its own domain, for its weights. A sum of which an
    entry exceeds 10 after a term takes no more terms.

    Args:
        vectors: v_e0.
        heads: on constant features.
        by_paper: else DomainBed's sum, 2 v_e1 + v_e2 + …, of a vector that is overwritten.
    """
    gradients = heads.risk_gradients()
    total, going = vectors.clone(), vectors.new_ones(len(vectors), 1, 1, dtype=torch.bool)
    for term in range(NEUMANN_TERMS):
        # One product for all: no head's risk depends on another's weights.
        (product,) = torch.autograd.grad(gradients, heads.weights, vectors, retain_graph=True)
        vectors = vectors - product
        if term == 0 and not by_paper:
            total = vectors.clone()
        total = torch.where(going, total + vectors, total)
        going = going & (total.abs().amax(dim=(1, 2), keepdim=True) <= NEUMANN_BOUND)
    return total


@register_algorithm
class TRM(AnnealedPenalty):
    """Transfer risk minimization.

    E linear heads v_e are trained as well, each by 30 steps of SGD on its own domain. From update
    `iters` on, with α (E, E) of rows that sum to 1 and α_QQ = 0:

        P_Q = Σ_i α_Qi CE(v_Q(z_i), y_i),  q_Q = ∇ CE(v_Q(z_Q), y_Q),  h_Q ≈ H_Q⁻¹ ∇P_Q
        loss = CE + mean_Q [ P_Q − cos_lambda · h_Q · q_Q ]
        α_Qi ← α_Qi · exp(groupdro_eta · α_Qi CE(v_Q(z_i), y_i))

    z_e: (B, d) features; gradients and H are with respect to v_Q's weights (C, d); h_Q, a sum of
    Neumann's series, is constant (Xu and Jaakkola 2021). DomainBed's sum of that series overwrites
    what it has added up: 2 v_1 + v_2 + … in place of v_0 + v_1 + v_2 + …; and the gradient of the
    loss is weighted by the α after its step, which is not normalised yet. With `class_balanced`
    the heads' weights start every update at w's. w is linear, whatever `nonlinear_classifier`
    says. Before update `iters` it is ERM.

    Attributes:
        heads: the v_e.
        alpha: α, a buffer.
    """

    paper = (
        "Xu and Jaakkola, Learning Representations that Support Robust Transfer of Predictors, "
        "arXiv 2110.09940"
    )
    search_space = {
        "cos_lambda": LogUniform(1e-4, -5, 0, "weight of the alignment of gradients"),
        "iters": LogUniform(200, 0, 4, "updates before the transfer risk counts", integer=True),
        "groupdro_eta": LogUniform(1e-2, -3, -1, "step size of the domains' weights"),
    }
    classifier: nn.Linear
    options = two_readings(
        PAPER, "Neumann's series is overwritten while it is added up, α before the backward pass"
    )
    least_domains = 2
    needs_classes = True  # the heads' rate and Neumann's series suit the cross-entropy's Hessian

    @classmethod
    def revision(cls, hparams: Mapping[str, Any]) -> int:
        """2: the reading domainbed weights the gradient by the α after its step."""
        return 2 if hparams["fidelity"] == DOMAINBED else 1

    def build(self) -> None:
        self.hparams = {**self.hparams, "nonlinear_classifier": False}
        super().build()
        self.heads = nn.ModuleList(
            nn.Linear(self.classifier.in_features, self.num_classes)
            for _ in range(self.num_domains)
        )
        self.alpha: torch.Tensor = nn.Buffer(1 - torch.eye(self.num_domains))

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        nll = forward.pooled_risk()
        if self.updates_done() < self.hparams["iters"]:
            return nll, {"nll": nll, "trm_loss": 0.0}
        # In full precision, as a Hessian's products are differences of small numbers.
        with full_precision(nll.device):
            transfer = self.transfer_risk(forward)
        return nll + transfer, {"nll": nll, "trm_loss": transfer}

    def transfer_risk(self, forward: ForwardPass) -> torch.Tensor:
        """mean_Q [ P_Q − cos_lambda · h_Q · q_Q ], a scalar; trains the heads, moves α on."""
        self.alpha = self.alpha / self.alpha.sum(dim=1, keepdim=True)
        features = [z.to(self.alpha.dtype) for z in forward.by_domain(forward.features)]
        labels = forward.by_domain(forward.y)
        heads = self.trained_heads([z.detach() for z in features], labels)
        risks = cross_risks(heads, features, labels)  # (E, E)
        weighted = self.alpha * risks
        (vectors,) = torch.autograd.grad(weighted.sum(), heads.weights, retain_graph=True)
        h = inverse_hessian_product(vectors, heads, by_paper=self.option("fidelity") == PAPER)
        q = DomainHeads(heads.weights, heads.biases, features, labels).risk_gradients()
        self.alpha = self.alpha * (self.hparams["groupdro_eta"] * weighted.detach()).exp()
        if self.option("fidelity") != PAPER:
            # Its α is moved in place before the backward pass: the value is that of the old α, the
            # gradient that of the new one.
            moved = self.alpha * risks
            weighted = moved + (weighted - moved).detach()
        return (weighted.sum(dim=1) - self.hparams["cos_lambda"] * (h * q).sum(dim=(1, 2))).mean()

    def trained_heads(
        self, features: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> DomainHeads:
        """The heads after steps on constant features (B, d) of each domain."""
        parts = [list(head.parameters()) for head in self.heads]  # weight (C, d), bias (C,)
        weights, biases = (torch.stack(part).detach() for part in zip(*parts))
        if self.hparams["class_balanced"]:
            weights = self.classifier.weight.detach().repeat(len(parts), 1, 1)
        own = DomainHeads(weights.requires_grad_(), biases.requires_grad_(), features, labels)
        own.train(HEAD_STEPS, HEAD_RATE)
        with torch.no_grad():
            for (weight, bias), new_weight, new_bias in zip(parts, own.weights, own.biases):
                weight.copy_(new_weight)
                bias.copy_(new_bias)
        return own
