"""Mean ranks and the critical difference."""

from __future__ import annotations

import pandas as pd

from domainbed.reporting.section import Section
from domainbed.reporting.sections.texts import count, p_value_text
from domainbed.reporting.statistics import CriticalDifference


def rank_sections(found: dict[str, CriticalDifference], unit: str) -> list[Section]:
    """Mean ranks and the critical difference, or why they show nothing."""
    sections = []
    for selection, ranks in found.items():
        frame = pd.DataFrame(
            {"selection": selection, "algorithm": list(ranks.mean_ranks),
             "mean_rank": list(ranks.mean_ranks.values()), "observations": ranks.count,
             "p_value": ranks.p_value, "critical_difference": ranks.distance}
        )  # fmt: skip
        rows = [[name, f"{rank:.2f}"] for name, rank in ranks.mean_ranks.items()]
        over = count(ranks.count, _OBSERVATIONS[unit])
        title = f"Mean ranks over {over}, model selection method: {selection}"
        sections.append(
            Section(
                "ranks", title, ["Algorithm", "mean rank"], rows, rank_notes(ranks, unit), frame
            )
        )
    return sections


_OBSERVATIONS = {"trial": "test domain and trial", "domain": "test domain", "dataset": "dataset"}


def rank_notes(ranks: CriticalDifference, unit: str) -> list[str]:
    """What a critical-difference diagram shows, or that it can show nothing."""
    if len(ranks.mean_ranks) < 3:
        return ["Friedman's test compares three algorithms and more: no critical difference"]
    if not ranks.can_differ:
        return [
            f"shows nothing: with {len(ranks.mean_ranks)} algorithms and "
            f"{count(ranks.count, _OBSERVATIONS[unit])} no two mean ranks can be further apart "
            "than the critical difference"
        ]
    p_value = f"Friedman's test: p {p_value_text(ranks.p_value)}"
    distance = f"critical difference (Nemenyi, 95 %): {ranks.distance:.2f}"
    dependent = "dependent: the domains of a dataset train on each other, so p may be far too small"
    caution = [] if unit == "dataset" else [dependent]
    if not ranks.tells_apart:
        return [f"{p_value}; {distance}: no algorithms are told apart", *caution]
    groups = "; ".join(", ".join(group) for group in ranks.groups) or "none"
    return [f"{p_value}; {distance}; not told apart: {groups}", *caution]
