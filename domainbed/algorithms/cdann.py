"""Conditional DANN: features that hide the domain even if the class is known."""

import torch
from torch import nn

from domainbed.algorithms.base import DOMAINBED, PAPER, register_algorithm, two_readings
from domainbed.algorithms.dann import DANN
from domainbed.algorithms.erm import ForwardPass


def class_divisors(y: torch.Tensor, num_classes: int, present_only: bool) -> torch.Tensor:
    """(N,) n_c · K, the divisor of the loss of a sample of class c.

    Args:
        y: (N,) labels below `num_classes`; n_c of them are c.
        num_classes: C.
        present_only: K is the number of classes that occur, with which each of them weighs 1/K;
            else the largest label and one.
    """
    counts = (y[:, None] == torch.arange(num_classes, device=y.device)).sum(dim=0)  # (C,)
    return counts[y] * ((counts > 0).sum() if present_only else y.max() + 1)


@register_algorithm
class CDANN(DANN):
    """DANN whose discriminator knows the class, with equal weight for all classes.

        disc_loss = Σ_n CE(D(z_n + e(y_n)), domain_n) / (n_{y_n} · K)
                    + grad_penalty · mean_n ‖∂ Σ CE / ∂(z_n + e(y_n))‖²

    z: (N, d) features, e: (C, d) an embedding of the classes, trained with D; n_c the samples of
    class c in the update, K the number of classes. Steps, options and the rest are DANN's. The
    paper has a discriminator of each class and one of all, class-prior-normalised; this, as
    DomainBed's, has one that knows the class. The gradient penalty is not in the paper.

    DomainBed's K is the largest label in the minibatches and one, so that the loss is the smaller
    the more classes below that are absent; with `fidelity: paper` the weights 1/(n_c · K) sum to
    one.

    Attributes:
        class_embeddings: e, drawn from N(0, 1).
    """

    paper = (
        "Li, Tian, Gong, Liu, Liu, Zhang, Tao, Deep Domain Generalization via Conditional "
        "Invariant Adversarial Networks, ECCV 2018"
    )
    options = {
        **DANN.options,
        **two_readings(DOMAINBED, "domainbed: absent classes below the largest label count"),
    }

    needs_classes = True  # so that its discriminator can know them

    def build(self) -> None:
        super().build()
        self.class_embeddings = nn.Embedding(self.num_classes, self.featurizer.n_outputs)
        self.disc_opt = self.optimizer_over("d", self.discriminator, self.class_embeddings)

    def disc_loss_of(self, z: torch.Tensor, forward: ForwardPass) -> torch.Tensor:
        divisors = class_divisors(forward.y, self.num_classes, self.option("fidelity") == PAPER)
        return self.discriminator_loss(
            z + self.class_embeddings(forward.y), forward.sizes, divisors
        )
