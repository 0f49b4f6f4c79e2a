"""The contract of metrics, and their registry: what is known of them needs no PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from domainbed.core.registry import Registry
from domainbed.errors import UserError

if TYPE_CHECKING:
    import torch

    from domainbed.metrics.labels import LabelType

# What a metric by group, or by class, records behind its name.
PARTS = {
    "_by_group": ("worst_group", "mean_group", "group_gap"),
    "_by_class": ("worst_class", "mean_class", "class_gap"),
}


class Value(NamedTuple):
    """One value of a record: a metric of a domain's split."""

    domain: int
    split: str
    metric: str
    value: float


class Accumulator(ABC):
    """Computes a metric of one split. Classes from outside need not inherit from it."""

    @abstractmethod
    def update(
        self, outputs: torch.Tensor, targets: torch.Tensor, extras: Mapping[str, Any] | None
    ) -> None:
        """Takes samples in; a split may come in one part or in several.

        Args:
            outputs: (B, C) float32 on the CPU, what the algorithm predicts: logits, or numbers.
            targets: (B, …) their labels.
            extras: what else the dataset says of each sample, by name; None if nothing.
        """

    @abstractmethod
    def compute(self) -> float | Mapping[str, float]:
        """The value of all samples, NaN where it is not defined; or the values of all `parts`."""


@dataclass(frozen=True)
class Metric:
    """What is known of a metric before anything is measured.

    Attributes:
        name: that its values have in records.
        new: makes its accumulator for labels of a type.
        higher_is_better: the direction that selection and tables go by.
        percent: whether tables show it times 100.
        label_kinds: the kinds of label types that it is defined for; empty for all.
        parts: of several values the names, which records have behind the metric's.
        per_sample: for labels of a type the function of outputs (B, C) and targets (B, …) to
            values (B,) whose mean over the split is the metric; None for others.
    """

    name: str
    new: Callable[[LabelType], Accumulator]
    higher_is_better: bool = True
    percent: bool = False
    label_kinds: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    per_sample: Callable[[LabelType], Callable[..., torch.Tensor]] | None = None

    @property
    def recorded(self) -> tuple[str, ...]:
        """The names of its values in records."""
        return tuple(f"{self.name}_{part}" for part in self.parts) or (self.name,)

    def suits(self, labels: LabelType) -> bool:
        """Whether it is defined for labels of this type."""
        return not self.label_kinds or labels.kind in self.label_kinds

    def measured(
        self,
        labels: LabelType,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        extras: Mapping[str, Any] | None,
    ) -> dict[str, float]:
        """Its values of a whole split, by names in records; see `Accumulator.update`.

        Raises:
            UserError: it is no number, or not what `parts` names.
        """
        accumulator = self.new(labels)
        accumulator.update(outputs, targets, extras)
        found = accumulator.compute()
        if not self.parts:
            return {self.name: number_of(self.name, found)}
        if not isinstance(found, Mapping) or set(found) != set(self.parts):
            raise UserError(
                f"metric {self.name!r} computed {found!r}: expected a dict of "
                f"{', '.join(self.parts)}, the parts that it declares",
                "metrics",
            )
        return {f"{self.name}_{part}": number_of(self.name, found[part]) for part in self.parts}


def number_of(metric: str, value: Any) -> float:
    """A number, or an array of one number, as a float.

    Raises:
        UserError: it is something else.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = getattr(value, "shape", None)
        said = f"{value!r}" if shape is None else f"an array of shape {tuple(shape)}"
        raise UserError(
            f"metric {metric!r} computed {said}: expected one number", "metrics"
        ) from error


def _check_entry(entry: Any) -> None:
    """Raises `ValueError` for what is no metric."""
    is_class = isinstance(entry, type)
    lacking = [n for n in ("update", "compute") if is_class and not hasattr(entry, n)]
    if lacking or not (callable(entry) or isinstance(entry, Metric)):
        raise ValueError(
            f"{getattr(entry, '__name__', repr(entry))} is not a metric: expected a class with "
            "update and compute, or a function of outputs and targets"
        )


METRICS: Registry[Any] = Registry(
    "metric", entry_point_group="domainbed.metrics", check=_check_entry
)
"""Classes with `update` and `compute`, and functions of outputs and targets to a value per sample.
Attributes of either say what `Metric` says of it."""


class MetricFacts(NamedTuple):
    """What tables and selection ask about a value of records."""

    name: str
    higher_is_better: bool
    percent: bool
