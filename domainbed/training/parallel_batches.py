"""Predicting several batches at the same time, each on one core."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from types import MethodType

import torch
from torch import nn

from domainbed.datasets.domain import Minibatch
from domainbed.datasets.images.threads import in_order
from domainbed.networks import MNIST_CNN
from domainbed.training import ranks

Predict = Callable[[torch.Tensor], torch.Tensor]
Predicted = tuple[torch.Tensor, torch.Tensor]
"""The logits of a batch, and its labels."""

_MOST_AT_ONCE = 16  # each takes some 50 MB


def number_at_once(predict: Predict, device: torch.device, batches: int) -> int:
    """How many of some batches are best predicted at the same time.

    With the network of the small images on a CPU it is one for each core: a core with a batch of
    its own waits for no other. It is one in all for other networks, whose batches are large; where
    predictions may depend on those before, as those of code from elsewhere may; where processes
    share each pass; and in bf16, which would hardly gain.
    """
    threads = min(torch.get_num_threads(), _MOST_AT_ONCE)
    if device.type != "cpu" or ranks.count() > 1 or torch.is_autocast_enabled("cpu"):
        return 1
    return threads if threads <= batches and _is_method_of_small_network(predict) else 1


def _is_method_of_small_network(predict: Predict) -> bool:
    """Whether it is `predict` of an algorithm of this package, with a network of this package."""
    algorithm = getattr(predict, "__self__", None)
    if not isinstance(predict, MethodType) or not isinstance(algorithm, nn.Module):
        return False
    parts = list(algorithm.modules())
    is_ours = all(type(part).__module__.startswith(("domainbed.", "torch.")) for part in parts)
    return (
        is_ours
        and predict.__name__ == "predict"
        and any(isinstance(part, MNIST_CNN) for part in parts)
    )


def predicted(
    predict: Predict, batches: Iterable[Minibatch], at_once: int
) -> Generator[Predicted, None, None]:
    """The logits and labels of each batch, in order; to be closed where it is not used up."""
    in_thread = torch.no_grad()(predict)  # a new thread does not know that none are wanted

    def of_one(batch: Minibatch) -> Predicted:
        x, labels = batch
        return in_thread(x), labels

    cores = max(1, torch.get_num_threads() // at_once)
    return in_order(of_one, batches, at_once if at_once > 1 else 0, cores)
