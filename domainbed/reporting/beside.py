"""A sweep's tables beside a paper's: value, difference, and why a cell cannot be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from domainbed.config.protocols import get_protocol, protocol_names
from domainbed.core.names import DATASET_DOMAINS
from domainbed.errors import UserError
from domainbed.reporting.published import PublishedValue, Source, get_source, published_values
from domainbed.reporting.statistics import TIE
from domainbed.reporting.tables import AVERAGE, MEAN_RANK, Cell, Column, Report, Table
from domainbed.runs.records import NOT_RECORDED, RUN_KEYS
from domainbed.selection import SelectionMethod


class Mismatch(NamedTuple):
    """One condition under which a cell was not made as the paper's.

    Attributes:
        what: "trials", "draws", "steps", "backbone", "protocol", a field of a run, …
        here, published: its values, as text.
    """

    what: str
    here: str
    published: str


class BesideCell(NamedTuple):
    """A cell of a sweep beside a paper's; accuracies and differences in (points of) percent.

    Attributes:
        selection, table, dataset, algorithm, domain: which cell, as in `reporting.to_frame`.
        mean, std_err, n_trials: of the sweep; NaN where there is none.
        published_mean, published_std_err: of the paper, likewise.
        difference: the sweep's mean minus the paper's.
        combined_std_err: the root of the sum of both squared standard errors.
        within: whether the difference is at most that, and what rounding may do; None if the
            cells cannot be compared, or one of them has no standard error.
        mismatches: why they cannot be compared; empty if they can.
    """

    selection: str
    table: str
    dataset: str
    algorithm: str
    domain: str
    mean: float
    std_err: float
    n_trials: int
    published_mean: float
    published_std_err: float
    difference: float
    combined_std_err: float
    within: bool | None
    mismatches: tuple[Mismatch, ...]


def beside_published(report: Report, source: str) -> list[BesideCell]:
    """Every cell of a report that the paper has a number for.

    Mean ranks are left out, since a paper ranks among other algorithms; so is the average over
    all datasets where the report does not have those of the paper.

    Raises:
        UserError: there is no such paper, or it has no number for any cell.
    """
    paper = get_source(source)
    values = {
        (value.selection, value.table, value.dataset, value.algorithm, value.domain): value
        for value in published_values(source)
    }
    told = _told(report.records.runs, paper)
    cells = [
        _beside(report, table, algorithm, position, values[key], told)
        for table, algorithm, position in _positions(report)
        if (key := cell_key(table, algorithm, table.columns[position])) in values
        and _is_comparable(table.columns[position], told)
    ]
    if not cells:
        datasets = ", ".join(dict.fromkeys(report.records.runs["dataset"]))
        known = ", ".join(dict.fromkeys(value.dataset for value in values.values()))
        raise UserError(
            f"{source} has no number for these runs (of {datasets}): it has {known}; "
            f"`domainbed published {source}` prints them"
        )
    return cells


def beside_frame(cells: list[BesideCell]) -> pd.DataFrame:
    """The cells as a table, one row each, with the mismatches as one JSON list."""
    rows = [
        {**cell._asdict(), "mismatches": json.dumps([each._asdict() for each in cell.mismatches])}
        for cell in cells
    ]
    return pd.DataFrame(rows)


def _positions(report: Report) -> Iterator[tuple[Table, str, int]]:
    for table in report.tables:
        for algorithm in table.rows:
            for position in range(len(table.columns)):
                yield table, algorithm, position


def cell_key(table: Table, algorithm: str, column: Column) -> tuple[str, str, str, str, str]:
    """Selection method, kind of table, dataset, algorithm and domain, as `BesideCell` has them."""
    kind = "dataset" if table.dataset else "averages"
    domain = column.label if table.dataset else column.test_env
    return (table.selection, kind, column.dataset, algorithm, domain)


def _is_comparable(column: Column, told: _Told) -> bool:
    if column.dataset in told.datasets:
        return True
    return column.test_env != MEAN_RANK and told.datasets == told.published_datasets


def _beside(
    report: Report, table: Table, algorithm: str, position: int, value: PublishedValue, told: _Told
) -> BesideCell:
    column, cell = table.columns[position], table.rows[algorithm][position]
    method = next(method for method in report.methods if method.name == table.selection)
    runs = _runs(told, method, algorithm, column)
    found = (
        *_mismatches(cell, runs, get_source(value.source), told),
        *_untested(runs, column),
    )
    mean, std_err = _number(cell.mean), _number(cell.std_err)
    error = math.hypot(std_err, _number(value.std_err))
    difference = mean - value.mean
    within = None if found or math.isnan(error) else abs(difference) <= error + TIE
    return BesideCell(
        *cell_key(table, algorithm, column), mean, std_err, cell.n_trials, value.mean,
        _number(value.std_err), difference, error, within, found,
    )  # fmt: skip


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _runs(told: _Told, method: SelectionMethod, algorithm: str, column: Column) -> pd.DataFrame:
    """What is told of the runs that a cell rests on."""
    datasets = {column.dataset} & told.datasets or told.datasets
    of_datasets = [
        told.of_runs[key] for dataset in datasets if (key := (dataset, algorithm)) in told.of_runs
    ]
    if not of_datasets:
        return pd.DataFrame()
    mine = pd.concat(of_datasets)
    return mine[[_is_used(envs, method, column) for envs in mine["test_envs"]]]


def _is_used(test_envs: tuple[int, ...], method: SelectionMethod, column: Column) -> bool:
    tested = [int(column.test_env)] if column.test_env.isdigit() else test_envs
    return any(method.uses(test_envs, env) for env in tested)


def _mismatches(cell: Cell, runs: pd.DataFrame, paper: Source, told: _Told) -> Iterator[Mismatch]:
    if cell.mean is None:
        yield Mismatch("result", "none", "there is one")
    if runs.empty:
        return
    if cell.n_trials < paper.trials:
        yield Mismatch("trials", str(cell.n_trials), str(paper.trials))
    if (draws := runs["hparams_seeds"].min()) < paper.draws:
        yield Mismatch("draws", str(draws), str(paper.draws))
    for what, usual in told.usual.items():
        others = sorted(set(runs[what]) - {usual})
        if others:
            yield Mismatch(what, ", ".join(others), usual)


def _untested(runs: pd.DataFrame, column: Column) -> Iterator[Mismatch]:
    """An average is over the test domains that are there."""
    if column.test_env.isdigit() or column.dataset not in DATASET_DOMAINS or runs.empty:
        return
    tested = len({envs for envs in runs["test_envs"] if len(envs) == 1})
    if tested < (all_ := len(DATASET_DOMAINS[column.dataset])):
        yield Mismatch("test domains", str(tested), str(all_))


class _Told(NamedTuple):
    """What a comparison rests on.

    Attributes:
        usual: what must be as in the paper, by name.
        of_runs: by dataset and algorithm one row per run, with a column for each of these, its
            `test_envs`, and `hparams_seeds`, how many its test domains and trial have.
        datasets, published_datasets: of the runs, and of the paper.
    """

    usual: dict[str, str]
    of_runs: dict[tuple[str, str], pd.DataFrame]
    datasets: set[str]
    published_datasets: set[str]


def _told(runs: pd.DataFrame, paper: Source) -> _Told:
    fields = {
        "precision": "float32",
        "holdout_fraction": 0.2,
        "task": "domain_generalization",
        "shared_draws": False,
        **get_protocol(paper.protocol).fields,
    }
    fields.pop("eval_splits")  # which changes no number of a table
    usual = {
        "steps": str(paper.steps),
        "backbone": paper.backbone,
        "protocol": paper.protocol,
        "fixed hyper-parameters": "none",
        **{name: str(value) for name, value in fields.items()},
    }
    named = {name: get_protocol(name).fields for name in protocol_names()}
    rows = [
        {
            "steps": str(_steps(run["args"], run["last_step"])),
            "backbone": run["features"] or _backbone(run["hparams"]),
            "protocol": run["protocol"],
            "fixed hyper-parameters": _fixed(run["args"]),
            **_fields(run["args"], fields, named.get(run["protocol"], fields)),
        }
        for run in runs.to_dict("records")
    ]
    keys = [key for key in RUN_KEYS if key != "hparams_seed"]
    seeds = runs.groupby(keys)["hparams_seed"].transform("nunique")
    told = pd.DataFrame(rows, index=runs.index).assign(hparams_seeds=seeds)
    told["test_envs"] = runs["test_envs"]
    groups = told.groupby([runs["dataset"], runs["algorithm"]])
    published = {value.dataset for value in published_values(paper.name)} - {AVERAGE}
    by_group = {(str(dataset), str(algorithm)): of for (dataset, algorithm), of in groups}
    return _Told(usual, by_group, set(runs["dataset"]), published)


def _steps(args: dict[str, Any], last_step: int) -> int:
    """How many steps a run has: those that it set out for, if no further record is to come."""
    steps, interval = args.get("steps"), args.get("checkpoint_freq")
    if not steps or (interval and last_step + interval < steps):
        return last_step + 1
    return int(steps)


def _fields(
    args: dict[str, Any], usual: Mapping[str, Any], of_protocol: Mapping[str, Any]
) -> dict[str, str]:
    """The values of a run's fields; the usual one where the run has that of its own protocol.

    How protocols differ is said by their names. What a run does not say is taken to be usual.
    """
    values = {name: args.get(name, of_protocol.get(name, usual[name])) for name in usual}
    return {
        name: str(usual[name] if value == of_protocol.get(name, usual[name]) else value)
        for name, value in values.items()
    }


def _backbone(hparams: dict[str, Any]) -> str:
    named = hparams.get("featurizer") or hparams.get("backbone")
    if named:
        return str(named)
    if hparams.get("resnet18"):
        return "ResNet-18"
    return "ResNet-50 (AugMix)" if hparams.get("resnet50_augmix") else "ResNet-50"


_BACKBONE = {"resnet18", "resnet50_augmix", "backbone", "featurizer"}


def _fixed(args: dict[str, Any]) -> str:
    """The hyper-parameters that were not drawn, but for those that name the backbone."""
    try:
        fixed = set(json.loads(args.get("hparams") or "{}"))
    except (ValueError, TypeError):
        return NOT_RECORDED
    return ", ".join(sorted(fixed - _BACKBONE)) or "none"
