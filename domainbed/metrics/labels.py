"""Label types: what labels are, and what is learned from them.

A label type decides the width of a network's outputs, the loss, what a prediction is, and which
metrics are recorded. Names and metrics are known without PyTorch, which only the methods import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from domainbed.core.registry import Registry, require_subclass
from domainbed.errors import UserError

if TYPE_CHECKING:
    import torch


class LabelType(ABC):
    """What the labels of a dataset are.

    B: samples of a batch, n: of a domain, C: the width of the outputs. The functions of outputs
    treat each sample alone, so that gradients of single samples exist.

    Attributes:
        name: as the field `labels` of a run names it.
        kind: the ready-made type whose metrics suit it: "classes", "binary", "multilabel" or
            "regression". Algorithms that need classes take every type of the kind "classes".
        default_metrics: what is recorded of every split where a run names no metrics.
        selection_metric: by which selection chooses where nothing else is said.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    default_metrics: ClassVar[tuple[str, ...]]
    selection_metric: ClassVar[str]

    @property
    def has_classes(self) -> bool:
        """Whether a label is one of several classes, of which binary labels have two."""
        return self.kind in ("classes", "binary")

    def width(self, num_classes: int) -> int:
        """C, of a dataset with this `num_classes`; constructors of algorithms are given it.

        Raises:
            UserError: there are no such labels.
        """
        return num_classes

    @abstractmethod
    def check(self, labels: torch.Tensor, num_classes: int, position: int = 0) -> None:
        """Checks the dtype, shape and range of labels (n, …).

        Args:
            labels: of consecutive samples.
            num_classes: the dataset's.
            position: of the first of them in its domain, for messages.

        Raises:
            UserError: a wrong label; the message has its position and what would be right.
        """

    @abstractmethod
    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(B,) the loss of each sample, of outputs (B, C) and labels (B, …)."""

    def risk(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean of the losses, a scalar."""
        return self.losses(outputs, targets).mean()

    @abstractmethod
    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """(B, C) probabilities, or predicted values, of outputs (B, C)."""

    @abstractmethod
    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        """Predicted labels, of the shape of labels, of outputs (B, C)."""


LABEL_TYPES: Registry[type[LabelType]] = Registry(
    "label type",
    entry_point_group="domainbed.label_types",
    check=lambda entry: require_subclass(
        entry, LabelType, "label type", ("name", "kind", "default_metrics", "selection_metric")
    ),
)


def register_label_type(entry: type[LabelType]) -> type[LabelType]:
    """Adds a label type to the registry, under its `name`; works as a decorator."""
    return LABEL_TYPES.register(entry, name=getattr(entry, "name", None))


def label_type(name: str) -> LabelType:
    """The label type of this name.

    Raises:
        UserError: there is none.
    """
    return LABEL_TYPES[name]()


def _refuse_first(wrong: torch.Tensor, labels: torch.Tensor, position: int, expected: str) -> None:
    """Raises a UserError for the first label where `wrong` (n, …) is true."""
    for index in wrong.reshape(len(labels), -1).any(dim=1).nonzero().flatten().tolist():
        raise UserError(
            f"image {position + index} has the label {labels[index].tolist()}, expected {expected}",
            "dataset",
        )


def _require_shape(labels: torch.Tensor, *shapes: tuple[int, ...]) -> None:
    """Raises a UserError where a label has none of these shapes."""
    found = tuple(labels.shape[1:])
    if found not in shapes:
        expected = " or ".join(map(str, shapes))
        raise UserError(f"each label has the shape {found}, expected {expected}", "dataset")


def _alike(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs in float32 or better, and targets in their shape and dtype."""
    import torch

    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs, targets.reshape(outputs.shape).to(outputs.dtype)


@register_label_type
class Classes(LabelType):
    """The number of one of C classes, int64 from 0; learned by the cross-entropy, in nats."""

    name = kind = "classes"
    default_metrics = ("accuracy",)
    selection_metric = "accuracy"

    def check(self, labels: torch.Tensor, num_classes: int, position: int = 0) -> None:
        import torch

        if labels.dtype != torch.int64:
            raise UserError(
                f"the dtype of its labels is {labels.dtype}, expected torch.int64", "dataset"
            )
        _require_shape(labels, ())
        expected = f"0 to {num_classes - 1} (num_classes is {num_classes})"
        _refuse_first((labels < 0) | (labels >= num_classes), labels, position, expected)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(outputs, targets, reduction="none")

    def risk(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # Not the mean of the losses, which may differ in the last bit.
        from torch.nn import functional as F

        return F.cross_entropy(outputs, targets)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(dim=1)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(dim=1)


CLASSES = Classes()


@register_label_type
class Multilabel(LabelType):
    """For each of C properties 1 or 0, (n, C); learned by the mean of C binary cross-entropies."""

    name = kind = "multilabel"
    default_metrics = ("average_precision",)
    selection_metric = "average_precision"

    def check(self, labels: torch.Tensor, num_classes: int, position: int = 0) -> None:
        _require_shape(labels, (num_classes,))
        _refuse_first((labels != 0) & (labels != 1), labels, position, "zeros and ones")

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional as F

        outputs, targets = _alike(outputs, targets)
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.sigmoid()

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return (outputs > 0).long()


@register_label_type
class Binary(Multilabel):
    """0 or 1, (n,), told apart by one logit; learned by the binary cross-entropy, in nats."""

    name = kind = "binary"
    default_metrics = ("accuracy",)
    selection_metric = "accuracy"

    def width(self, num_classes: int) -> int:
        if num_classes not in (1, 2):
            raise UserError(
                f"labels are binary, but num_classes is {num_classes}: expected 2, or 1", "labels"
            )
        return 1

    def check(self, labels: torch.Tensor, num_classes: int, position: int = 0) -> None:
        _require_shape(labels, ())
        _refuse_first((labels != 0) & (labels != 1), labels, position, "0 or 1")

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return super().decode(outputs).squeeze(1)


@register_label_type
class Regression(LabelType):
    """C real numbers, (n, C), or (n,) if C is 1; learned by the mean of their squared errors."""

    name = kind = "regression"
    default_metrics = ("rmse",)
    selection_metric = "rmse"

    def check(self, labels: torch.Tensor, num_classes: int, position: int = 0) -> None:
        if not labels.is_floating_point():
            raise UserError(
                f"the dtype of its labels is {labels.dtype}, expected a floating-point one",
                "dataset",
            )
        _require_shape(labels, (num_classes,), *([()] if num_classes == 1 else []))
        _refuse_first(~labels.isfinite(), labels, position, "finite numbers")

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outputs, targets = _alike(outputs, targets)
        return (outputs - targets).square().mean(dim=1)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        scores = self.scores(outputs)
        return scores.squeeze(1) if scores.size(1) == 1 else scores
