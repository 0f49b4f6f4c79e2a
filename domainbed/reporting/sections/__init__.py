"""Comparisons as sections, tables of texts with notes on what they rest on; rendered elsewhere."""

from domainbed.reporting.sections.analyses import (
    expected_section,
    gap_section,
    line_section,
    tuning_section,
    worst_section,
)
from domainbed.reporting.sections.differences import difference_sections
from domainbed.reporting.sections.ranks import rank_sections

__all__ = [
    "difference_sections",
    "expected_section",
    "gap_section",
    "line_section",
    "rank_sections",
    "tuning_section",
    "worst_section",
]
