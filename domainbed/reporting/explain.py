"""What sweeps planned, which runs a cell lacks, and what became of them."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from domainbed.core.names import dataset_label, trained_algorithm
from domainbed.core.text_table import printable
from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError
from domainbed.reporting.render import cell_text
from domainbed.reporting.tables import Cell, Column, Gaps, Report, tested_domains, trials_of
from domainbed.runs.folder import RunFolder
from domainbed.runs.load import PLAN_FILE, Folders, as_paths, run_folders
from domainbed.runs.records import Records
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, MISSING, PENDING, RUNNING
from domainbed.selection import SELECTION_METHODS, SelectionMethod


class Run(NamedTuple):
    """What identifies a run; `test_envs` is sorted."""

    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    trial_seed: int
    hparams_seed: int


class State(NamedTuple):
    """What became of a run: `kind` is one of `states.STATES`."""

    kind: str
    detail: str = ""


States = dict[Run, State]
Expected = dict[tuple[str, str], list[Run]]
"""The runs that there should be, by dataset and algorithm."""

EVERYTHING = "every run is there and finished"


class Survey(NamedTuple):
    """What there should be, and what became of it.

    Attributes:
        expected: the runs that there should be.
        states: of those that left a trace.
        unnamed: folders of runs without a record, of which nothing says which run they are.
    """

    expected: Expected
    states: States
    unnamed: list[RunFolder]


def explain(report: Report, folders: Folders) -> list[str]:
    """Lines that say, for every cell that lacks runs, what became of them.

    What should be there is read from the folders' plan.json. Without one it is every combination
    of the datasets, algorithms, test domains, hparams seeds and trials that are there.

    Raises:
        UserError: a plan.json is damaged.
    """
    return explain_survey(report, survey(report.records.runs, folders))


def explain_survey(report: Report, found: Survey) -> list[str]:
    """As `explain`, of what is known already."""
    lines = _cells(report, found.expected, found.states)
    lines += _absent(report, found.expected, found.states)
    lines += _unnamed(found.unnamed)
    return list(map(printable, lines)) or ["", EVERYTHING]


def survey(runs: pd.DataFrame, folders: Folders) -> Survey:
    """What there should be in some folders, as `explain` says, and what became of it.

    Args:
        runs: those that have records.
        folders: where they were read.

    Raises:
        UserError: a plan.json is damaged.
    """
    roots = as_paths(folders)
    without = [folder for root in roots for folder in _folders_without_records(root)]
    plan = {folder: run for root in roots for folder, run in _read_plan(root).items()}
    named = {**{f.path: run for f in without if (run := _own_name(f))}, **plan}
    states = {**_folder_states(named), **_recorded_states(runs)}
    expected: Expected = defaultdict(list)
    for run in dict.fromkeys([*(plan.values() or _grid(runs)), *named.values()]):
        expected[run.dataset, run.algorithm].append(run)
    return Survey(expected, states, [f for f in without if f.path not in named])


def count_states(report: Report, found: Survey) -> pd.DataFrame:
    """How many runs that the report is about are in which state.

    Columns: `dataset`, `algorithm`, `test_envs` (tuple of int), `state` (one of `states.STATES`)
    and `runs`.
    """
    rows = [
        (run.dataset, run.algorithm, run.test_envs, found.states.get(run, State(MISSING)).kind)
        for group, runs in found.expected.items()
        if report.wants(*group)
        for run in runs
    ]
    columns = ["dataset", "algorithm", "test_envs", "state"]
    return pd.DataFrame(rows, columns=columns).value_counts(sort=False).reset_index(name="runs")


def _cells(report: Report, expected: Expected, states: States) -> list[str]:
    """The incomplete cells; methods with the same reasons share their lines."""
    titles: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for place, reasons, title in _gaps(report, expected, states):
        titles[place, tuple(reasons)].append(title)
    lines: list[str] = []
    for (place, why), found in titles.items():
        lines += ["", f"{place}; {', '.join(found)}:", *(f"  {reason}" for reason in why)]
    return lines


def _gaps(
    report: Report, expected: Expected, states: States
) -> Iterator[tuple[str, list[str], str]]:
    """Each incomplete cell: where it is, the reasons, and the method's title."""
    methods = {method.name: method for method in report.methods}
    for table in report.tables:
        if table.dataset is None:
            continue
        method, trials = methods[table.selection], trials_of(report.records.runs, table.dataset)
        for algorithm, cells in table.rows.items():
            # Averaged weights are of runs that are planned under the algorithm's own name.
            own = expected.get((table.dataset, algorithm))
            runs = own or expected[table.dataset, trained_algorithm(algorithm)]
            for column, cell in zip(table.columns, cells[:-1]):
                env = int(column.test_env)
                needed = [run for run in runs if method.uses(run.test_envs, env)]
                reasons = _reasons(needed, states)
                if cell.gap:
                    reasons.insert(0, f"left out of the plan: {cell.gap}")
                if not reasons and cell.n_trials < len(trials):
                    reasons = [_why_empty(needed, method)]
                if reasons:
                    place = f"{table.dataset}, {algorithm}, {_domain(column)}"
                    yield place, reasons, f"{table.title} ({_shown(cell, len(trials))})"


def _absent(report: Report, expected: Expected, states: States) -> list[str]:
    """What is planned and asked for, but has no row or table because not one record is there."""
    shown = {(table.dataset, name) for table in report.tables for name in table.rows}
    lines: list[str] = []
    for (dataset, algorithm), runs in expected.items():
        if (dataset, algorithm) not in shown and report.wants(dataset, algorithm):
            lines += ["", f"{dataset}, {algorithm}; no record of any run:"]
            lines += [f"  {reason}" for reason in _reasons(runs, states)]
    for (dataset, algorithm), why in {gap[:2]: why for gap, why in report.gaps.items()}.items():
        known = (dataset, algorithm) in {*shown, *expected}
        if not known and report.wants(dataset, algorithm):
            lines += ["", f"{dataset}, {algorithm}; left out of the plan:", f"  {why}"]
    return lines


def _domain(column: Column) -> str:
    return f"test domain {column.label} (number {column.test_env})"


def _shown(cell: Cell, trials: int) -> str:
    return f"{cell_text(cell)}, {cell.n_trials} of {trials} trials"


def _why_empty(needed: list[Run], method: SelectionMethod) -> str:
    if method.needs_pairs and all(len(run.test_envs) == 1 for run in needed):
        return "no runs with two test domains are planned or there, and this method needs them"
    if not needed:
        return "no runs with this test domain are planned or there"
    return "all its runs are there, but no step is recorded exactly once by all that it needs"


def _reasons(needed: list[Run], states: States) -> list[str]:
    """One line for each set of missing runs, and for each other one that is not done."""
    by_kind: dict[str, list[tuple[Run, str]]] = defaultdict(list)
    for run in needed:
        state = states.get(run, State(MISSING))
        by_kind[state.kind].append((run, state.detail))
    lines = _missing([run for run, _ in by_kind[MISSING]])
    for kind in (FAILED, RUNNING, PENDING, INTERRUPTED):
        lines += [
            f"{kind}: test_envs {list(run.test_envs)}, trial {run.trial_seed}, "
            f"hparams seed {run.hparams_seed}: {detail}"
            for run, detail in sorted(by_kind[kind])
        ]
    return lines


def _missing(runs: list[Run]) -> list[str]:
    seeds: dict[tuple[tuple[int, ...], int], set[int]] = defaultdict(set)
    for run in runs:
        seeds[run.test_envs, run.trial_seed].add(run.hparams_seed)
    return [
        f"missing: test_envs {list(envs)}, trial {trial}, hparams seeds {_ranges(found)}"
        for (envs, trial), found in sorted(
            seeds.items(), key=lambda item: (len(item[0][0]), item[0])
        )
    ]


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers, with neighbours as ranges: "0-3, 7"."""
    parts = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        parts.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return ", ".join(parts)


def _read_plan(root: Path) -> dict[Path, Run]:
    """The planned runs of a sweep folder by their folders; empty without a plan."""
    path = root / PLAN_FILE
    if not path.is_file():
        return {}
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return {root / name: _run(entry) for name, entry in runs.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a plan of runs ({type(error).__name__}: {error}): "
            "restore it, or remove it to explain without"
        ) from error


def _run(entry: Any) -> Run:
    """The run that a plan's entry or a row's dict describes."""
    return Run(
        dataset_label(entry["dataset"]),
        entry["algorithm"],
        tuple(sorted(entry["test_envs"])),
        int(entry["trial_seed"]),
        int(entry["hparams_seed"]),
    )


def _grid(runs: pd.DataFrame) -> list[Run]:
    """Every combination of what is there, with pairs for datasets that have any."""
    algorithms = list(dict.fromkeys(runs["algorithm"]))
    trials, seeds = sorted(set(runs["trial_seed"])), sorted(set(runs["hparams_seed"]))
    grid: list[Run] = []
    for dataset, rows in runs.groupby("dataset", sort=False):
        sizes = {1, *rows["test_envs"].map(len)} & {1, 2}
        domains = range(int(rows["num_domains"].max()))
        sets = (pick for size in sizes for pick in itertools.combinations(domains, size))
        tested = set(tested_domains(runs, str(dataset)))
        envs = [pick for pick in sets if tested & {*pick}]
        keys = itertools.product([dataset], algorithms, envs, trials, seeds)
        grid += [Run(*values) for values in keys]
    return grid


def _folder_states(named: dict[Path, Run]) -> States:
    """What the folders of these runs say, as far as they exist."""
    present = {folder: run for folder, run in named.items() if folder.is_dir()}
    return {run: _state(RunFolder(folder), "no record yet") for folder, run in present.items()}


def _recorded_states(runs: pd.DataFrame) -> States:
    """What the folders of the recorded runs say; of several folders a finished one counts."""
    lengths = (runs.groupby("dataset")["last_step"].max() + 1).to_dict()
    states: States = {}
    for row in runs.to_dict("records"):
        steps = row["args"].get("steps") or lengths[row["dataset"]]
        progress = f"last record at step {row['last_step']} of {steps} steps"
        state, run = _state(RunFolder(row["folder"]), progress), _run(row)
        if states.get(run, State(MISSING)).kind != DONE:
            states[run] = state
    return states


def _state(folder: RunFolder, progress: str) -> State:
    kind = folder.state()
    what = folder.last_error() if kind == FAILED else progress
    return State(kind, f"{what} ({folder.path})")


def _own_name(folder: RunFolder) -> Run | None:
    """The run that a folder says itself to be of; None where it has no file, or a damaged one."""
    try:
        entry = folder.read_json(folder.spec)
        return _run(entry) if entry is not None else None
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _unnamed(folders: list[RunFolder]) -> list[str]:
    """The folders of runs without a record of which nothing says which run they are."""
    lines = [f"  {f.path}: {f.last_error() or 'no error is on file'}" for f in folders]
    return ["", "folders without a record, of runs that nothing names:", *lines] * bool(lines)


def _folders_without_records(root: Path) -> list[RunFolder]:
    folders = [RunFolder(path) for path in run_folders(root)]
    runs = [f for f in folders if any(file.exists() for file in (f.spec, f.errors, f.out))]
    return [f for f in runs if not f.results.is_file() or not f.results.stat().st_size]


def planned_selection(folders: Folders) -> list[str] | None:
    """The selection methods that a sweep of this project was planned for, in the tables' order.

    None, that is all of them, if one of the folders does not say.

    Raises:
        UserError: the config of a sweep is damaged.
    """
    planned: set[str] = set()
    for root in as_paths(folders):
        file = root / "sweep.yaml"
        if not file.is_file():
            return None
        config = read_yaml(file)[0]
        names = config.get("selection") if isinstance(config, dict) else [str(config)]
        if not names:
            return None
        if not all(name in SELECTION_METHODS for name in names):
            raise UserError(f"{file} is damaged: {names!r} are no selection methods, repair it")
        planned |= set(names)
    return [name for name in SELECTION_METHODS if name in planned]


def planned_gaps(folders: Folders) -> Gaps:
    """The runs that sweeps of this project left out because they cannot be, and why.

    What cannot be read says nothing: `explain` tells of a damaged plan.
    """
    gaps: Gaps = {}
    for root in as_paths(folders):
        try:
            content = json.loads((root / PLAN_FILE).read_text(encoding="utf-8"))
            for entry in content.get("left_out", ()):
                key = (entry["dataset"], entry["algorithm"], tuple(entry["test_envs"]))
                gaps[key] = str(entry["why"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return gaps


def by_folder(records: Records, folders: Folders) -> Records:
    """The records with the folder that each run was read from in its algorithm's name.

    Raises:
        UserError: a folder is given twice.
    """
    labels = _folder_labels(folders)
    runs = records.runs
    names = [
        f"{algorithm} [{labels.get(path) or labels[path.parent]}]"
        for algorithm, path in zip(runs["algorithm"], map(Path, runs["folder"]), strict=True)
    ]
    return replace(records, runs=runs.assign(algorithm=names))


def gaps_by_folder(folders: Folders) -> Gaps:
    """As `planned_gaps`, for the names of algorithms that `by_folder` gives."""
    return {
        (dataset, f"{algorithm} [{label}]", envs): why
        for root, label in _folder_labels(folders).items()
        for (dataset, algorithm, envs), why in planned_gaps(root).items()
    }


def _folder_labels(folders: Folders) -> dict[Path, str]:
    """Each folder's name, or its whole path where another has the same."""
    roots = as_paths(folders)
    if len(set(roots)) < len(roots):
        raise UserError(f"a folder is given twice: {', '.join(map(str, roots))}")
    names = [root.resolve().name for root in roots]
    return {
        root: name if names.count(name) == 1 else str(root)
        for root, name in zip(roots, names, strict=True)
    }
