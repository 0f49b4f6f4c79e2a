"""T3A: a linear classifier whose weights are adapted to the images that it is tested on."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import Minibatches, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import Choice
from domainbed.core.device import full_precision

SUPPORTS = (1, 5, 20, 50, 100, 0)  # the paper's values of M; 0 keeps all (its "N/A")


class Templates:
    """The classes' templates, adjusted with each batch of a stream of images of one domain.

        S_k = {w_k} at first; each z is added to S_ŷ,  ŷ = argmax_k (W z + b)_k
        of S_k the M whose predictions softmax(W z + b) have the least entropy are kept
        c_k = Σ over S_k of z / ‖z‖, divided by its length;   logits = ⟨z, c_k⟩

    (Iwasawa & Matsuo 2021.) A batch is added before it is predicted. As in the authors' code,
    entropy filters w_k like the others, what it removed does not come back, and templates have
    length 1, where the paper's equation takes means. There w_k counts for the class that W w_k + b
    predicts, and here for k, as in the paper; and there "N/A" drops the last one of each class.

    Args:
        head: W and b, (B, d) to (B, C).
        most: M, or 0 for all.
    """

    def __init__(self, head: nn.Linear, most: int) -> None:
        self.head, self.most = head, most
        weight = head.weight.detach().float()
        self.supports = F.normalize(weight, dim=1)  # (N, d)
        self.labels = torch.arange(len(weight), device=weight.device)  # (N,)
        self.entropies = entropies(self._logits(weight))  # (N,)

    @torch.no_grad()
    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Adds features (B, d), and gives their logits (B, C)."""
        z = z.float()
        logits = self._logits(z)
        self.supports = torch.cat([self.supports, F.normalize(z, dim=1)])
        self.labels = torch.cat([self.labels, logits.argmax(dim=1)])
        self.entropies = torch.cat([self.entropies, entropies(logits)])
        if self.most:
            self._filter()
        members = F.one_hot(self.labels, self.head.out_features).to(z.dtype)  # (N, C)
        return z @ F.normalize(self.supports.T @ members, dim=0)

    def _filter(self) -> None:
        """Keeps of each class the M of least entropy; of equal ones those that came first."""
        order = self.entropies.argsort(stable=True)
        order = order[self.labels[order].argsort(stable=True)]  # by class, then by entropy
        labels = self.labels[order]
        firsts = torch.searchsorted(labels, labels)  # (N,) where each one's class begins
        ranks = torch.arange(len(labels), device=labels.device) - firsts
        kept = order[ranks < self.most].sort().values
        self.supports, self.labels, self.entropies = (
            each[kept] for each in (self.supports, self.labels, self.entropies)
        )

    def _logits(self, z: torch.Tensor) -> torch.Tensor:
        with full_precision(z.device):
            bias = self.head.bias
            return F.linear(z, self.head.weight.float(), None if bias is None else bias.float())


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """(N, C) to (N,), of the softmax."""
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


@register_algorithm
class T3A(ERM):
    """ERM that adapts its classifier at test time, without gradients; see `Templates`.

    It is trained as ERM. The images of a split are predicted as a stream, batch after batch,
    starting from the trained classifier; `predict` by itself takes its batch as the whole stream.
    """

    paper = (
        "Iwasawa, Matsuo, Test-Time Classifier Adjustment Module for Model-Agnostic Domain "
        "Generalization, NeurIPS 2021"
    )
    search_space = {
        "t3a_supports": Choice(20, SUPPORTS, "images kept per class; 0 keeps all", least=0)
    }
    predicts_batches = True
    needs_classes = True  # each has its templates
    needs_linear = True

    def forward_pass(self, minibatches: Minibatches) -> ForwardPass:
        """Of the network that is trained, which adjusts nothing."""
        return ForwardPass(minibatches, self.featurizer, self.classifier)

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        assert isinstance(self.classifier, nn.Linear)
        templates = Templates(self.classifier, self.hparams["t3a_supports"])
        return lambda x: templates(self.featurizer(x))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.predictor()(x)
