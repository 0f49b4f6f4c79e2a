"""The ready-made metrics, and what is known of them without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from domainbed.metrics.accumulators import WholeSplit, of_samples
from domainbed.metrics.contract import METRICS, Accumulator, Metric

if TYPE_CHECKING:
    import torch

    from domainbed.metrics.labels import LabelType


def accuracy(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> torch.Tensor:
    """(B,) whether each prediction is right, or the share of properties of which it is.

    None is where an output is infinite or no number.
    """
    right = labels.decode(outputs) == targets
    finite = outputs.isfinite().all(dim=1)
    return right & finite if right.dim() == 1 else right.float().mean(dim=1) * finite


def loss(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> torch.Tensor:
    """(B,) what the label type has learned, in nats for classes."""
    return labels.losses(outputs.float(), targets)


def _of_samples(function: Callable[..., torch.Tensor], kinds: tuple[str, ...], better: str) -> None:
    def per_sample(labels: LabelType) -> Callable[..., torch.Tensor]:
        return partial(function, labels=labels)

    name, higher = function.__name__, better == "higher"
    metric = of_samples(
        name, per_sample, higher_is_better=higher, percent=higher, label_kinds=kinds
    )
    METRICS.register(metric, name=name)


def _of_split(name: str, kinds: tuple[str, ...], better: str, percent: bool = False) -> None:
    def new(labels: LabelType) -> Accumulator:
        from domainbed.metrics import whole_split

        return WholeSplit(labels, getattr(whole_split, name))

    METRICS.register(Metric(name, new, better == "higher", percent, kinds), name=name)


_ONE = ("classes", "binary")
_ANY = (*_ONE, "multilabel")

_of_samples(accuracy, _ANY, "higher")
_of_samples(loss, (), "lower")
_of_split("balanced_accuracy", _ANY, "higher", percent=True)
_of_split("f1", _ANY, "higher", percent=True)
_of_split("auroc", _ANY, "higher", percent=True)
_of_split("average_precision", _ANY, "higher", percent=True)
_of_split("mcc", _ONE, "higher")
_of_split("ece", _ONE, "lower", percent=True)
_of_split("nll", _ANY, "lower")
_of_split("brier", _ANY, "lower")
_of_split("mae", ("regression",), "lower")
_of_split("rmse", ("regression",), "lower")
_of_split("r2", ("regression",), "higher")
