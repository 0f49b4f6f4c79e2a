"""How the numbers of a metric are counted and printed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from domainbed.metrics import describe_metric
from domainbed.reporting.section import NOTHING

_DIGITS = 4  # of a usual number, where a metric is no percentage
PERCENT = 100


@dataclass(frozen=True)
class Unit:
    """What the numbers of a metric mean.

    Attributes:
        metric: its name in records.
        sign: 1 if the higher of two values is the better one, -1 if the lower is.
        factor: what recorded values are multiplied by: 100 for percent, or 1.
        decimals: that numbers are printed with.
        chosen_by: the selection metric, where it is another one.
    """

    metric: str = "accuracy"
    sign: int = 1
    factor: int = PERCENT
    decimals: int = 1
    chosen_by: str = ""

    @classmethod
    def of(cls, metric: str, numbers: Iterable[float | None] = ()) -> Unit:
        """The unit of a metric, for numbers such as these.

        Percentages have one decimal. Others have as many as give the median of the numbers four
        digits in all.

        Raises:
            UserError: the metric is unknown.
        """
        facts = describe_metric(metric)
        sign = 1 if facts.higher_is_better else -1
        if facts.percent:
            return cls(facts.name, sign)
        sizes = [abs(n) for n in numbers if n is not None and math.isfinite(n) and n]
        usual = math.floor(math.log10(np.median(sizes))) if sizes else 0
        return cls(facts.name, sign, 1, min(max(_DIGITS - 1 - usual, 0), 9))

    @property
    def tie(self) -> float:
        """Differences below it are ties: they are not printed."""
        return 0.5 * 10**-self.decimals

    @property
    def name(self) -> str:
        """The metric, and the direction where it is not the usual one."""
        return f"{self.metric} (lower is better)" if self.sign < 0 else self.metric

    @property
    def heading(self) -> str:
        """What stands in titles; nothing of accuracy that accuracy chose."""
        if self.chosen_by:
            return f", {self.name}, chosen by {self.chosen_by}"
        return "" if self == Unit() else f", {self.name}"

    @property
    def of_values(self) -> str:
        """What values are counted in: "accuracy in percent"."""
        return f"{self.metric} in percent" if self.factor == PERCENT else self.name

    @property
    def of_axis(self) -> str:
        """The same for an axis: "accuracy (%)"."""
        return f"{self.metric} (%)" if self.factor == PERCENT else self.name

    @property
    def of_differences(self) -> str:
        """What differences are counted in: "percentage points"."""
        return "percentage points" if self.factor == PERCENT else self.name

    def text(self, value: float, signed: bool = False) -> str:
        """A number, or a difference with its sign."""
        if math.isnan(value):
            return NOTHING
        rounded = round(value, self.decimals) + 0.0  # never -0.0
        return f"{rounded:+.{self.decimals}f}" if signed else f"{value:.{self.decimals}f}"

    def with_error(self, value: float, std_err: float | None, signed: bool = False) -> str:
        """A number with its standard error, if it has one."""
        if math.isnan(value) or std_err is None or math.isnan(std_err):
            return self.text(value, signed)
        return f"{self.text(value, signed)} +/- {std_err:.{self.decimals}f}"

    def verdict(self, low: float, high: float) -> str:
        """What an interval of differences says: "better", "worse", or "" if it contains zero."""
        if low <= 0 <= high or math.isnan(low):
            return ""
        return "better" if self.sign * low > 0 else "worse"

    def interval(self, low: float, high: float) -> str:
        """The ends of an interval of differences."""
        if math.isnan(low):
            return NOTHING
        return f"[{low:+.{self.decimals}f}, {high:+.{self.decimals}f}]"
