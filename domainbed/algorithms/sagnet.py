"""SagNet: predictions from the content of the features, whatever their style."""

import torch
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    register_algorithm,
    step,
)
from domainbed.algorithms.erm import PooledAlgorithm
from domainbed.config.dimensions import LogUniform
from domainbed.core.device import full_precision, sent
from domainbed.errors import UserError

EPSILON = 1e-5


def statistics(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 1) means and (N, 1) variances (divisor d − 1) of each sample's d features."""
    return z.mean(dim=1, keepdim=True), z.var(dim=1, keepdim=True)


def normalised(z: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
    """Features (N, d) with mean 0 and variance 1 in each sample, given what they are (N, 1)."""
    return (z - mean) / (var + EPSILON).sqrt()


def with_mixed_style(z: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each sample's content, in a style between its own and another sample's.

    Args:
        z: (N, d) features.
        other: (N,) the other samples.
        weights: (N, 1) of the own mean and variance; those of the other have 1 − weights.
    """
    style = statistics(z)
    content = normalised(z, *style)
    mean, var = (weights * own + (1 - weights) * own[other] for own in style)
    return content * (var + EPSILON).sqrt() + mean


def with_other_content(z: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The content of `other` samples (N,), constant, in each sample's own style; z: (N, d)."""
    mean, var = statistics(z)
    return normalised(z, mean, var)[other].detach() * (var + EPSILON).sqrt() + mean


@register_algorithm
class SagNet(PooledAlgorithm):
    """Style-agnostic network: three steps per update, each with a forward pass of all samples.

        content:   min_{φ, c}  CE(c(z in a style mixed with that of π), y)
        style:     min_s       CE(s(content of π in the style of z), y)
        adversary: min_φ       sag_w_adv · mean_n −mean_k log softmax_k s(content of π, style of z)

    z = φ(x): (N, d); style: mean and variance of a sample's d features, content: the normalised
    features; π: a random order of the samples, drawn in each step; c, s: (N, d) to (N, C).
    Predictions are c(φ(x)) (Nam et al. 2021, algorithm 1).

    As in DomainBed the styles are those of the pooled features and the adversary moves all of φ;
    the paper's are statistics of the channels of feature maps inside the network, and its
    adversary moves the affine parameters of normalisation layers alone.

    Attributes:
        featurizer, classifier, style_classifier: φ, c, s.
        optimizer_f, optimizer_c, optimizer_s: one over each.
    """

    paper = (
        "Nam, Lee, Park, Yoon, Yoo, Reducing Domain Gap by Reducing Style Bias, CVPR 2021, "
        "arXiv 1910.11645"
    )
    search_space = {
        "sag_w_adv": LogUniform(0.1, -2, 1, "weight of the adversary's loss on the style")
    }

    needs_classes = True  # its adversary seeks a style that all classes share evenly

    def build(self) -> None:
        self.featurizer = networks.Featurizer(self.input_shape, self.hparams)
        width = self.featurizer.n_outputs
        if width < 2:
            raise UserError(f"SagNet needs at least 2 features, but the featurizer has {width}")
        if not any(True for _ in self.featurizer.parameters()):
            raise UserError(
                "SagNet trains its featurizer apart, and this one has nothing to train: set the "
                "hyper-parameter 'head_depth' to 1 or more"
            )
        nonlinear = self.hparams["nonlinear_classifier"]
        self.classifier = networks.Classifier(width, self.num_classes, nonlinear)
        self.style_classifier = networks.Classifier(width, self.num_classes, nonlinear)
        self.optimizer_f = self.new_optimizer(self.featurizer)
        self.optimizer_c = self.new_optimizer(self.classifier)
        self.optimizer_s = self.new_optimizer(self.style_classifier, role="style")

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        forward = self.forward_pass(minibatches)
        x, y = forward.x, forward.y
        loss_c = F.cross_entropy(self.classifier(self.randomised(forward.features, "style")), y)
        self.optimizer_c.zero_grad()
        step(self.optimizer_f, loss_c)
        self.optimizer_c.step()

        with torch.no_grad():  # this step trains only the style network
            z = self.featurizer(x)
        loss_s = F.cross_entropy(self.style_classifier(self.randomised(z, "content")), y)
        step(self.optimizer_s, loss_s)

        scores = self.style_classifier(self.randomised(self.featurizer(x), "content"))
        loss_adv = self.hparams["sag_w_adv"] * -scores.log_softmax(dim=1).mean(dim=1).mean()
        step(self.optimizer_f, loss_adv)
        return as_numbers({"loss_c": loss_c, "loss_s": loss_s, "loss_adv": loss_adv})

    def randomised(self, z: torch.Tensor, what: str) -> torch.Tensor:
        """The features (N, d) with random "style" or "content"; the weights are drawn for both."""
        weights = sent(self.draws.uniform(len(z), 1), z.device)
        other = sent(self.draws.permutation(len(z)), z.device)
        # In full precision: a variance of bfloat16 numbers is mostly rounding.
        with full_precision(z.device):
            full = z.to(torch.promote_types(z.dtype, torch.float32))
            if what == "style":
                return with_mixed_style(full, other, weights.to(full.dtype))
            return with_other_content(full, other)
