"""One table of a comparison: what every format prints."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd


class Section(NamedTuple):
    """One table of a comparison.

    Attributes:
        name: for programs.
        title: for people.
        header: the columns' names.
        rows: the cells as text.
        notes: what the numbers are, and how little they prove.
        frame: the numbers.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    frame: pd.DataFrame
