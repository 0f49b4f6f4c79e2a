"""Aggregation: from records to the cells of the results tables, as numbers."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add, itemgetter
from typing import Any

import numpy as np
import pandas as pd

from domainbed.core.names import (
    DATASET_DOMAINS,
    NUM_CLASSES,
    TEST_DOMAINS,
    dataset_label,
    order_algorithms,
    order_datasets,
)
from domainbed.errors import UserError, did_you_mean, log
from domainbed.reporting.mixtures import mixtures, protocols, within_means
from domainbed.reporting.statistics import student_half_width
from domainbed.reporting.units import Unit
from domainbed.runs.records import Records
from domainbed.selection import PUBLISHED_METHODS, SELECTION_METHODS, SelectionMethod
from domainbed.selection.judging import judged

AVERAGE = "Avg"
MEAN_RANK = "Mean rank"
ORDERS = ("table", "given", "mean")
SPREADS = {"se": "standard error", "ci95": "half of the 95 % interval", "none": ""}
"""What may stand behind ±, and what it is called."""


CellKey = tuple[str, str, int]  # dataset, algorithm, test domain
Gaps = dict[tuple[str, str, tuple[int, ...]], str]  # by dataset, algorithm and test domains, why
Values = dict[CellKey, dict[int, float]]  # for each trial the reported metric of the choice


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        mean: unrounded, of a percentage in percent (in the column "Mean rank": a rank); None if
            there is none.
        std_err: the standard error over trials; None for one trial, and for averages of datasets.
        n_trials: how many trials the mean is over; for averages the smallest such number.
        values: the trials' numbers by ascending trial; () for averages of datasets.
        best: whether no other algorithm has a better number, as printed, in this column.
        diverged: (trial, hparams seed) of chosen runs whose loss was not finite at some step.
        gap: why there can be no number, where runs were left out of the plan that it needs.
        second: whether it is the second best so.
        decimals: that it is printed with, unless a style says so.
        trials: the seeds of `values`.
        near: whether it is less than the best by no more than the standard error of the
            difference, over common trials.
    """

    mean: float | None = None
    std_err: float | None = None
    n_trials: int = 0
    values: tuple[float, ...] = ()
    best: bool = False
    diverged: tuple[tuple[int, int], ...] = ()
    gap: str = ""
    second: bool = False
    decimals: int = 1
    trials: tuple[int, ...] = ()
    near: bool = False


@dataclass(frozen=True)
class Style:
    """What a paper wants its tables to look like; the default is DomainBed's.

    Attributes:
        decimals: of every number; the best of a column is the best of what is printed. None
            for one in percent, and else as many as make four digits.
        spread: what stands behind ±: "se", the standard error, "ci95", half of a 95 % interval of
            Student's t over trials, or "none".
        second: whether the second best of each column is underlined, where a format can.
        order: of rows and tables: "table", "given" (that of `algorithms` and `datasets`), or
            "mean", in each table the best average first.
        algorithms: for the order "given"; those that are not named follow.
        datasets: as `algorithms`, for tables.
        domains: the names of domains that come first, in this order.

    Raises:
        UserError: a value is not allowed.
    """

    decimals: int | None = None
    spread: str = "se"
    second: bool = False
    order: str = "table"
    algorithms: Sequence[str] = field(default=())
    datasets: Sequence[str] = field(default=())
    domains: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if self.decimals is not None and not 0 <= self.decimals <= 9:
            raise UserError(f"--decimals {self.decimals}: give a number from 0 to 9")
        for name, known in (("spread", SPREADS), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: choose {', '.join(known)}")

    def spread_of(self, cell: Cell) -> float | None:
        """What stands behind ±; None for nothing, as where there is one trial."""
        if self.spread == "none" or cell.std_err is None or len(cell.values) < 2:
            return None
        return cell.std_err if self.spread == "se" else student_half_width(cell.values)


DOMAINBED_STYLE = Style()


@dataclass(frozen=True)
class Column:
    """What a column is about: `test_env` is a domain's number, "Avg" or "Mean rank".

    `chance` is the number of who guesses, where that is known.
    """

    label: str
    dataset: str
    test_env: str
    chance: float | None = None


@dataclass(frozen=True)
class Table:
    """The cells of one dataset (or, with `dataset` None, the averages) under one method.

    `protocol` names the protocol of its runs and the version, or several of them; `setting` says
    what its runs train on, where that is not all other domains; `unit` is of its numbers, and
    `selection_metric` is what its runs were chosen by.
    """

    selection: str
    title: str
    dataset: str | None
    protocol: str
    columns: list[Column]
    rows: dict[str, list[Cell]]
    setting: str = ""
    unit: Unit = Unit()  # noqa: RUF009  # a frozen one
    selection_metric: str = "accuracy"


@dataclass(frozen=True)
class Report:
    """All tables of some records, and what they were made from.

    Attributes:
        records: those in the tables, and by which metrics they are judged if that is the same for
            all datasets.
        methods: the selection methods.
        tables: for each method one per dataset, then the averages.
        datasets, algorithms: the names that were asked for; None for all.
        gaps: runs that cannot be, and why.
        style: how it is printed.
    """

    records: Records
    methods: list[SelectionMethod]
    tables: list[Table]
    datasets: Sequence[str] | None = None
    algorithms: Sequence[str] | None = None
    gaps: Gaps = field(default_factory=dict)
    style: Style = DOMAINBED_STYLE

    def wants(self, dataset: str, algorithm: str) -> bool:
        """Whether the report was asked for this dataset and algorithm."""
        return (self.datasets is None or dataset in self.datasets) and (
            self.algorithms is None or algorithm in self.algorithms
        )


def build_report(
    records: Records,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    gaps: Gaps | None = None,
    metric: str | None = None,
    selection_metric: str | None = None,
) -> Report:
    """Makes the tables of every selection method: one per dataset, then the averages.

    Datasets that are judged by different metrics have averages of their own.

    Args:
        records: as from `load_records`.
        selection: short names of selection methods; None for the published ones.
        datasets: only these; None for all in the records.
        algorithms: only these; None for all in the records.
        gaps: as from `planned_gaps`.
        metric: what is reported; None for the selection metric.
        selection_metric: what chooses; None for that of each dataset's runs, as `judged` finds it.

    Raises:
        UserError: a name is unknown, or no record is left. Cells without a result, or on fewer
            trials than others, are no error: they are counted in a warning. Another names each
            mixture of protocols, major versions of PyTorch or precisions in a dataset's runs.
    """
    names = PUBLISHED_METHODS if selection is None else dict.fromkeys(selection)
    methods = [SELECTION_METHODS[name] for name in names]
    records = only(records, datasets, algorithms)
    parts = judged(records, metric, selection_metric)
    records = parts[0] if len(parts) == 1 else records
    selected = [(part, method, method.select(part)) for method in methods for part in parts]
    tables = []
    for part, method, chosen in selected:
        domains_of = {
            name: tested_domains(part.runs, name)
            for name in order_datasets(part.runs["dataset"].unique())
        }
        diverged = _diverged(part.runs, chosen, method)
        tables += tables_of(part, method, by_cell(chosen), domains_of, diverged, gaps or {})
    report = Report(records, methods, tables, datasets, algorithms, gaps or {})
    _warn_of_gaps(report)
    for mixture in [*mixtures(records.runs), *within_means(records.runs)]:
        log.warning("warning: %s", mixture)
    return report


def domain_names(runs: pd.DataFrame, dataset: str) -> list[str]:
    """The names of a dataset's domains: as published, as recorded, or else their numbers."""
    of_dataset = runs[runs["dataset"] == dataset]
    names = [str(n) for n in DATASET_DOMAINS.get(dataset) or _recorded(of_dataset, "environments")]
    count = max(len(names), int(of_dataset["num_domains"].max()))
    return names + [str(i) for i in range(len(names), count)]


def tested_domains(runs: pd.DataFrame, dataset: str) -> list[int]:
    """The domains that a dataset is evaluated on, and those that were tested all the same."""
    of_dataset = runs[runs["dataset"] == dataset]
    declared = TEST_DOMAINS.get(dataset) or _recorded(of_dataset, "test_domains")
    tested = {envs[0] for envs in of_dataset["test_envs"] if len(envs) == 1}
    domains = range(len(domain_names(runs, dataset)))
    return [domain for domain in domains if not declared or domain in [*declared, *tested]]


def _recorded(runs: pd.DataFrame, name: str) -> list[Any]:
    """A list among the args of the runs; empty if none of them has it."""
    return next((args[name] for args in runs["args"] if isinstance(args.get(name), list)), [])


def only(
    records: Records,
    datasets: Sequence[str] | None,
    algorithms: Sequence[str] | None,
    role: str = "",
) -> Records:
    """The records of these datasets and algorithms; None means all.

    Args:
        role: of the names, for the message of an error, such as ", the baseline".

    Raises:
        UserError: a name is unknown, or no record is left.
    """
    for column, names in (("dataset", datasets), ("algorithm", algorithms)):
        known = sorted(set(records.runs[column]))
        for name in names or ():
            if name not in known:
                raise UserError(
                    f"no records of {column} {name!r}{role}.{did_you_mean(name, known)} "
                    f"There are: {', '.join(known) or 'none'}"
                )
        if names is not None:
            records = records.only(records.runs[column].isin(names))
    if records.runs.empty:
        raise UserError(f"no records of {algorithms} on {datasets}: choose others")
    return records


def tables_of(
    records: Records,
    method: SelectionMethod,
    values: Values,
    domains_of: dict[str, list[int]],
    diverged: dict[CellKey, list[tuple[int, int]]] | None = None,
    gaps: Gaps | None = None,
    setting: str = "",
) -> list[Table]:
    """One table per dataset with a column for each of its `domains_of`, then the averages."""
    runs, unit = records.runs, Unit.of(records.metric)
    judges = unit, records.selection_metric
    algorithms = order_algorithms(runs["algorithm"].unique())
    of_datasets = _averages_rows(values, domains_of, algorithms, unit)
    tables = []
    for place, (dataset, domains) in enumerate(domains_of.items()):
        names, chance = domain_names(runs, dataset), _chance(dataset, unit)
        labels = [*((names[env], str(env)) for env in domains), (AVERAGE, AVERAGE)]
        columns = [Column(label, dataset, env, chance) for label, env in labels]
        rows = {}
        for algorithm in algorithms:
            cells = [
                replace(
                    mean_over_trials(values.get(key, {}), unit.factor),
                    diverged=tuple(sorted(set((diverged or {}).get(key, [])))),
                    gap=_gap(key, method, gaps or {}) if key not in values else "",
                )
                for key in [(dataset, algorithm, env) for env in domains]
            ]
            rows[algorithm] = [*cells, _average(cells, of_datasets[algorithm][place])]
        protocol = protocol_of(runs[runs["dataset"] == dataset])
        marked = mark_best(_printed(rows, unit), columns, unit.sign)
        tables.append(
            Table(method.name, method.title, dataset, protocol, columns, marked, setting, *judges)
        )
    columns = [
        *(Column(name, name, AVERAGE, _chance(name, unit)) for name in domains_of),
        *(Column(label, AVERAGE, label) for label in (AVERAGE, MEAN_RANK)),
    ]
    marked = mark_best(_printed(of_datasets, unit, ranks=True), columns, unit.sign)
    protocol = protocol_of(runs)
    return [
        *tables,
        Table(method.name, method.title, None, protocol, columns, marked, setting, *judges),
    ]


def _gap(key: CellKey, method: SelectionMethod, gaps: Gaps) -> str:
    """Why there can be no number in a cell; "" where no run was left out that it needs."""
    dataset, algorithm, env = key
    whys = (
        why
        for (of, name, envs), why in gaps.items()
        if (of, name) == (dataset_label(dataset), algorithm) and method.uses(envs, env)
    )
    return next(whys, "")


def by_cell(chosen: pd.DataFrame) -> Values:
    """The reported metric by cell and trial, both ascending, as it was recorded."""
    found: Values = defaultdict(dict)
    columns = ["dataset", "algorithm", "test_env", "trial_seed", "test"]
    for *key, trial, test in chosen[columns].itertuples(index=False, name=None):
        found[tuple(key)][trial] = test
    return dict(found)


def _diverged(
    runs: pd.DataFrame, chosen: pd.DataFrame, method: SelectionMethod
) -> dict[CellKey, list[tuple[int, int]]]:
    """The trials and hparams seeds of the chosen runs that diverged, by cell."""
    keys = ["dataset", "algorithm", "trial_seed", "hparams_seed"]
    found: dict[CellKey, list[tuple[int, int]]] = defaultdict(list)
    both = chosen.merge(runs.loc[runs["diverged"], [*keys, "test_envs"]], on=keys)
    for row in both.to_dict("records"):
        if method.uses(row["test_envs"], row["test_env"]):
            seeds = row["trial_seed"], row["hparams_seed"]
            found[row["dataset"], row["algorithm"], row["test_env"]].append(seeds)
    return found


def _averages_rows(
    values: Values, domains_of: dict[str, list[int]], algorithms: list[str], unit: Unit
) -> dict[str, list[Cell]]:
    rows = {}
    for algorithm in algorithms:
        cells = []
        for dataset, domains in domains_of.items():
            of_domains = [values.get((dataset, algorithm, env), {}) for env in domains]
            means = {
                trial: float(np.mean([of[trial] for of in of_domains if trial in of]))
                for trial in sorted(set().union(*of_domains))
            }
            cells.append(mean_over_trials(means, unit.factor))
        rows[algorithm] = [*cells, mean_of_cells(cells)]
    ranks = mean_ranks([[cell.mean for cell in cells[:-1]] for cells in rows.values()], unit.sign)
    for cells, rank in zip(rows.values(), ranks, strict=True):
        cells.append(Cell() if rank is None else replace(cells[-1], mean=rank))
    return rows


def mean_over_trials(values: Mapping[int, float], factor: int = 100) -> Cell:
    """The mean ± standard error of values by trial, times `factor`: 100 for percent.

    The standard error is the population standard deviation over the square root of their number.
    The operations are in the published order, so that the last digit is the published one.
    """
    if not values:
        return Cell()
    listed = list(values.values())
    mean = float(factor * np.mean(listed))
    std_err = float(factor * np.std(np.array(listed) / np.sqrt(len(listed))))
    return Cell(
        *(mean, std_err if len(listed) > 1 else None, len(listed)),
        tuple(factor * each for each in listed),
        trials=tuple(values),
    )


def _average(cells: list[Cell], over_trials: Cell) -> Cell:
    """The mean over a dataset's domains, with the error of its means `over_trials`.

    Where no trial lacks a domain the two are one mean that was added up in two orders, and one
    number stands for both.
    """
    plain = mean_of_cells(cells)
    if plain.mean is None or over_trials.mean is None:
        return plain
    same = math.isclose(plain.mean, over_trials.mean, abs_tol=1e-9)
    mean = over_trials.mean if same else plain.mean
    return replace(over_trials, mean=mean, n_trials=plain.n_trials)


def mean_of_cells(cells: list[Cell]) -> Cell:
    """The mean of the cells' unrounded means; no result if one of them has none."""
    means = [cell.mean for cell in cells if cell.mean is not None]
    if not means or len(means) < len(cells):
        return Cell()
    return Cell(_plain_mean(means), None, min(cell.n_trials for cell in cells))


def mean_ranks(means: list[list[float | None]], sign: int = 1) -> list[float | None]:
    """The mean rank of each row over the columns; None for a row that lacks a number.

    In each column the highest number has rank 1, or with the sign -1 the lowest, and equal numbers
    share the mean of their ranks.
    """
    ranks = pd.DataFrame(means, dtype=float).rank(ascending=sign < 0).to_numpy()
    return [None if np.isnan(row).any() else _plain_mean(row.tolist()) for row in ranks]


def _plain_mean(values: list[float]) -> float:
    """Added from left to right: since Python 3.12 `sum` rounds differently."""
    return reduce(add, values) / len(values)


def _printed(rows: dict[str, list[Cell]], unit: Unit, ranks: bool = False) -> dict[str, list[Cell]]:
    """Cells with the decimals that the unit needs; with `ranks` but for the last column."""
    end = -1 if ranks else None
    means = [cell.mean for cells in rows.values() for cell in cells[:end]]
    decimals = Unit.of(unit.metric, means).decimals
    return {
        name: [replace(cell, decimals=decimals) for cell in cells[:end]] + cells[-1:] * ranks
        for name, cells in rows.items()
    }


def mark_best(
    rows: dict[str, list[Cell]], columns: list[Column], sign: int = 1, decimals: int | None = None
) -> dict[str, list[Cell]]:
    """Marks each column's best printed means, those that come second, and those near the best.

    They are the highest, or with the sign -1 the lowest, and so are mean ranks. `decimals` are of
    all cells; None for their own. Nothing is marked in a column whose numbers all tie, or all lie
    within their errors of chance; nor in averages over datasets of which none has a mark.
    """
    marked: list[list[Cell]] = []
    for column, cells in zip(columns, zip(*rows.values()), strict=True):
        over_datasets = column.dataset == AVERAGE
        if over_datasets and not any(cell.best for of_column in marked for cell in of_column):
            marked.append([replace(cell, best=False, second=False, near=False) for cell in cells])
        else:
            own = -1 if column.test_env == MEAN_RANK else sign
            marked.append(_marked(cells, column.chance, own, decimals))
    return dict(zip(rows, map(list, zip(*marked)), strict=True))


def _marked(
    cells: Sequence[Cell], chance: float | None, sign: int, decimals: int | None
) -> list[Cell]:
    shown = pd.Series(
        [None if cell.mean is None else
         round(cell.mean, cell.decimals if decimals is None else decimals) for cell in cells],
        dtype=float,
    )  # fmt: skip
    places = (sign * shown).rank(method="dense", ascending=False)
    known = [(sign * cell.mean, cell) for cell in cells if cell.mean is not None]
    by_chance = chance is not None and all(
        abs(sign * mean - chance) <= (cell.std_err or 0.0) for mean, cell in known
    )
    if by_chance or not places.max() > 1:
        places[:] = math.nan
    _, best = max(known, key=itemgetter(0), default=(0.0, Cell()))
    return [
        replace(
            cell,
            best=bool(place == 1),
            second=bool(place == 2),
            near=bool(place > 1) and _is_near(cell, best),
        )
        for cell, place in zip(cells, places, strict=True)
    ]


def _is_near(cell: Cell, best: Cell) -> bool:
    """Whether the mean difference over common trials is within its standard error of zero."""
    of_best = dict(zip(best.trials, best.values, strict=True))
    own = zip(cell.trials, cell.values, strict=True)
    found = mean_over_trials({t: of_best[t] - value for t, value in own if t in of_best}, 1)
    if found.mean is None or found.std_err is None:
        return False
    return abs(found.mean) <= found.std_err


def _chance(dataset: str, unit: Unit) -> float | None:
    """The accuracy of who guesses, in percent."""
    if unit.metric != "accuracy" or dataset not in NUM_CLASSES:
        return None
    return unit.factor / NUM_CLASSES[dataset]


def _warn_of_gaps(report: Report) -> None:
    """Says on the log how many cells have no result or lack trials."""
    lacks = []  # of each cell: none of its trials are there, or some are not
    for table in report.tables:
        if table.dataset:
            expected = len(trials_of(report.records.runs, table.dataset))
            cells = [cell for row in table.rows.values() for cell in row[:-1] if not cell.gap]
            lacks += [(not cell.n_trials, 0 < cell.n_trials < expected) for cell in cells]
    empty, short = np.sum(lacks, axis=0) if lacks else (0, 0)
    if empty or short:
        log.warning(
            "warning: of %d cells %d have no result and %d lack trials, and averages are over "
            "what is there: --explain says which runs are missing", len(lacks), empty, short,
        )  # fmt: skip


def trials_of(runs: pd.DataFrame, dataset: str) -> list[int]:
    """The trial seeds that a dataset's runs have, ascending."""
    return sorted(set(runs.loc[runs["dataset"] == dataset, "trial_seed"].tolist()))


def protocol_of(runs: pd.DataFrame) -> str:
    """The protocol of some runs, as in "default (version 1)"; all, if there are several."""
    different = runs[["protocol", "protocol_version", "features"]].drop_duplicates()
    return ", ".join(sorted(set(protocols(different))))
