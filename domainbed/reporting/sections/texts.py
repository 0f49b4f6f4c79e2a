"""How numbers stand in the tables of comparisons."""

from __future__ import annotations

import math

import pandas as pd

NOTHING = "-"


def count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def span(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def one_decimal(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.1f}"


def two_decimals(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.2f}"


def with_sign(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{round(value, 1) + 0.0:+.1f}"  # never -0.0


def mean_text(mean: float, std_err: float, signed: bool = False) -> str:
    text = with_sign(mean) if signed else one_decimal(mean)
    return text if math.isnan(std_err) or math.isnan(mean) else f"{text} +/- {std_err:.1f}"


def interval(low: float, high: float) -> str:
    return NOTHING if math.isnan(low) else f"[{low:+.1f}, {high:+.1f}]"


def p_value_text(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"
