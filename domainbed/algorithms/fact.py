"""FACT: predictions stay the same when the amplitudes of images' spectra are mixed."""

import copy
import math

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Draws, Metrics, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import Fixed
from domainbed.core.device import full_precision, sent
from domainbed.errors import UserError
from domainbed.networks.pretrained import scale_and_offset


def amplitude_mix(
    levels: torch.Tensor, partners: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Images with their own phases and amplitudes (1 − λ) A + λ A', whole numbers from 0 to 255.

    Args:
        levels: (N, C, H, W), from 0 to 255.
        partners: (N,) the images with the amplitudes A'.
        weights: λ, (N,).
    """
    with full_precision(levels.device):
        spectrum = torch.fft.rfft2(levels)
        amplitude = spectrum.abs()
        mixed = amplitude + weights[:, None, None, None] * (amplitude[partners] - amplitude)
        images = torch.fft.irfft2(torch.polar(mixed, spectrum.angle()), s=levels.shape[-2:])
    return images.clamp(0, 255).floor()


def random_pairs(size: int, draws: Draws, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Partners (N,), in pairs, and λ (N,) of each pair, uniform in [0, most).

    If N is odd one sample is its own partner.
    """
    first, second = draws.permutation(size)[: size // 2 * 2].view(2, -1)
    partners, weights = torch.arange(size), torch.zeros(size)
    partners[first], partners[second] = second, first
    weights[first] = weights[second] = most * draws.uniform(len(first))
    return partners, weights


@register_algorithm
class FACT(ERM):
    """Amplitude mix and a co-teacher.

        λ ~ U(0, fact_alpha) for each pair of images;  x' see `amplitude_mix`
        loss = ½ CE(f(x), y) + ½ CE(f(x'), y) + w [KL(t(x) ‖ f(x')) + KL(t(x') ‖ f(x))]
        w = fact_weight · exp(−5 (1 − min(progress / fact_warmup, 1))²)
        t ← m t + (1 − m) f after update n = 1, 2, …,  m = min(1 − 1/(n + 1), fact_momentum)

    x: (N, C, H, W) of all domains, f(x): (N, K); the KL is of softmaxes of logits divided by
    `fact_temperature`, added up over classes, a mean over images; t, the teacher, is a constant. Of
    t only weights follow; statistics of batch norm that trains are its own (Xu et al. 2021). Pairs
    are of a minibatch, at random, of whatever domains. Images of three channels are normalised by
    ImageNet's mean and standard deviation, others are from 0 to 1.

    Attributes:
        teacher: t.
    """

    paper = (
        "Xu, Zhang, Zhang, Wang, Tian, A Fourier-based Framework for Domain Generalization, CVPR "
        "2021, arXiv 2105.11120"
    )
    search_space = {
        "fact_alpha": Fixed(1.0, "largest share of a partner's amplitudes", least=0, most=1),
        "fact_weight": Fixed(2.0, "weight of the consistency with the teacher", least=0),
        "fact_temperature": Fixed(10.0, "temperature of the softmaxes that should agree", above=0),
        "fact_momentum": Fixed(0.9995, "decay of the teacher's moving average", least=0, below=1),
        "fact_warmup": Fixed(
            0.1, "fraction of the updates during which that weight rises", above=0
        ),
    }
    needs_images = True
    needs_classes = True
    counters = ("update_count",)

    def build(self) -> None:
        if len(self.input_shape) != 3:
            raise UserError(
                f"FACT needs images, (channels, height, width), but the inputs have shape "
                f"{self.input_shape}: choose another algorithm"
            )
        super().build()
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        x, y, temperature = forward.x, forward.y, self.hparams["fact_temperature"]
        drawn = random_pairs(len(y), self.draws, self.hparams["fact_alpha"])
        scale, offset = scale_and_offset(x.device) if x.shape[1] == 3 else (1 / 255, 0.0)
        mixed = amplitude_mix((x - offset) / scale, *(sent(each, x.device) for each in drawn))
        both = self.forward_pass([(x, y), ((mixed * scale + offset).to(x.dtype), y)])
        with torch.no_grad():
            taught = self.teacher(both.x).roll(len(y), dims=0)  # of the other version
        own, target = ((each / temperature).log_softmax(dim=1) for each in (both.logits, taught))
        unlike = F.kl_div(own, target, reduction="sum", log_target=True) / len(y)
        rest = 1 - min(self.facts.progress / self.hparams["fact_warmup"], 1)
        weight = self.hparams["fact_weight"] * math.exp(-5 * rest**2)
        risk = both.pooled_risk()
        return risk + weight * unlike, {"nll": risk, "consistency": unlike}

    def descend(self, loss: torch.Tensor) -> None:
        """One step on `loss`; the teacher follows, and the update is counted."""
        super().descend(loss)
        self.update_count += 1
        keep = min(1 - 1 / (self.updates_done() + 1), self.hparams["fact_momentum"])
        with torch.no_grad():
            for own, weight in zip(self.teacher.parameters(), self.network.parameters()):
                own.lerp_(weight, 1 - keep)
