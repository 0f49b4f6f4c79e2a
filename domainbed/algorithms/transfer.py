"""Transfer: the risks of the domains should be close even for the worst classifier nearby."""

import copy

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from domainbed.algorithms.base import (
    DOMAINBED,
    PAPER,
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    concatenate,
    register_algorithm,
    step,
    two_readings,
)
from domainbed.algorithms.erm import ERM, trains_batch_norm
from domainbed.config.dimensions import Choice, LogUniform, Uniform


def risk_gap(risks: torch.Tensor) -> torch.Tensor:
    """max_e L_e − min_e L_e: (E,) to a scalar."""
    return risks.max() - risks.min()


@torch.no_grad()
def project(head: nn.Module, centre: nn.Module, radius: float) -> None:
    """Moves the parameters of `head` to the nearest point of a ball around those of `centre`."""
    pairs = list(zip(head.parameters(), centre.parameters(), strict=True))
    distance = torch.stack([(own - fixed).norm() for own, fixed in pairs]).norm()
    share = (radius / distance).clamp(max=1)
    for own, fixed in pairs:
        own.copy_(torch.where(share < 1, fixed + share * (own - fixed), own))


@register_algorithm
class Transfer(ERM):
    """Transferability between the training domains.

        (1) φ, w:  a step of Adam down CE(w(φ(x)), y)
        (2) φ:     a step of Adam down t_lambda · gap(a)
        (3) a ← w; `d_steps_per_g` times:
                   a ← a + lr_d · t_lambda · ∇ gap(a), projected onto ‖a − w‖ ≤ delta

    gap(a) = max_e L_e(a ∘ φ) − min_e L_e(a ∘ φ), a a classifier as w is (Zhang et al. 2021,
    algorithm 1). Step (2) takes a as the last update left it. Each step of a has features of its
    own, as in DomainBed, where passes differ: with dropout, or where they move batch norm's
    statistics. Else the features are computed once. With one domain it is ERM.

    In DomainBed all random draws have `gda`, with which φ and w never change. The reading `paper`
    ignores it, and trains them always. `weight_decay_d` and `beta1` are drawn and not used, here
    as there.

    Attributes:
        adv_classifier: a.
        optimizer: over φ and w; with `gda` in the reading `domainbed` SGD over a.
        adv_opt: SGD over a.
    """

    paper = (
        "Zhang, Zhao, Yu, Poupart, Quantifying and Improving Transferability in Domain "
        "Generalization, NeurIPS 2021, arXiv 2106.03632"
    )
    search_space = {
        "t_lambda": LogUniform(1.0, -2, 1, "weight of the gap between risks"),
        "delta": Uniform(2.0, 0.1, 3, "largest distance of the other classifier", least=0),
        "d_steps_per_g": Choice(
            10, (1, 2, 5), "steps of the other classifier for each of the network", least=1
        ),
        "gda": Choice(False, (True,), "train nothing; only read with 'fidelity: domainbed'"),
        "lr_d": LogUniform(1e-3, -4.5, -2.5, "step size of the other classifier", above=0),
        "weight_decay_d": LogUniform(0.0, -6, -2, "not used"),
        "beta1": Choice(0.5, (0.0, 0.5), "not used", least=0, below=1),
    }
    options = two_readings(PAPER, "its random draws of 'gda' leave the network untrained")
    passes_by_domain = True
    needs_classes = False

    def build(self) -> None:
        super().build()
        self.adv_classifier = copy.deepcopy(self.classifier)
        ascent = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
        self.adv_opt = self.new_optimizer(
            self.adv_classifier, role="adversary", lr=self.hparams["lr_d"], **ascent
        )
        if self.hparams["gda"] and self.option("fidelity") == DOMAINBED:
            self.optimizer = self.new_optimizer(self.adv_classifier, role="adversary", **ascent)

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        self.zero_grad()
        x, y = concatenate(minibatches)
        risk = self.label_type.risk(self.predict(x), y)
        self.descend(risk)
        # w has no gradient here, and so the optimizer leaves it alone.
        self.descend(self.gap(self.forward_pass(minibatches).features, minibatches))
        differ = trains_batch_norm(self) or any(
            isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in self.modules()
        )
        self.adv_classifier.load_state_dict(self.classifier.state_dict())
        for done in range(self.hparams["d_steps_per_g"]):
            if differ or not done:
                with torch.no_grad():
                    features = self.forward_pass(minibatches).features
            gap = self.gap(features, minibatches)
            step(self.adv_opt, -gap)
            project(self.adv_classifier, self.classifier, self.hparams["delta"])
        return as_numbers({"loss": risk, "gap": gap})

    def gap(self, features: torch.Tensor, minibatches: Minibatches) -> torch.Tensor:
        """t_lambda · gap(a) on features (N, d) of all domains, a scalar."""
        labels = [y for _, y in minibatches]
        logits = self.adv_classifier(features).split([len(y) for y in labels])
        risks = [self.label_type.risk(logits_e, y_e) for logits_e, y_e in zip(logits, labels)]
        return self.hparams["t_lambda"] * risk_gap(torch.stack(risks))
