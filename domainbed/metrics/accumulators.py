"""What sums a metric up over one split: means of samples, functions of the whole split, groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed.core.plugins import warn_once
from domainbed.errors import UserError
from domainbed.metrics.contract import PARTS, Accumulator, Metric, number_of

if TYPE_CHECKING:
    import torch

    from domainbed.metrics.labels import LabelType

    PerSample = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def values_of_samples(
    name: str, function: PerSample, outputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """(B,) the values of a metric that is a mean over samples.

    Raises:
        UserError: the function returns something else.
    """
    values = function(outputs, targets)
    found = getattr(values, "shape", None)
    if found is None or tuple(found) != (len(targets),):
        said = f"{values!r}" if found is None else f"a tensor of shape {tuple(found)}"
        raise UserError(
            f"metric {name!r} returned {said} for a batch of {len(targets)}: a function returns "
            f"one value per sample, shape ({len(targets)},); what needs the whole split is a class "
            "with update and compute",
            "metrics",
        )
    return values


def of_samples(name: str, per_sample: Callable[[LabelType], PerSample], **facts: Any) -> Metric:
    """A metric that is the mean over the samples of a split; `facts` are fields of `Metric`."""
    return Metric(
        name, lambda labels: SampleMean(name, per_sample(labels)), per_sample=per_sample, **facts
    )


class SampleMean(Accumulator):
    """The mean of a function's values, which are added up in float64."""

    def __init__(self, name: str, function: PerSample) -> None:
        self._name, self._function = name, function
        self._sum, self._count = 0.0, 0

    def update(
        self, outputs: torch.Tensor, targets: torch.Tensor, extras: Mapping[str, Any] | None
    ) -> None:
        values = values_of_samples(self._name, self._function, outputs, targets)
        self._sum += values.double().sum().item()
        self._count += len(targets)

    def compute(self) -> float:
        return self._sum / self._count if self._count else math.nan


class WholeSplit(Accumulator):
    """A function of the outputs, in float64, and the labels of the whole split.

    Its value is NaN where an output is infinite or no number.
    """

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
        self._function = function
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, outputs: torch.Tensor, targets: torch.Tensor, extras: Mapping[str, Any] | None
    ) -> None:
        self._parts.append((outputs, targets))

    def compute(self) -> float:
        import torch

        outputs, targets = (torch.cat(part) for part in zip(*self._parts))
        if not outputs.isfinite().all():
            return math.nan
        return self._function(outputs.double(), targets)


def by_part(metric: Metric, suffix: str) -> Metric:
    """The metric's worst value of all groups, its mean over them, and the gap of best and worst.

    Args:
        metric: of one value.
        suffix: "_by_group", of the extras, or "_by_class", of the labels.

    Raises:
        UserError: it has several values.
    """
    if metric.parts:
        raise UserError(
            f"metric {metric.name!r} has several values: none {suffix[1:].replace('_', ' ')}",
            "metrics",
        )
    return replace(
        metric,
        new=lambda labels: ByGroup(metric, labels, suffix),
        parts=PARTS[suffix],
        per_sample=None,
        label_kinds=metric.label_kinds if suffix == "_by_group" else ("classes", "binary"),
    )


class ByGroup(Accumulator):
    """A metric of each group, or class, of a split, and what is recorded of them.

    Groups without a value, such as the AUROC of a group with one class, are left out with a
    warning.
    """

    def __init__(self, metric: Metric, labels: LabelType, suffix: str) -> None:
        self._metric, self._labels, self._suffix = metric, labels, suffix
        self._groups: dict[Any, Accumulator] = {}

    def update(
        self, outputs: torch.Tensor, targets: torch.Tensor, extras: Mapping[str, Any] | None
    ) -> None:
        groups = targets if self._suffix == "_by_class" else (extras or {}).get("group")
        if groups is None:
            raise UserError("metrics by group need samples with a group in their extras", "metrics")
        names, of_samples = np.unique(np.asarray(groups), return_inverse=True)
        for number, name in enumerate(names.tolist()):
            rows = np.flatnonzero(of_samples == number)
            group = self._groups.setdefault(name, self._metric.new(self._labels))
            group.update(outputs[rows], targets[rows], {"group": [name] * len(rows)})

    def compute(self) -> Mapping[str, float]:
        values = [number_of(self._metric.name, group.compute()) for group in self._groups.values()]
        defined = [value for value in values if not math.isnan(value)]
        if not defined:
            return dict.fromkeys(PARTS[self._suffix], math.nan)
        if len(defined) < len(values):
            warn_once(
                f"{self._metric.name}{self._suffix} is of {len(defined)} of {len(values)} parts: "
                "it is not defined in the others"
            )
        lowest, highest = min(defined), max(defined)
        worst = lowest if self._metric.higher_is_better else highest
        return dict(zip(PARTS[self._suffix], (worst, float(np.mean(defined)), highest - lowest)))
