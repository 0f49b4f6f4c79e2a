"""Test-time adaptation: a trained network steps on the batches that it predicts, without labels."""

import copy
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.algorithms.base import Algorithm, step, trained_parameters
from domainbed.algorithms.t3a import SUPPORTS, Templates, entropies
from domainbed.errors import UserError


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The mean entropy of the predictions (B, C), a scalar (Wang et al. 2021, Tent)."""
    return entropies(logits).mean()


def pseudo_label(logits: torch.Tensor) -> torch.Tensor:
    """CE of the predicted classes, of the samples whose probability is over 0.9; 0 without any."""
    sure = (logits.softmax(dim=1).amax(dim=1) > 0.9).to(logits.dtype)
    losses = F.cross_entropy(logits, logits.argmax(dim=1), reduction="none")
    return (sure * losses).sum() / sure.sum().clamp(min=1)


def information(logits: torch.Tensor) -> torch.Tensor:
    """Entropy + Σ_k p̄_k log(p̄_k + 1e-5), p̄ the mean prediction (Liang et al. 2020, SHOT-IM)."""
    mean = logits.softmax(dim=1).mean(dim=0)
    return entropy(logits) + (mean * (mean + 1e-5).log()).sum()


def shot(logits: torch.Tensor) -> torch.Tensor:
    """`information` + 0.1 · `pseudo_label`, as in the code of T3A."""
    return information(logits) + 0.1 * pseudo_label(logits)


def margin(z: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Mean max((z − z⁰)² − 0.1, 0) over all entries of the features (Zhang et al. 2023, UniDG)."""
    return ((z - fixed).square() - 0.1).clamp(min=0).mean()


# By name what is trained, and on which loss of the logits, to which UniDG adds unidg_lambda ·
# `margin`. With "norms" batch norm uses the batch's statistics, and its scales and shifts are
# trained.
METHODS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor] | None]] = {
    "T3A": ("nothing", None),
    "BatchNorm": ("norms", None),
    "Tent": ("norms", entropy),
    "PseudoLabel": ("all", pseudo_label),
    "SHOT_IM": ("featurizer", information),
    "SHOT": ("featurizer", shot),
    "UniDG": ("all", entropy),
}


def settings_of(method: str, supports: Any, lr: float) -> list[dict[str, Any]]:
    """What is tried in validation, as in the authors' code.

    The M of `Templates` (`supports`, or the paper's), and multiples of the rate `lr`.
    """
    kept, rates = {"t3a_supports": supports or SUPPORTS}, [lr * a for a in (0.1, 1.0, 10.0)]
    grid: dict[str, Any] = {
        "T3A": kept,
        "BatchNorm": {},
        "UniDG": {"adapt_lr": rates[:2], "unidg_lambda": (1.0, 0.1), **kept},
    }.get(method, {"adapt_steps": (1, 3), "adapt_lr": rates})
    return [dict(zip(grid, values)) for values in product(*grid.values())]


class Adapted(Algorithm):
    """A trained network that adapts to each split that it predicts, from the trained weights.

    Of `adapt_steps` passes over a batch, each with a step after it, the last one predicts. T3A and
    UniDG predict by `Templates`. The optimizer is Adam, with the run's weight decay.

    Args:
        featurizer, head: of the trained network.
        method: one of `METHODS`.
        hparams: those of the run, with one of `settings_of`.

    Raises:
        UserError: the network has nothing that the method adapts.
    """

    predicts_batches = True

    def __init__(
        self, featurizer: nn.Module, head: nn.Linear, method: str, hparams: Mapping[str, Any]
    ) -> None:
        nn.Module.__init__(self)
        self.network, self.hparams = nn.Sequential(featurizer, head), hparams
        self.trains, self.loss = METHODS[method]
        if self.trains == "norms" and not _norms(featurizer):
            raise UserError(f"{method} needs batch norm layers, and the network has none")
        if self.trains == "featurizer" and not list(featurizer.parameters()):
            raise UserError(f"{method} trains the featurizer, and it has no weights")

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        network: Any = copy.deepcopy(self.network).requires_grad_(False)
        part: Any = {"featurizer": network[0], "norms": nn.ModuleList(_norms(network))}
        part.get(self.trains, network).requires_grad_(True)
        most = self.hparams.get("t3a_supports")  # of T3A and UniDG, which predict by templates
        templates = None if most is None else Templates(network[1], most)
        rate, decay = self.hparams.get("adapt_lr", 0.0), self.hparams.get("weight_decay", 0.0)
        optimizer = torch.optim.Adam(trained_parameters(network), lr=rate, weight_decay=decay)

        def predict(x: torch.Tensor) -> torch.Tensor:
            for norm in _norms(network) if self.trains == "norms" else ():
                norm.momentum = 0.0  # running statistics stay
                norm.train(len(x) > 1)
            for _ in range(self.hparams.get("adapt_steps", 1)):
                with torch.set_grad_enabled(self.loss is not None):
                    z = network[0](x)
                    logits = network[1](z)
                    found = templates(z) if templates else logits.detach()
                    if self.loss is not None:
                        weight = self.hparams.get("unidg_lambda", 0.0)
                        far = weight * margin(z, self.network[0](x).detach()) if weight else 0.0
                        step(optimizer, self.loss(logits) + far)
            return found

        return predict


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
