"""Styles of feature maps, mixed or disturbed in training. Alone, or added: `MixStyle+CORAL`."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from domainbed.algorithms.add_ons import AddOn
from domainbed.algorithms.base import (
    Draws,
    Metrics,
    Minibatches,
    Objective,
    Unlabeled,
    domain_sizes,
    register_algorithm,
)
from domainbed.algorithms.erm import ERM
from domainbed.config.dimensions import Choice, Option
from domainbed.core.device import sent
from domainbed.errors import UserError
from domainbed.networks.stages import feature_maps


def style(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean, and √(variance + 1e-6), of each image and channel: (B, C, H, W) to (B, C, 1, 1).

    The variance is unbiased; that of a single place is 0.
    """
    variance = x.var(dim=(2, 3), correction=min(1, x.shape[2] * x.shape[3] - 1), keepdim=True)
    return x.mean(dim=(2, 3), keepdim=True), (variance + 1e-6).sqrt()


def across_domains(sizes: Sequence[int], draws: Draws) -> torch.Tensor:
    """(Σ sizes,) a partner for each sample, of a neighbouring domain.

    The first half of each domain and the second half of the next one, the last one's next being
    the first, are partners of each other in random order. A sample without any is its own partner.
    """
    partners, rows = torch.arange(sum(sizes)), torch.arange(sum(sizes)).split(list(sizes))
    for own, following in zip(rows, [*rows[1:], rows[0]]):
        first, second = own[: len(own) // 2], following[len(following) // 2 :]
        for these, those in ((first, second), (second, first)) if len(first) else ():
            order = draws.permutation(len(those))
            partners[these] = those[order[torch.arange(len(these)) % len(those)]]
    return partners


@register_algorithm
class MixStyle(AddOn):
    """ERM, or another algorithm, whose feature maps take on styles of other images in training.

        x̃ = (x − μ)/σ · (λ σ + (1 − λ) σ') + λ μ + (1 − λ) μ',  λ ~ Beta(α, α) for each image

    x: (B, C, H, W) after a stage; μ, σ: see `style`, constants; μ', σ': those of another image, by
    a random permutation, or with `mix_pairs: domains` of another domain, see `across_domains`. At
    each place a minibatch is mixed with probability `mix_probability` (Zhou et al. 2021). The
    places are the stages but the stem and the last one: layer1 to layer3 of a ResNet.
    """

    paper = (
        "Zhou, Yang, Qiao, Xiang, Domain Generalization with MixStyle, ICLR 2021, arXiv 2104.02008"
    )
    search_space = {
        "mix_alpha": Choice(
            0.1, (0.1, 0.2, 0.3), "both parameters of the Beta distribution of the weights", above=0
        )
    }
    options = {
        "mix_probability": Option(
            0.5, "probability that a minibatch is mixed at each place", least=0, most=1
        ),
        "mix_places": Option("", "layers, such as network.layer1, network.layer2; empty: all"),
        "mix_pairs": Option("random", "whose styles are mixed", ("random", "domains")),
    }
    base_class = ERM
    usual_places: ClassVar[slice] = slice(-4, -1)
    needs_images = True
    needs_classes = False
    whole_batch_inside = True

    def build(self) -> None:
        super().build()
        self._sizes: list[int] = []
        known = feature_maps(self.base.featurizer)
        asked = [name.strip() for name in self.option("mix_places").split(",") if name.strip()]
        for name in asked or list(known)[self.usual_places] or ["feature maps"]:
            if name not in known:
                raise UserError(
                    f"hyper-parameter 'mix_places': the network has no {name!r} that styles could "
                    f"be mixed at; it has {', '.join(known) or 'none: choose a ResNet'}",
                    *("hparams", "mix_places"),
                )
            known[name].register_forward_hook(self._disturb)

    def update_on(
        self, objective: Objective, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> Metrics:
        self.require_samples(minibatches)
        self._sizes = domain_sizes(minibatches)
        return super().update_on(objective, minibatches, unlabeled)

    def _disturb(self, layer: nn.Module, inputs: Any, x: torch.Tensor) -> torch.Tensor:
        # A uniform number, which is at hand without waiting for a device.
        if not self.training or self.draws.beta(1, 1) > self.option("mix_probability"):
            return x
        return self.disturbed(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)

    def disturbed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape."""
        weight, partners = self.draw_pairs(x)
        mean, std = (value.detach() for value in style(x))
        new_mean, new_std = (weight * v + (1 - weight) * v[partners] for v in (mean, std))
        return (x - mean) / std * new_std + new_mean

    def draw_pairs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """λ (B, 1, 1, 1), and the partners (B,)."""
        alpha = self.hparams["mix_alpha"]
        weight = torch.tensor([self.draws.beta(alpha, alpha) for _ in range(len(x))], dtype=x.dtype)
        across = self.option("mix_pairs") == "domains" and sum(self._sizes) == len(x)
        partners = (
            across_domains(self._sizes, self.draws) if across else self.draws.permutation(len(x))
        )
        return sent(weight, x.device)[:, None, None, None], sent(partners, x.device)


@register_algorithm
class EFDMix(MixStyle):
    """Exact feature distribution mixing.

        x̃ = x + (1 − λ)(m − x),  m: the sorted values of another image at the ranks of x

    By image and channel, over H · W. The subtracted x is a constant: the gradient for x is 1, and
    the other image has 1 − λ of it through its values (Zhang et al. 2022). Places,
    pairs and λ are those of `MixStyle`.
    """

    paper = (
        "Zhang, Li, Li, Jia, Zhang, Exact Feature Distribution Matching for Arbitrary Style "
        "Transfer and Domain Generalization, CVPR 2022, arXiv 2203.07740"
    )

    def disturbed(self, x: torch.Tensor) -> torch.Tensor:
        weight, partners = self.draw_pairs(x)
        values = x.flatten(2)
        ranks = values.argsort(dim=2).argsort(dim=2)
        matched = values[partners].sort(dim=2).values.gather(2, ranks).view_as(x)
        return x + (1 - weight) * (matched - x.detach())


@register_algorithm
class DSU(MixStyle):
    """Domain shifts with uncertainty: noise on styles, as large as their spread in the minibatch.

        β = μ + ε s_μ,  γ = σ + ε' s_σ,  x̃ = γ (x − μ)/σ + β,  ε, ε' ~ N(0, 1)

    s_μ, s_σ: √(variance + 1e-6) of μ and σ over the minibatch, (1, C, 1, 1); gradients go through
    all of it (Li et al. 2022). The places are the first convolution of a ResNet,
    before its batch norm, the stem and all stages.
    """

    paper = (
        "Li, Dai, Ge, Liu, Shan, Duan, Uncertainty Modeling for Out-of-Distribution "
        "Generalization, ICLR 2022, arXiv 2202.03958"
    )
    least_samples = 2
    usual_places = slice(None)

    def disturbed(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = style(x)
        spreads = [(value.var(dim=0, keepdim=True) + 1e-6).sqrt() for value in (mean, std)]
        noise = [sent(self.draws.normal(*mean.shape).to(x.dtype), x.device) for _ in spreads]
        return (std + noise[1] * spreads[1]) * (x - mean) / std + mean + noise[0] * spreads[0]
