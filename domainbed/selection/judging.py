"""By which metrics runs are chosen and reported: those asked for, or those of their labels."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from domainbed.core.names import average_in
from domainbed.core.plugins import warn_once
from domainbed.errors import UserError, log
from domainbed.metrics import (
    LABEL_TYPES,
    describe_metric,
    label_type,
    measure_predictions,
    recorded_names,
)
from domainbed.metrics.names import recorded_by
from domainbed.runs.folder import RunFolder, plugin_hint
from domainbed.runs.records import NO_DOMAIN, Records


def judged(
    records: Records, metric: str | None = None, selection_metric: str | None = None
) -> list[Records]:
    """The records by which metrics they are judged, in parts: datasets with the same metrics.

    A metric that no run of a dataset recorded is computed from the predictions that runs kept.

    Args:
        records: as from `load_records`.
        metric: what is reported; None for the selection metric.
        selection_metric: what chooses; None for what the runs were told (`selection_metric` in
            their args), or else that of their label type.

    Raises:
        UserError: a metric is unknown, no run of a dataset recorded it, or the runs of a dataset
            are to be chosen by several.
    """
    by_dataset: dict[str, list[str]] = {}
    for dataset, runs in records.runs.groupby("dataset", sort=False):
        by_dataset.setdefault(selection_metric or _default(dataset, runs), []).append(dataset)
    parts = []
    for name, datasets in by_dataset.items():
        judges = by_metric(records.only(records.runs["dataset"].isin(datasets)), name, metric)
        for asked in dict.fromkeys([name, metric or name]):
            judges = _with_predictions(judges, asked)
        parts.append(_of_runs_with(judges))
    return parts


def by_metric(records: Records, selection_metric: str, metric: str | None = None) -> Records:
    """The records, chosen by one metric, and reported in the same or in another.

    Raises:
        UserError: a metric is unknown.
    """
    chooses = describe_metric(selection_metric)
    return replace(
        records,
        metric=describe_metric(metric or selection_metric).name,
        selection_metric=chooses.name,
        lower_is_better=not chooses.higher_is_better,
    )


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


def _default(dataset: str, runs: pd.DataFrame) -> str:
    """What chooses among the runs of a dataset.

    Raises:
        UserError: they do not agree, or none that is known is recorded.
    """
    args = runs["args"]
    told = {str(each["selection_metric"]) for each in args if each.get("selection_metric")}
    labels = {str(each.get("labels", "classes")) for each in args}
    known = {label_type(name).selection_metric for name in labels if name in LABEL_TYPES}
    names = sorted(told or known)
    if len(names) > 1:
        raise UserError(
            f"runs of {dataset} are chosen by {' and by '.join(names)}: give one --selection_metric"
        )
    with suppress(UserError, IndexError):
        return describe_metric(names[0]).name
    return _instead(runs.iloc[0], names or [f"label type {name}" for name in labels])


def _instead(run: Any, unknown: Iterable[str]) -> str:
    """The first known metric that a run recorded, for one that a plug-in registers, with a warning.

    Raises:
        UserError: it recorded none.
    """
    folder = Path(run["folder"])
    lacking = (
        f"runs such as {folder} are chosen by {', '.join(unknown)}, which nothing here registers"
        f"{plugin_hint(folder)}"
    )
    for name in run["args"].get("metrics") or ():
        with suppress(UserError):
            found = recorded_names([name])[0]
            warn_once(f"{lacking}: chosen by {found} instead")
            return found
    raise UserError(f"{lacking}: give a --selection_metric that they recorded")


def _with_predictions(records: Records, asked: str) -> Records:
    """The records with a metric that no run recorded, of the last step of runs with predictions.

    Only runs with one test domain are looked at: what is known of last steps alone decides between
    no others. What averages of their weights would predict was not kept.

    Raises:
        UserError: a file of predictions is damaged, or the metric is not defined for the labels.
    """
    metric, runs = describe_metric(asked).name, records.runs
    if _has(records, metric).any():
        return records
    name = recorded_by(metric) if metric.endswith(("_worst_group", "_worst_class")) else asked
    rows = []
    for number, run in enumerate(runs.to_dict("records")):
        file = RunFolder(run["folder"]).predictions
        if len(run["test_envs"]) == 1 and not average_in(run["algorithm"]) and file.is_file():
            step = int(run["args"].get("steps") or run["last_step"] + 1) - 1
            found = measure_predictions(file, [name])
            rows += [(number, step, v.domain, v.split, v.metric, v.value) for v in found]
    if not rows:
        return records
    log.warning(
        "warning: no run recorded %s: it is computed from the predictions that %d of %d runs "
        "kept, which are of their last step", metric, len({row[0] for row in rows}), len(runs),
    )  # fmt: skip
    added = pd.DataFrame(rows, columns=["run", "step", "domain", "split", "metric", "value"])
    values = pd.concat([records.values, added.dropna()], ignore_index=True)
    return replace(records, values=values, of_last_steps=metric)


def _has(records: Records, metric: str) -> np.ndarray:
    """For each run whether it recorded a metric of any split."""
    values, has = records.values, np.zeros(len(records.runs), dtype=bool)
    is_found = (values["metric"] == metric) & (values["domain"] != NO_DOMAIN)
    has[values["run"].to_numpy()[is_found.to_numpy()]] = True
    return has


def _of_runs_with(records: Records) -> Records:
    """The records of the runs that recorded both metrics.

    Raises:
        UserError: none of a dataset did.
    """
    runs, values = records.runs, records.values
    whole = np.ones(len(runs), dtype=bool)
    metrics = dict.fromkeys([records.selection_metric, records.metric])
    for metric in metrics:
        has = _has(records, metric)
        for dataset in runs.loc[~has, "dataset"].unique():
            here = (runs["dataset"] == dataset).to_numpy()
            if not has[here].any():
                of_splits = here[values["run"]] & (values["domain"] != NO_DOMAIN)
                known = ", ".join(sorted(values.loc[of_splits, "metric"].unique()))
                raise UserError(
                    f"no run of {dataset} recorded {metric}, but {known}: choose one of these, "
                    f"train with --metrics {recorded_by(metric)}, or let runs keep predictions "
                    "(`domainbed model predict RUN_FOLDER --save_predictions`), for that of their "
                    "last step"
                )
        whole &= has
    if not (whole.all() or records.of_last_steps):
        log.warning(
            "warning: %d of %d runs did not record %s and are left out, such as %s",
            (~whole).sum(), len(runs), " and ".join(metrics), runs["folder"][~whole].iloc[0],
        )  # fmt: skip
    return records.only(whole)
