"""The ready-made metrics, and what is known of them without PyTorch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

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


def _new(name: str, labels: LabelType) -> Accumulator:
    def of_split(*of_samples: Any) -> float:
        from domainbed.metrics import whole_split  # torchmetrics takes seconds to import

        return getattr(whole_split, name)(*of_samples, labels)

    return WholeSplit(of_split)


_ONE = ("classes", "binary")
_ANY = (*_ONE, "multilabel")
_NUMBERS = ("regression",)

METRICS.register(
    of_samples(
        "accuracy",
        lambda labels: partial(accuracy, labels=labels),
        percent=True,
        label_kinds=_ANY,
    ),
    name="accuracy",
)
METRICS.register(
    of_samples("loss", lambda labels: partial(loss, labels=labels), higher_is_better=False),
    name="loss",
)
for _name, _higher, _percent, _kinds in (
    # whether higher is better, whether it is shown in percent, and of which labels it is
    ("balanced_accuracy", True, True, _ANY),
    ("f1", True, True, _ANY),
    ("auroc", True, True, _ANY),
    ("average_precision", True, True, _ANY),
    ("mcc", True, False, _ONE),
    ("ece", False, True, _ONE),
    ("nll", False, False, _ANY),
    ("brier", False, False, _ANY),
    ("mae", False, False, _NUMBERS),
    ("rmse", False, False, _NUMBERS),
    ("r2", True, False, _NUMBERS),
):
    METRICS.register(Metric(_name, partial(_new, _name), _higher, _percent, _kinds), name=_name)
