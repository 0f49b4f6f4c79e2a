"""ADRMX: the features of the label are what remains without the features of the domain."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import (
    DOMAINBED,
    PAPER,
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    domain_labels,
    register_algorithm,
    step,
    two_readings,
)
from domainbed.algorithms.cad import masked_log_softmax, others, same, similarities
from domainbed.algorithms.dann import is_discriminator_step
from domainbed.algorithms.erm import ForwardPass, PooledAlgorithm
from domainbed.config.dimensions import Choice, DatasetFacts, Dimension

TEMPERATURE = 0.07
FLOOR = 1e-5  # of probabilities, and of the halved sums that they are shares of


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    small = (3e-3, (5e-4, 1e-3, 2e-3, 3e-3))
    rate, rates = small if facts.from_scratch else (3e-5, (2e-5, 3e-5, 4e-5, 5e-5))
    return {
        "lr": Choice(rate, rates, "step size of both Adams", above=0),
        "cnt_lambda": Choice(1.0, (1.0,), "weight of both contrastive losses", least=0),
        "dclf_lambda": Choice(1.0, (1.0,), "weight of the domain classifier's loss", least=0),
        "rmxd_lambda": Choice(1.0, (1.0,), "weight of the remix loss", least=0),
        "disc_lambda": Choice(
            0.75, (0.75,), "weight of the discriminator's loss, reversed", least=0
        ),
        "beta1": Choice(0.5, (0.5,), "first-moment decay of both Adams", least=0, below=1),
        "d_steps_per_g_step": Choice(
            2, (2,), "discriminator steps for each step of the network", least=0
        ),
        "mlp_width": Choice(256, (256,), "discriminator: width", least=1),
        "mlp_dropout": Choice(0.0, (0.0,), "discriminator: dropout", least=0, below=1),
        "mlp_depth": Choice(9, (8, 9, 10), "discriminator: linear layers", least=2),
    }


def contrastive_loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """S = −Σ_i mean_{j ≠ i of i's class} log(p_ij + ε) / (n + 1), over the n samples with such j.

        p_ij = a_ij / (Σ_{k ≠ i} a_ik + 2 ε),   a_ij = exp(cos(z_i, z_j) / 0.07),   ε = 1e-5

    (N, d) features and (N,) labels to a scalar. Pairs within a domain and across domains weigh
    the same, a half, hence the 2 ε.
    """
    distinct = others(len(z), z.device)
    scores = similarities(z, TEMPERATURE, is_normalized=True)
    logarithms = masked_log_softmax(scores, distinct, floor=2 * FLOOR)
    terms = torch.logaddexp(logarithms, logarithms.new_full((), math.log(FLOOR)))
    positive = distinct & same(y)
    counts = positive.sum(dim=1)
    means = terms.where(positive, 0.0).sum(dim=1) / counts.clamp(min=1)
    return -means.sum() / ((counts > 0).sum() + 1)


def first_across(order: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
    """The first sample of `order` and the next of another domain; the first alone without one.

    (n,) samples, at least one, and the (N,) domains of all to (2,) or (1,) samples.
    """
    return torch.cat([order[:1], order[domains[order] != domains[order[0]]][:1]])


@register_algorithm
class ADRMX(PooledAlgorithm):
    """Additive disentanglement of domain features with a remix loss.

        f_l = φ_l(x), f_d = φ_d(x), f = f_l − f_d
        discriminator step:  min_D  CE(D(f), domain)
        network step:        min over the others of
            CE(c₁(f_l), y) + CE(c₂(f), y) + dclf_lambda · CE(c_d(f_d), domain) + rmxd_lambda · R
            + cnt_lambda · (S(f_l) + S(f)) − disc_lambda · CE(D(f), domain)
        R = Σ_c CE(c₁(f[p_c] + f_d[q_c]), y[p_c]) / C

    f_l, f_d, f: (N, d); c₁, c₂: three linear layers to (N, C), c_d: to (N, E); S: see
    `contrastive_loss`. Steps alternate as DANN's. Predictions are c₁(f_l), and there is no weight
    decay, whatever is drawn, as in the authors' code.

    With `fidelity: paper`, p_c and q_c are random samples of class c from two domains, and classes
    without such a pair have no term. In DomainBed, as in the authors' code, they are positions
    within a class of at least two samples, but index all samples: the first ones, of any class and
    domain.

    Attributes:
        featurizer, domain_featurizer: φ_l, φ_d.
        discriminator, classifier, final_classifier, domain_classifier: D, c₁, c₂, c_d.
        disc_opt, gen_opt: the optimizers over D, and over the others.
    """

    paper = (
        "Demirel, Aptoula, Ozkan, ADRMX: Additive Disentanglement of Domain Features with Remix "
        "Loss, 2023, arXiv 2308.06624"
    )
    search_space = staticmethod(_search_space)
    options = two_readings(DOMAINBED, "domainbed: remixes the first samples, of any class")
    counters = ("update_count",)
    needs_classes = True  # it draws together and remixes samples of a class

    def build(self) -> None:
        self.featurizer = networks.Featurizer(self.input_shape, self.hparams)
        self.domain_featurizer = networks.Featurizer(self.input_shape, self.hparams)
        width = self.featurizer.n_outputs
        self.discriminator = networks.MLP(width, self.num_domains, self.hparams)
        self.classifier = networks.Classifier(width, self.num_classes, is_nonlinear=True)
        self.final_classifier = networks.Classifier(width, self.num_classes, is_nonlinear=True)
        self.domain_classifier = networks.Classifier(width, self.num_domains, is_nonlinear=True)
        settings: dict[str, Any] = {"weight_decay": 0.0, "betas": (self.hparams["beta1"], 0.9)}
        self.disc_opt = self.new_optimizer(self.discriminator, role="discriminator", **settings)
        self.gen_opt = self.new_optimizer(
            *(self.featurizer, self.domain_featurizer),
            *(self.classifier, self.final_classifier, self.domain_classifier),
            **settings,
        )

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        self.update_count += 1
        forward = self.forward_pass(minibatches)
        if is_discriminator_step(self.updates_done(), self.hparams["d_steps_per_g_step"]):
            with torch.no_grad():  # no gradient goes through the featurizers
                f = forward.features - self.domain_featurizer(forward.x)
            loss_disc = F.cross_entropy(self.discriminator(f), forward.domains)
            step(self.disc_opt, loss_disc)
            return as_numbers({"loss_disc": loss_disc})
        losses = self.losses(forward)
        step(self.gen_opt, losses["loss_total"])
        return as_numbers(losses)

    def losses(self, forward: ForwardPass) -> dict[str, torch.Tensor]:
        """The losses of a network step, under DomainBed's names, the total first."""
        f_l, f_d, y = forward.features, self.domain_featurizer(forward.x), forward.y
        f = f_l - f_d
        parts = {
            "loss_cnt_int": contrastive_loss(f_l, y),
            "loss_cnt_final": contrastive_loss(f, y),
            "loss_clf_int": F.cross_entropy(self.classifier(f_l), y),
            "loss_clf_fin": F.cross_entropy(self.final_classifier(f), y),
            "loss_dmn": F.cross_entropy(self.domain_classifier(f_d), forward.domains),
            "loss_disc": F.cross_entropy(self.discriminator(f), forward.domains),
            "loss_remixed": self.remix_loss(f, f_d, forward),
        }
        total = (
            parts["loss_clf_int"]
            + parts["loss_clf_fin"]
            + self.hparams["dclf_lambda"] * parts["loss_dmn"]
            + self.hparams["rmxd_lambda"] * parts["loss_remixed"]
            + self.hparams["cnt_lambda"] * (parts["loss_cnt_int"] + parts["loss_cnt_final"])
            - self.hparams["disc_lambda"] * parts["loss_disc"]
        )
        return {"loss_total": total, **parts}

    def remix_loss(self, f: torch.Tensor, f_d: torch.Tensor, forward: ForwardPass) -> torch.Tensor:
        """R of features f and f_d (N, d); 0 where no class has a pair."""
        pairs = self.remix_pairs(forward.y.cpu(), forward.sizes)
        if not len(pairs):
            return f.new_zeros(())
        first, second = pairs.to(f.device).unbind(dim=1)
        logits = self.classifier(f[first] + f_d[second])
        return F.cross_entropy(logits, forward.y[first], reduction="sum") / self.num_classes

    def remix_pairs(self, y: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """(K, 2) the samples p and q of each class that has a pair; y: (N,), on the CPU."""
        paper = self.option("fidelity") == PAPER
        domains = domain_labels(sizes, y.device)
        pairs = []
        for label in y.unique():
            members = (y == label).nonzero().squeeze(1)
            order = self.draws.permutation(len(members))
            pairs.append(first_across(members[order], domains) if paper else order[:2])
        full = [pair for pair in pairs if len(pair) == 2]
        return torch.stack(full) if full else y.new_empty((0, 2))
