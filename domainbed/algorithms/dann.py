"""Domain-adversarial neural networks: features that hide the domain."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Objective,
    Unlabeled,
    as_numbers,
    domain_labels,
    register_algorithm,
    step,
)
from domainbed.algorithms.erm import ForwardPass, PooledAlgorithm
from domainbed.config.dimensions import (
    Choice,
    DatasetFacts,
    Dimension,
    LogUniform,
    Option,
    learning_rate,
    weight_decay,
)
from domainbed.core.device import sent


def gradient_penalty(total: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """mean_n ‖∂ total / ∂z_n‖², with `total` a sum over the samples z: (B, d)."""
    (gradients,) = torch.autograd.grad(total, features, create_graph=True)
    return gradients.square().sum(dim=1).mean()


def is_discriminator_step(update: int, d_steps: int) -> bool:
    """Whether the `update`-th update, from 1 on, is one of the discriminator.

    Of each 1 + `d_steps` updates in a row, `d_steps` are.
    """
    return update % (1 + d_steps) < d_steps


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    return {
        "lr_g": learning_rate(facts),
        "lr_d": learning_rate(facts),
        "weight_decay_g": weight_decay(facts),
        "lambda": LogUniform(1.0, -2, 2, "weight of the discriminator's loss, reversed"),
        "weight_decay_d": LogUniform(0.0, -6, -2, "L2 coefficient of the discriminator's Adam"),
        "d_steps_per_g_step": LogUniform(
            1,
            0,
            3,
            "discriminator steps for each step of the network",
            base=2,
            integer=True,
            least=1,
        ),
        "grad_penalty": LogUniform(0.0, -2, 1, "weight of the discriminator's gradient penalty"),
        "beta1": Choice(0.5, (0.0, 0.5), "first-moment decay of both Adams", least=0, below=1),
        "mlp_width": LogUniform(256, 6, 10, "discriminator: width", base=2, integer=True, least=1),
        "mlp_depth": Choice(3, (3, 4, 5), "discriminator: linear layers", least=2),
        "mlp_dropout": Choice(0.0, (0.0, 0.1, 0.5), "discriminator: dropout", least=0, below=1),
    }


@register_algorithm
class DANN(PooledAlgorithm):
    """A discriminator learns the domain, the featurizer learns to hide it.

        disc_loss = CE(D(z), domain) + grad_penalty · mean_n ‖∂ Σ CE / ∂z_n‖²
        discriminator step:  min_D      disc_loss
        network step:        min_{φ, w} CE(w(z), y) − lambda · disc_loss

    z = φ(x): (E·B, d), D(z): (E·B, E). Of 1 + `d_steps_per_g_step` updates, one is a network
    step (Ganin et al. 2016, equation 9, alternating as in DomainBed instead of reversing the
    gradient in one step).

    With the option `grad_penalty_of: softmax` the penalised gradient is that of
    Σ_n Σ_m softmax(D(z_n))[domain of m] in place of Σ CE, as in DomainBed before 2022-08-18.

    Attributes:
        featurizer, classifier, discriminator: φ, w, D.
        disc_opt, gen_opt: the optimizers over D, and over φ and w.
    """

    paper = (
        "Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818"
    )
    search_space = staticmethod(_search_space)
    options = {
        "grad_penalty_of": Option(
            "loss",
            "whose gradient 'grad_penalty' is of; softmax: DomainBed's before 2022-08-18",
            ("loss", "softmax"),
        )
    }
    counters = ("update_count",)

    def build(self) -> None:
        self.featurizer = networks.Featurizer(self.input_shape, self.hparams)
        width = self.featurizer.n_outputs
        self.classifier = networks.Classifier(
            width, self.num_classes, self.hparams["nonlinear_classifier"]
        )
        self.discriminator = networks.MLP(width, self.num_domains, self.hparams)
        self.disc_opt = self.optimizer_over("d", self.discriminator)
        self.gen_opt = self.optimizer_over("g", self.featurizer, self.classifier)

    @property
    def optimizer(self) -> torch.optim.Optimizer:  # type: ignore[override]
        """What `descend` steps."""
        return self.gen_opt

    def optimizer_over(self, which: str, *modules: nn.Module) -> torch.optim.Optimizer:
        """One with the rate and the decay of the discriminator (d) or of the network (g)."""
        return self.new_optimizer(
            *modules,
            role="discriminator" if which == "d" else "main",
            lr=self.hparams[f"lr_{which}"],
            weight_decay=self.hparams[f"weight_decay_{which}"],
            betas=(self.hparams["beta1"], 0.9),
        )

    def update_on(
        self, objective: Objective, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> Metrics:
        """A step of the network on `objective`, or one of the discriminator on its own loss."""
        self.update_count += 1
        if not is_discriminator_step(self.updates_done(), self.hparams["d_steps_per_g_step"]):
            metrics = dict(super().update_on(objective, minibatches, unlabeled))
            return {"gen_loss": metrics.pop("loss"), **metrics}  # the name is DomainBed's
        forward = self.forward_pass(minibatches)
        with torch.no_grad():  # no gradient goes through the featurizer
            z = forward.features
        disc_loss = self.disc_loss_of(z, forward)
        step(self.disc_opt, disc_loss)
        return as_numbers({"disc_loss": disc_loss})

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        """Of the network's steps."""
        disc_loss = self.disc_loss_of(forward.features, forward)
        risk = forward.pooled_risk()
        return risk - self.hparams["lambda"] * disc_loss, {"nll": risk}

    def disc_loss_of(self, z: torch.Tensor, forward: ForwardPass) -> torch.Tensor:
        """`discriminator_loss` of the features z (N, d) of a forward pass."""
        return self.discriminator_loss(z, forward.sizes)

    def discriminator_loss(
        self, z: torch.Tensor, sizes: Sequence[int], divisors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How badly D tells the domains of inputs z, with the penalty.

        Args:
            z: (N, d), domain by domain.
            sizes: how many of each of the E domains.
            divisors: (N,) what each sample's loss is divided by before they are added up; N where
                none are given.
        """
        domains = domain_labels(sizes, z.device)
        if divisors is None and not self.hparams["grad_penalty"]:
            return F.cross_entropy(self.discriminator(z), domains)
        z = z if z.requires_grad else z.requires_grad_()
        scores = self.discriminator(z)
        losses = F.cross_entropy(scores, domains, reduction="none")
        loss = losses.mean() if divisors is None else (losses / divisors).sum()
        if not self.hparams["grad_penalty"]:
            return loss
        if self.option("grad_penalty_of") == "softmax":
            total = (scores.softmax(dim=1) * sent(torch.tensor(sizes), z.device)).sum()
        else:
            total = losses.sum()
        return loss + self.hparams["grad_penalty"] * gradient_penalty(total, z)
