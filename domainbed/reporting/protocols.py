"""Under which protocol, PyTorch and precision runs were made, and where they are mixed."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from domainbed.runs.records import NOT_RECORDED


def protocol_of(runs: pd.DataFrame) -> str:
    """The protocol of some runs, as in "default (version 1)"; all, if there are several."""
    different = runs[["protocol", "protocol_version", "features"]].drop_duplicates()
    return ", ".join(sorted(set(_protocols(different))))


def mixtures(runs: pd.DataFrame) -> list[str]:
    """One line for each condition in which runs of one table differ."""
    conditions = {
        "protocols": _protocols(runs),
        "major versions of PyTorch": [version.split(".")[0] for version in runs["torch"].tolist()],
        "precisions": runs["precision"].tolist(),
    }
    return [
        f"{what}: {_counts(values)}" for what, values in conditions.items() if len(set(values)) > 1
    ]


def _protocols(runs: pd.DataFrame) -> list[str]:
    columns = runs[["protocol", "protocol_version", "features"]].to_numpy().tolist()
    return [
        name if version == NOT_RECORDED else _named(name, version, features)
        for name, version, features in columns
    ]


def _named(name: str, version: str, features: str) -> str:
    return f"{name} (version {version})" + (f", {features}" if features else "")


def _counts(values: list[str]) -> str:
    """Each value and how many runs have it, as in "fp32 in 3 runs, bf16 in 1 run"."""
    counts = Counter(values).most_common()
    return ", ".join(f"{value} in {count} run{'s' * (count > 1)}" for value, count in counts)
