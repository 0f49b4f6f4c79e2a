"""What sweeps planned, which runs a cell lacks, and what became of them."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from domainbed.core.files import read_sealed_json
from domainbed.core.names import dataset_label, trained_algorithm
from domainbed.core.plugins import warn_once
from domainbed.core.text_table import printable
from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError, log
from domainbed.reporting.render import cell_text
from domainbed.reporting.tables import Cell, Gaps, Report, tested_domains, trials_of
from domainbed.runs.folder import RunFolder, plugin_hint
from domainbed.runs.load import PLAN_FILE, Folders, as_paths, run_folders
from domainbed.runs.records import Records
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, MISSING, PENDING, RUNNING
from domainbed.selection import SELECTION_METHODS, SelectionMethod

_RUN = ["dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"]
Run = tuple[str, str, tuple[int, ...], int, int]
"""What identifies a run, as `_RUN` names it; the test domains are sorted."""

States = dict[Run, tuple[str, str]]
"""What became of runs: one of `states.STATES`, and its details."""

EVERYTHING = "every run is there and finished"


class Survey(NamedTuple):
    """What there should be, and what became of it.

    Attributes:
        runs: those that there should be, with the columns `dataset`, `algorithm`, `test_envs`
            (tuple of int, sorted), `trial_seed`, `hparams_seed`, `state` (one of
            `states.STATES`) and `detail`.
        unnamed: folders without a record that do not say which run they are.
    """

    runs: pd.DataFrame
    unnamed: list[RunFolder]

    def of(self, dataset: str, algorithm: str) -> pd.DataFrame:
        """The runs of one algorithm on a dataset."""
        runs, names = self.runs, (dataset, dataset_label(dataset))  # plans know no variants
        return runs[runs["dataset"].isin(names) & (runs["algorithm"] == algorithm)]


def explain(report: Report, folders: Folders) -> list[str]:
    """Lines that say, for every cell that lacks runs, what became of them.

    What should be there is read from the folders' plan.json. Without one it is every combination
    of the datasets, algorithms, test domains, hparams seeds and trials that are there.

    Raises:
        UserError: a plan.json is damaged.
    """
    lines = [
        line
        for place, reasons in lacking(report, survey(report.records.runs, folders))
        for line in ("", place, *(f"  {reason}" for reason in reasons))
    ]
    return lines or ["", EVERYTHING]


def lacking(report: Report, found: Survey) -> list[tuple[str, list[str]]]:
    """Each place where runs are lacking, and what became of them, as printable text."""
    lacks = [*_cells(report, found), *_absent(report, found)]
    if found.unnamed:
        errors = [f"{f.path}: {f.last_error() or 'no error is on file'}" for f in found.unnamed]
        lacks.append(("folders without a record that name no run:", errors))
    return [(printable(place), list(map(printable, reasons))) for place, reasons in lacks]


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
    states: States = {
        run: _state_without_records(RunFolder(folder))
        for folder, run in named.items()
        if folder.is_dir()
    }
    states |= _recorded_states(runs)
    expected = dict.fromkeys([*(plan.values() or _grid(runs)), *named.values()])
    rows = [(*run, *states.get(run, (MISSING, ""))) for run in expected]
    table = pd.DataFrame(rows, columns=[*_RUN, "state", "detail"])
    return Survey(table, [f for f in without if f.path not in named])


def count_states(report: Report, found: Survey) -> pd.DataFrame:
    """How many runs that the report is about are in which state.

    Columns: `dataset`, `algorithm`, `test_envs` (tuple of int), `state` (one of `states.STATES`)
    and `runs`.
    """
    wanted = list(map(report.wants, found.runs["dataset"], found.runs["algorithm"]))
    columns = ["dataset", "algorithm", "test_envs", "state"]
    return found.runs.loc[wanted, columns].value_counts(sort=False).reset_index(name="runs")


def _cells(report: Report, found: Survey) -> list[tuple[str, list[str]]]:
    """The incomplete cells; methods with the same reasons share their lines."""
    titles: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    methods = {method.name: method for method in report.methods}
    for table in [table for table in report.tables if table.dataset]:
        method, dataset = methods[table.selection], str(table.dataset)
        trials = len(trials_of(report.records.runs, dataset))
        for algorithm, cells in table.rows.items():
            runs = found.of(dataset, algorithm)
            if runs.empty:  # averaged weights are of runs planned under the algorithm's own name
                runs = found.of(dataset, trained_algorithm(algorithm))
            for column, cell in zip(table.columns, cells[:-1]):
                if reasons := _reasons_of_cell(cell, int(column.test_env), runs, method, trials):
                    domain = f"test domain {column.label} (number {column.test_env})"
                    shown = f"{cell_text(cell)}, {cell.n_trials} of {trials} trials"
                    place = f"{dataset}, {algorithm}, {domain}"
                    titles[place, tuple(reasons)].append(f"{table.title} ({shown})")
    return [
        (f"{place}; {', '.join(of_place)}:", list(reasons))
        for (place, reasons), of_place in titles.items()
    ]


def _reasons_of_cell(
    cell: Cell, env: int, runs: pd.DataFrame, method: SelectionMethod, trials: int
) -> list[str]:
    """Why a cell is incomplete, of the runs of its algorithm and dataset; [] where it is whole."""
    needed = runs.loc[[method.uses(envs, env) for envs in runs["test_envs"]]]
    reasons = [f"left out of the plan: {cell.gap}"] if cell.gap else []
    reasons += _reasons(needed)
    if reasons or cell.n_trials == trials:
        return reasons
    if method.needs_pairs and (needed["test_envs"].map(len) == 1).all():
        return ["no runs with two test domains are planned or there, and this method needs them"]
    if needed.empty:
        return ["no runs with this test domain are planned or there"]
    return ["all its runs are there, but no step is recorded exactly once in each of them"]


def _absent(report: Report, found: Survey) -> list[tuple[str, list[str]]]:
    """What is planned and asked for, but has no row or table because it has no record at all."""
    shown = {
        (dataset, name)
        for table in report.tables
        if table.dataset
        for dataset in (str(table.dataset), dataset_label(str(table.dataset)))
        for name in table.rows
    }
    lacks = []
    planned = list(dict.fromkeys(zip(found.runs["dataset"], found.runs["algorithm"])))
    for dataset, algorithm in planned:
        if (dataset, algorithm) not in shown and report.wants(dataset, algorithm):
            reasons = _reasons(found.of(dataset, algorithm))
            lacks.append((f"{dataset}, {algorithm}; no record of any run:", reasons))
    for (dataset, algorithm), why in {gap[:2]: why for gap, why in report.gaps.items()}.items():
        known = (dataset, algorithm) in {*shown, *planned}
        if not known and report.wants(dataset, algorithm):
            lacks.append((f"{dataset}, {algorithm}; left out of the plan:", [why]))
    return lacks


def _reasons(needed: pd.DataFrame) -> list[str]:
    """One line for each set of missing runs, and for each other run that is not done."""
    missing = needed[needed["state"] == MISSING].groupby(["test_envs", "trial_seed"])
    seeds = [(len(envs), envs, trial, of["hparams_seed"]) for (envs, trial), of in missing]
    lines = [
        f"missing: test_envs {list(envs)}, trial {trial}, hparams seeds {_ranges(found)}"
        for _, envs, trial, found in sorted(seeds, key=lambda each: each[:3])
    ]
    for kind in (FAILED, RUNNING, PENDING, INTERRUPTED):
        of_kind = needed[needed["state"] == kind].drop(columns=["dataset", "algorithm", "state"])
        lines += [
            f"{kind}: test_envs {list(envs)}, trial {trial}, hparams seed {seed}: {detail}"
            for envs, trial, seed, detail in sorted(of_kind.itertuples(index=False, name=None))
        ]
    return lines


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
    try:
        runs = read_sealed_json(path)["runs"] if path.is_file() else {}
        return {root / name: _run(entry) for name, entry in runs.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a plan of runs ({type(error).__name__}: {error}): "
            "restore it, or remove it to explain without"
        ) from error


def _run(entry: Any) -> Run:
    """The run that a plan's entry or a row's dict describes."""
    return (
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
        grid += itertools.product([str(dataset)], algorithms, envs, trials, seeds)
    return grid


def _recorded_states(runs: pd.DataFrame) -> States:
    """What the folders of the recorded runs say; of several folders a finished one counts."""
    lengths = (runs.groupby("dataset")["last_step"].max() + 1).to_dict()
    states: States = {}
    for row in runs.to_dict("records"):
        steps = row["args"].get("steps") or lengths[row["dataset"]]
        progress, run = f"last record at step {row['last_step']} of {steps} steps", _run(row)
        if states.get(run, (MISSING, ""))[0] != DONE:
            states[run] = _state(RunFolder(row["folder"]), progress)
    return states


def _state_without_records(folder: RunFolder) -> tuple[str, str]:
    """As `_state`; a finished run whose records were left out is as good as a failed one."""
    kind, detail = _state(folder, "no record yet")
    return (FAILED, f"its records are damaged ({folder.path})") if kind == DONE else (kind, detail)


def _state(folder: RunFolder, progress: str) -> tuple[str, str]:
    kind = folder.state()
    return kind, f"{folder.last_error() if kind == FAILED else progress} ({folder.path})"


def _own_name(folder: RunFolder) -> Run | None:
    """The run that a folder's run.json names; None where that is missing or damaged."""
    try:
        return _run(folder.read_json(folder.spec))
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _folders_without_records(root: Path) -> list[RunFolder]:
    return [
        folder
        for folder in map(RunFolder, run_folders(root))
        if any(file.exists() for file in (folder.spec, folder.errors, folder.out))
        and not (folder.results.is_file() and folder.results.stat().st_size)
    ]


def planned_selection(folders: Folders) -> list[str] | None:
    """The selection methods that a sweep of this project was planned for, in the tables' order.

    None, that is the default ones, if one of the folders does not say, or none of them is known;
    unknown methods, which a plug-in registers, are left out with a warning.

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
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{file} is damaged: {names!r} are no selection methods, repair it")
        if unknown := [name for name in names if name not in SELECTION_METHODS]:
            warn_once(
                f"{root} was planned with {', '.join(unknown)}, which nothing here registers"
                f"{plugin_hint(root)}: shown without"
            )
        planned |= set(names)
    return [name for name in SELECTION_METHODS if name in planned] or None


def planned_gaps(folders: Folders) -> Gaps:
    """The runs that sweeps of this project left out because they cannot be, and why.

    A plan that cannot be read is skipped, with a warning.
    """
    gaps: Gaps = {}
    for root in as_paths(folders):
        file = root / PLAN_FILE
        try:
            content = read_sealed_json(file) if file.is_file() else {}
            for entry in content.get("left_out", ()):
                envs = tuple(entry["test_envs"])
                gaps[entry["dataset"], entry["algorithm"], envs] = str(entry["why"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("warning: %s is damaged (%s): what it left out is not told", file, error)
    return gaps


def by_folder(records: Records, folders: Folders) -> tuple[Records, Gaps]:
    """The records and `planned_gaps` with the folder of each in its algorithm's name.

    A folder is called by its name, or by its whole path where another has the same name.

    Raises:
        UserError: a folder is given twice.
    """
    roots = as_paths(folders)
    if len(set(roots)) < len(roots):
        raise UserError(f"a folder is given twice: {', '.join(map(str, roots))}")
    names = [root.resolve().name for root in roots]
    labels = {
        root: name if names.count(name) == 1 else str(root)
        for root, name in zip(roots, names, strict=True)
    }
    algorithms = [
        f"{algorithm} [{labels.get(path) or labels[path.parent]}]"
        for algorithm, path in zip(records.runs["algorithm"], map(Path, records.runs["folder"]))
    ]
    gaps = {
        (dataset, f"{algorithm} [{label}]", envs): why
        for root, label in labels.items()
        for (dataset, algorithm, envs), why in planned_gaps(root).items()
    }
    return replace(records, runs=records.runs.assign(algorithm=algorithms)), gaps
