"""Test-time adaptation: a trained network steps on the batches that it predicts, without labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.algorithms.base import Algorithm, step
from domainbed.algorithms.t3a import SUPPORTS, Templates, entropies
from domainbed.errors import UserError

CONFIDENT = 0.9  # the least probability of a pseudo label

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (B, C), and those of the network before any step, to a scalar."""


def entropy(logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The mean entropy of the predictions (Wang et al. 2021, Tent, equation 1)."""
    return entropies(logits).mean()


def pseudo_label(logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """CE of the predicted classes, of the samples whose probability is over 0.9; 0 without any."""
    sure = (logits.softmax(dim=1).amax(dim=1) > CONFIDENT).to(logits.dtype)
    losses = F.cross_entropy(logits, logits.argmax(dim=1), reduction="none")
    return (sure * losses).sum() / sure.sum().clamp(min=1)


def information(logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Entropy + Σ_k p̄_k log(p̄_k + 1e-5), p̄ the mean prediction (Liang et al. 2020, equation 2)."""
    mean = logits.softmax(dim=1).mean(dim=0)
    return entropy(logits, before) + (mean * (mean + 1e-5).log()).sum()


def shot(logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """`information` + 0.1 · `pseudo_label`, as in the code of T3A."""
    return information(logits, before) + 0.1 * pseudo_label(logits, before)


def marginal(logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Entropy + mean max((z − z⁰)² − 0.1, 0) over all entries (Zhang et al. 2023, UniDG)."""
    return entropy(logits, before) + ((logits - before).square() - 0.1).clamp(min=0).mean()


METHODS: dict[str, tuple[str, Loss | None]] = {
    "T3A": ("nothing", None),
    "BatchNorm": ("norms", None),
    "Tent": ("norms", entropy),
    "PseudoLabel": ("all", pseudo_label),
    "SHOT_IM": ("featurizer", information),
    "SHOT": ("featurizer", shot),
    "UniDG": ("all", marginal),
}
"""By name what is trained, and on which loss. With "norms" batch norm uses the batch's statistics,
and its scales and shifts are trained."""


def settings_of(method: str, supports: Any, lr: float) -> list[dict[str, Any]]:
    """What is tried in validation: M of T3A, or multiples of the rate `lr` and numbers of steps."""
    if method == "T3A":
        return [{"t3a_supports": m} for m in supports or SUPPORTS]
    if METHODS[method][1] is None:
        return [{}]
    return [{"adapt_lr": lr * a, "adapt_steps": n} for n in (1, 3) for a in (0.1, 1.0, 10.0)]


class Adapted(Algorithm):
    """A trained network that adapts to each split that it predicts, from the trained weights.

    A batch is predicted by the weights before its own step. T3A and UniDG predict by `Templates`.

    Raises:
        UserError: the method trains batch norm layers, and there are none.
    """

    predicts_batches = True

    def __init__(
        self, featurizer: nn.Module, head: nn.Linear, method: str, setting: dict[str, Any]
    ) -> None:
        nn.Module.__init__(self)
        self.head = head
        self.network, self.setting = nn.Sequential(featurizer, head), setting
        self.trains, self.loss = METHODS[method]
        self.uses_templates = method in ("T3A", "UniDG")
        if self.trains == "norms" and not _norms(featurizer):
            raise UserError(f"{method} needs batch norm layers, and the network has none")

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        network = copy.deepcopy(self.network).requires_grad_(False)
        part: Any = {"featurizer": network[0], "norms": nn.ModuleList(_norms(network))}
        trained = list(part.get(self.trains, network).requires_grad_(True).parameters())
        templates = Templates(self.head, self.setting.get("t3a_supports", 20))
        optimizer = torch.optim.Adam(trained, lr=self.setting.get("adapt_lr", 0.0))

        def predict(x: torch.Tensor) -> torch.Tensor:
            for norm in _norms(network) if self.trains == "norms" else ():
                norm.momentum = 0.0  # running statistics stay
                norm.train(len(x) > 1)
            before, z = self.network(x), network[0](x)
            found = templates(z) if self.uses_templates else network[1](z)
            for _ in range(self.setting.get("adapt_steps", 0)):
                with torch.enable_grad():
                    assert self.loss is not None
                    step(optimizer, self.loss(network(x), before))
            return found

        return predict


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
