"""LISA: mixtures of samples that share the label and differ in the domain, or the reverse."""

import math
from collections.abc import Sequence

import torch

from domainbed.algorithms.base import (
    AUTHORS,
    OF_AUTHORS,
    PAPER,
    Metrics,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import LogUniform, Option, Uniform
from domainbed.core.device import sent
from domainbed.errors import UserError


@register_algorithm
class LISA(ERM):
    """Selective augmentation.

        with probability lisa_p: partners j of sample i have y_j = y_i and a_j ≠ a_i
        else:                    partners have a_j = a_i and y_j ≠ y_i
        λ_i ~ Beta(lisa_alpha, lisa_alpha),  x̃_i = λ_i x_i + (1 − λ_i) x_j
        loss = mean_i [λ_i ℓ(x̃_i, y_i) + (1 − λ_i) ℓ(x̃_i, y_j)]

    a: the attribute of a sample, where the data has one, else its domain. Partners are drawn from
    the minibatch; a sample without one stays as it is (Yao et al. 2022).
    With `lisa_mix: cutmix` x_j takes the place of x_i in one box for all of the minibatch, and λ is
    the share of the image outside it (Yun et al. 2019), near a number from the same Beta.
    With `fidelity: authors`, as in their code for domain shifts, partners have the same label,
    whatever their domain.
    """

    paper = (
        "Yao, Wang, Li, Zhang, Liang, Zou, Finn, Improving Out-of-Distribution Robustness via "
        "Selective Augmentation, ICML 2022, arXiv 2201.00299"
    )
    search_space = {
        "lisa_alpha": LogUniform(
            2.0, -1, 1, "both parameters of the Beta distribution of the weights", above=0
        ),
        "lisa_p": Uniform(
            0.5, 0, 1, "fraction of updates with partners of the same label", least=0, most=1
        ),
    }
    options = {
        **two_readings(
            PAPER, "authors: partners of the same label, from any domain", values=OF_AUTHORS
        ),
        "lisa_mix": Option("mixup", "how two inputs are mixed", ("mixup", "cutmix")),
    }
    needs_tensor = True
    needs_classes = True

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        x, y = forward.x, forward.y
        partners = self.partners(y, (forward.extras or {}).get("attribute", forward.domains))
        alpha = self.hparams["lisa_alpha"]
        if self.option("lisa_mix") == "cutmix":
            wide = sent(self.outside_a_box(x.shape[2:], self.draws.beta(alpha, alpha)), x.device)
            wide, weights = wide.to(x.dtype), wide.to(x.dtype).mean()
        else:
            drawn = [self.draws.beta(alpha, alpha) for _ in range(len(y))]
            weights = sent(torch.tensor(drawn, dtype=x.dtype), x.device)
            wide = weights.view(-1, *[1] * (x.dim() - 1))
        logits = self.forward_pass([(wide * x + (1 - wide) * x[partners], y)]).logits
        own, other = (self.label_type.losses(logits, each) for each in (y, y[partners]))
        return (weights * own + (1 - weights) * other).mean(), {}

    def build(self) -> None:
        super().build()
        if self.option("lisa_mix") == "cutmix" and len(self.input_shape) != 3:
            raise UserError("CutMix needs images: leave it out", "hparams", "lisa_mix")

    def outside_a_box(self, shape: Sequence[int], share: float) -> torch.Tensor:
        """(H, W), false in a box of the sides √(1 − share) H and W, cut at the edges of the image.

        Its centre is uniform.
        """
        outside = torch.ones(*shape, dtype=torch.bool)
        rows, columns = (
            slice(max(0, centre - half), centre + half)
            for size in shape
            for half in [int(size * math.sqrt(1 - share)) // 2]
            for centre in [self.draws.integer(size)]
        )
        outside[rows, columns] = False
        return outside

    def partners(self, y: torch.Tensor, attribute: torch.Tensor) -> torch.Tensor:
        """(N,) the position of each sample's partner, which may be its own."""
        by_label = self.draws.beta(1, 1) < self.hparams["lisa_p"]
        same, other = (y, attribute) if by_label else (attribute, y)
        fit = (same[:, None] == same) & (other[:, None] != other)
        if self.option("fidelity") == AUTHORS:
            fit = y[:, None] == y
        scores = sent(self.draws.uniform(len(y), len(y)), y.device).masked_fill(~fit, -2)
        itself = torch.eye(len(y), dtype=torch.bool, device=y.device) & ~fit
        return scores.masked_fill(itself, -1).argmax(dim=1)
