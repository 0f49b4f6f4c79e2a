"""MIRO: features stay informative of those of the pretrained network."""

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import Choice, Option
from domainbed.networks.stages import stages

_LEAST = 1e-5  # of a variance, as in the authors' code


@contextmanager
def tapped(featurizer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The outputs of the featurizer's stages during what is done inside, in their order."""
    found: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for stage in stages(featurizer):
            hooks.enter_context(stage.register_forward_hook(lambda _, x, z: found.append(z)))
        yield found


def information_loss(z: torch.Tensor, fixed: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
    """½ mean [(z − z⁰)² / v + log v] over all entries, v = softplus(raw) + 1e-5: a scalar.

    Args:
        z: features (B, C, H, W), (B, C), or tokens (…, C).
        fixed: z⁰, of the pretrained network.
        raw: (C,), one variance of each channel.
    """
    variances = F.softplus(raw) + _LEAST
    squares = (
        (z.to(raw.dtype) - fixed.to(raw.dtype)).square().movedim(1 if z.dim() == 4 else -1, -1)
    )
    return (squares / variances + variances.log()).mean() / 2


@register_algorithm
class MIRO(ERM):
    """Mutual information regularization with an oracle.

        loss = CE + miro_lambda · Σ_l ½ mean [(z_l − z⁰_l)² / v_l + log v_l]

    z_l: what stage l of the network gives, see `networks.stages`; z⁰_l: what it gave before
    training, with frozen weights and statistics; v_l: a variance for each channel, trained as well,
    with `miro_lr_factor` times the rate, 0.1 at first (Cha et al. 2022, with the identity as
    mean encoder). The loss may be negative. Of a network that starts from random
    weights it keeps the features near those random ones.

    Attributes:
        pretrained: the network before training.
        raw_variances: of each stage (C,).
    """

    paper = (
        "Cha, Lee, Park, Chun, Domain Generalization by Mutual-Information Regularization with "
        "Pre-trained Models, ECCV 2022, arXiv 2203.10789"
    )
    search_space = {
        "miro_lambda": Choice(0.1, (0.001, 0.01, 0.1, 1.0), "weight of the regulariser", least=0)
    }
    options = {
        "miro_lr_factor": Option(10.0, "learning rate of the variances, relative to lr", above=0)
    }
    needs_images = True  # features are already those of a pretrained network
    whole_batch_inside = True

    def build(self) -> None:
        super().build()
        self.pretrained = copy.deepcopy(self.featurizer).requires_grad_(False).eval()
        with torch.no_grad(), tapped(self.pretrained) as found:
            self.pretrained(torch.zeros(1, *self.input_shape))
        self.raw_variances = nn.ParameterList(
            torch.full((z.shape[1 if z.dim() == 4 else -1],), math.log(math.expm1(0.1 - _LEAST)))
            for z in found
        )
        faster = {"lr": self.hparams["lr"] * self.option("miro_lr_factor")}
        own, variances = [*self.network.parameters()], [*self.raw_variances]
        self.optimizer = self.new_optimizer([{"params": own}, {"params": variances, **faster}])

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        with tapped(self.featurizer) as own:
            risk = forward.pooled_risk()
        with torch.no_grad(), tapped(self.pretrained) as fixed:
            self.pretrained.eval()(forward.x)
        penalty = torch.stack([*map(information_loss, own, fixed, self.raw_variances)]).sum()
        return risk + self.hparams["miro_lambda"] * penalty, {"nll": risk, "penalty": penalty}
