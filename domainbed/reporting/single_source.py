"""Runs that train on one domain and are tested on all others."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from domainbed.core.names import order_datasets
from domainbed.errors import UserError
from domainbed.reporting.tables import Report, Values, by_cell, only, tables_of
from domainbed.runs.records import Records
from domainbed.selection import PUBLISHED_METHODS, SELECTION_METHODS
from domainbed.selection.judging import judged_alike

SETTING = "trained on the one domain of a column and tested on the others"

_TARGET = 1  # in the views of runs below, which know the domains 0, the source, and 1


def is_single_source(runs: pd.DataFrame) -> pd.Series:
    """For each run whether all domains but one are tested, of three or more.

    Of three domains, the pairs of leave-one-domain-out cross-validation are such runs too.
    """
    return (runs["test_envs"].map(lambda envs: len(set(envs))) == runs["num_domains"] - 1) & (
        runs["num_domains"] > 2
    )


def count_single_source(records: Records) -> int:
    """How many such runs are no pairs, and so in no other table."""
    return int((is_single_source(records.runs) & (records.runs["num_domains"] > 3)).sum())


def single_source_report(
    records: Records,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    metric: str | None = None,
    selection_metric: str | None = None,
) -> Report:
    """One table per dataset with a column for each training domain, then the averages.

    A cell is the mean over trials of the mean over the other domains: the metric on a domain's
    in-split at the step and of the run that the method chooses for it. The training-domain method
    validates on the out-split of the one training domain, and chooses the same run for all others;
    oracle chooses for each of them.

    Args:
        records: as from `load_records`.
        selection: short names of selection methods; None for all that can choose.
        datasets: only these; None for all.
        algorithms: only these; None for all.
        metric: what is reported; None for the selection metric.
        selection_metric: what chooses; None for that of the runs, as `judged` finds it.

    Raises:
        UserError: a name is unknown, no run trains on one domain alone, a method needs pairs, or
            the datasets are judged by different metrics.
    """
    names = [name for name in PUBLISHED_METHODS if not SELECTION_METHODS[name].needs_pairs]
    methods = [SELECTION_METHODS[name] for name in dict.fromkeys(selection or names)]
    for method in methods:
        if method.needs_pairs:
            raise UserError(
                f"{method.name} needs runs on two training domains or more: choose of "
                f"{', '.join(names)}"
            )
    records = only(records, datasets, algorithms)
    records = records.only(is_single_source(records.runs))
    if records.runs.empty:
        raise UserError("no run trains on one domain alone, with all others as its test_envs")
    records = judged_alike(records, metric, selection_metric)
    views = _views(records)
    known = records.runs.groupby("dataset")["num_domains"].max()
    domains = {name: list(range(known[name])) for name in order_datasets(known.index)}
    tables = [
        table
        for method in methods
        for table in tables_of(
            records, method, _values(method.select(views)), domains, setting=SETTING
        )
    ]
    return Report(records, methods, tables, datasets, algorithms)


def _views(records: Records) -> Records:
    """For each run and test domain a run of two domains, its training domain 0 and its target 1.

    Their datasets are called "dataset/source/target", for selection methods to choose in each.
    """
    runs, values = records.runs, records.values
    domains = zip(runs["num_domains"], runs["test_envs"], strict=True)
    sources = [(set(range(count)) - set(envs)).pop() for count, envs in domains]
    pairs = pd.DataFrame({"run": runs.index, "source": sources, "target": runs["test_envs"]})
    pairs = pairs.explode("target", ignore_index=True).astype(int)
    views = runs.iloc[pairs["run"]].reset_index(drop=True)
    labels = (
        views["dataset"] + "/" + pairs["source"].astype(str) + "/" + pairs["target"].astype(str)
    )
    views = views.assign(dataset=labels, num_domains=2, test_envs=[(_TARGET,)] * len(views))
    sides = pairs.rename_axis("view").reset_index()
    sides = sides.melt(["view", "run"], ["source", "target"], "side", "domain")
    found = sides.merge(values, on=["run", "domain"])
    domain = np.where(found["side"] == "target", _TARGET, 0)
    values = found.assign(run=found["view"], domain=domain)[values.columns]
    return replace(records, runs=views, values=values)


def _values(chosen: pd.DataFrame) -> Values:
    """By dataset, algorithm and source, for each trial the mean over targets."""
    labels = chosen["dataset"].str.extract(r"(.*)/(\d+)/\d+")
    of_views = chosen.assign(dataset=labels[0], test_env=labels[1].astype(int))
    keys = ["dataset", "algorithm", "test_env", "trial_seed"]
    means = of_views.groupby(keys)["test"].agg(lambda values: values.to_numpy().mean())
    return by_cell(means.reset_index())
