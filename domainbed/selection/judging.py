"""By which metrics runs are chosen and reported: those asked for, or those of their labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from domainbed.errors import UserError
from domainbed.metrics import describe_metric, label_type
from domainbed.runs.records import NO_DOMAIN, Records

log = logging.getLogger(__name__)


def judged(
    records: Records, metric: str | None = None, selection_metric: str | None = None
) -> list[Records]:
    """The records by which metrics they are judged, in parts: datasets with the same metrics.

    Args:
        records: as from `load_records`.
        metric: what is reported; None for the selection metric.
        selection_metric: what chooses; None for what the runs were told (`selection_metric` in
            their args), or else that of their label type.

    Raises:
        UserError: a metric is unknown, no run of a dataset recorded it, or the runs of a dataset
            are to be chosen by several.
    """
    runs = records.runs
    chooses = pd.Series([selection_metric or default_metric(args) for args in runs["args"]])
    parts = []
    for name in dict.fromkeys(chooses):
        datasets = runs.loc[chooses == name, "dataset"].unique()
        part = records.only(runs["dataset"].isin(datasets))
        if others := sorted(set(chooses[runs["dataset"].isin(datasets)]) - {name}):
            raise UserError(
                f"runs of {', '.join(datasets)} are chosen by {name} and by {', '.join(others)}: "
                "give one --selection_metric"
            )
        facts, reported = describe_metric(name), metric or name
        part = replace(
            part,
            metric=describe_metric(reported).name,
            selection_metric=name,
            lower_is_better=not facts.higher_is_better,
        )
        parts.append(_of_runs_with(part, list(dict.fromkeys([name, reported]))))
    return parts


def judged_alike(
    records: Records, metric: str | None = None, selection_metric: str | None = None
) -> Records:
    """As `judged`, for what cannot mix metrics.

    Raises:
        UserError: also if the datasets are judged by different metrics.
    """
    parts = judged(records, metric, selection_metric)
    if len(parts) > 1:
        named = [f"{', '.join(p.runs['dataset'].unique())} by {p.metric}" for p in parts]
        raise UserError(
            f"the datasets are judged by different metrics ({'; '.join(named)}): give --datasets, "
            "or one --selection_metric that all their runs recorded"
        )
    return parts[0]


def default_metric(args: dict[str, object]) -> str:
    """The metric that chooses among runs with these args, where none is asked for."""
    told = args.get("selection_metric")
    return str(told or label_type(str(args.get("labels", "classes"))).selection_metric)


def _of_runs_with(records: Records, metrics: Sequence[str]) -> Records:
    """The records of the runs that recorded all of these metrics.

    Raises:
        UserError: none of a dataset did.
    """
    runs, values = records.runs, records.values
    of_splits, run = (values["domain"] != NO_DOMAIN).to_numpy(), values["run"].to_numpy()
    whole = np.ones(len(runs), dtype=bool)
    for metric in metrics:
        has = np.zeros(len(runs), dtype=bool)
        has[run[of_splits & (values["metric"] == metric).to_numpy()]] = True
        for dataset in runs.loc[~has, "dataset"].unique():
            here = (runs["dataset"] == dataset).to_numpy()
            if not has[here].any():
                known = values.loc[of_splits & here[run], "metric"].unique()
                raise UserError(
                    f"no run of {dataset} recorded {metric}, but {', '.join(sorted(known))}: "
                    f"choose one of these, or train with --metrics {metric}"
                )
        whole &= has
    if not whole.all():
        log.warning(
            "warning: %d of %d runs did not record %s and are left out, such as %s",
            (~whole).sum(), len(runs), " and ".join(metrics), runs["folder"][~whole].iloc[0],
        )  # fmt: skip
    return records.only(whole)
