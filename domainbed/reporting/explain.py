"""Explaining gaps: which runs a cell lacks, and what became of them."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from domainbed.errors import UserError
from domainbed.names import dataset_label
from domainbed.reporting.records import RECORDS_FILE, RUN_KEYS, Folders, run_folders
from domainbed.reporting.tables import Cell, Report, Table, trials_of

PLAN_FILE = "plan.json"
RUN_FILE = "run.json"
_KINDS = ("missing", "failed", "unfinished")


class Run(NamedTuple):
    """What identifies a run; `test_envs` is sorted."""

    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    trial_seed: int
    hparams_seed: int


@dataclass(frozen=True)
class State:
    """What became of a run: `kind` is "done", "missing", "failed" or "unfinished"."""

    kind: str
    detail: str = ""


def explain(report: Report, folders: Folders) -> list[str]:
    """Lines that say, for every cell that lacks runs, which are missing, failed or unfinished.

    What should be there is read from the folders' plan.json. Without one it is every combination
    of the datasets, algorithms, test domains, hparams seeds and trials that are there.

    Raises:
        UserError: a plan.json is damaged.
    """
    roots = [Path(root) for root in ([folders] if isinstance(folders, (str, Path)) else folders)]
    plan = {folder: run for root in roots for folder, run in _read_plan(root).items()}
    named = {**plan, **_self_named(roots, plan)}
    states = {**_folder_states(named), **_recorded_states(report.records)}
    expected: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in dict.fromkeys([*(plan.values() or _grid(report.records)), *named.values()]):
        expected[run.dataset, run.algorithm].append(run)
    lines = _cells(report, expected, states) + _absent(report, expected, states)
    return lines + _unnamed(roots, named) or ["", "every run is there and finished"]


def _cells(
    report: Report, expected: dict[tuple[str, str], list[Run]], states: dict[Run, State]
) -> list[str]:
    """The incomplete cells; methods with the same reasons share their lines."""
    titles: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for place, reasons, title in _gaps(report, expected, states):
        titles[place, tuple(reasons)].append(title)
    lines: list[str] = []
    for (place, why), found in titles.items():
        lines += ["", f"{place}; {', '.join(found)}:", *(f"  {reason}" for reason in why)]
    return lines


def _gaps(
    report: Report, expected: dict[tuple[str, str], list[Run]], states: dict[Run, State]
) -> Iterator[tuple[str, list[str], str]]:
    """Each incomplete cell: where it is, the reasons, and the method's title."""
    needs_pairs = {method.name: method.needs_pairs for method in report.methods}
    for table in report.tables:
        if table.dataset is None:
            continue
        trials = trials_of(report.records, table.dataset)
        for algorithm, cells in table.rows.items():
            runs = expected[table.dataset, algorithm]
            for env, cell in enumerate(cells[:-1]):
                needed = [run for run in runs if _is_needed(run, env, needs_pairs[table.selection])]
                reasons = _reasons(needed, states)
                if not reasons and cell.n_trials < len(trials):
                    reasons = [_why_empty(needed, needs_pairs[table.selection])]
                if reasons:
                    place = f"{table.dataset}, {algorithm}, {_domain(table, env)}"
                    yield place, reasons, f"{table.title} ({_shown(cell, len(trials))})"


def _absent(
    report: Report, expected: dict[tuple[str, str], list[Run]], states: dict[Run, State]
) -> list[str]:
    """What is planned and asked for, but has no row or table because not one record is there."""
    shown = {(table.dataset, name) for table in report.tables for name in table.rows}
    lines: list[str] = []
    for (dataset, algorithm), runs in expected.items():
        if (dataset, algorithm) not in shown and report.wants(dataset, algorithm):
            lines += ["", f"{dataset}, {algorithm}; no record of any run:"]
            lines += [f"  {reason}" for reason in _reasons(runs, states)]
    return lines


def _is_needed(run: Run, env: int, needs_pairs: bool) -> bool:
    return env in run.test_envs and (len(run.test_envs) == 1 or needs_pairs)


def _domain(table: Table, env: int) -> str:
    return f"test domain {table.columns[env].label} (number {env})"


def _shown(cell: Cell, trials: int) -> str:
    return f"{cell.text}, {cell.n_trials} of {trials} trials"


def _why_empty(needed: list[Run], needs_pairs: bool) -> str:
    if needs_pairs and all(len(run.test_envs) == 1 for run in needed):
        return "no runs with two test domains are planned or there, and this method needs them"
    if not needed:
        return "no runs with this test domain are planned or there"
    return "all its runs are there, but no step is recorded exactly once by all that it needs"


def _reasons(needed: list[Run], states: dict[Run, State]) -> list[str]:
    """One line for each failed or unfinished run, and for each set of missing ones."""
    by_kind: dict[str, list[tuple[Run, str]]] = defaultdict(list)
    for run in needed:
        state = states.get(run, State("missing"))
        by_kind[state.kind].append((run, state.detail))
    lines = _missing([run for run, _ in by_kind["missing"]])
    for kind in _KINDS[1:]:
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


def _grid(records: pd.DataFrame) -> list[Run]:
    """Every combination of what the records have, with pairs for datasets that have any."""
    algorithms = list(dict.fromkeys(records["algorithm"]))
    trials, seeds = sorted(set(records["trial_seed"])), sorted(set(records["hparams_seed"]))
    runs = []
    for dataset, rows in records.groupby("dataset", sort=False):
        sizes = {1, *rows["test_envs"].map(len)} & {1, 2}
        domains = range(int(rows["num_domains"].max()))
        envs = [pick for size in sizes for pick in itertools.combinations(domains, size)]
        grid = itertools.product([dataset], algorithms, envs, trials, seeds)
        runs += [Run(*values) for values in grid]
    return runs


def _folder_states(named: dict[Path, Run]) -> dict[Run, State]:
    """What the folders of these runs say, as far as they exist."""
    present = {folder: run for folder, run in named.items() if folder.is_dir()}
    return {run: _state(folder, "no record yet") for folder, run in present.items()}


def _recorded_states(records: pd.DataFrame) -> dict[Run, State]:
    """What the folders of the runs in `records` say; of several folders a finished one counts."""
    lengths = (records.groupby("dataset")["step"].max() + 1).to_dict()
    states: dict[Run, State] = {}
    last = records.sort_values("step", kind="stable").drop_duplicates(
        ["folder", *RUN_KEYS], keep="last"
    )
    for row in last.to_dict("records"):
        steps = row["args"].get("steps") or lengths[row["dataset"]]
        state = _state(Path(row["folder"]), f"last record at step {row['step']} of {steps} steps")
        run = _run(row)
        if states.get(run, State("missing")).kind != "done":
            states[run] = state
    return states


def _state(folder: Path, progress: str) -> State:
    if (folder / "done").exists():
        return State("done")
    error = _last_error(folder)
    if error:
        return State("failed", f"{error} ({folder})")
    return State("unfinished", f"{progress} ({folder})")


def _last_error(folder: Path) -> str | None:
    """The last line of the folder's err.txt, unless it holds warnings only, as DomainBed's may."""
    path = folder / "err.txt"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    ours = (folder / RUN_FILE).is_file()
    if not text.strip() or not (ours or "Traceback (most recent call last)" in text):
        return None
    return text.strip().splitlines()[-1]


def _self_named(roots: Sequence[Path], plan: dict[Path, Run]) -> dict[Path, Run]:
    """The unplanned runs without a record whose folders say themselves which run they are."""
    named = {}
    for folder in _folders_without_records(roots):
        if folder not in plan and (folder / RUN_FILE).is_file():
            # A damaged file names nothing: the folder is then listed among the unnamed.
            with suppress(ValueError, KeyError, TypeError):
                named[folder] = _run(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
    return named


def _unnamed(roots: Sequence[Path], named: dict[Path, Run]) -> list[str]:
    """The folders of runs without a record of which nothing says which run they are."""
    unnamed = [folder for folder in _folders_without_records(roots) if folder not in named]
    lines = [f"  {folder}: {_last_error(folder) or 'no error is on file'}" for folder in unnamed]
    return ["", "folders without a record, of runs that nothing names:", *lines] * bool(lines)


def _folders_without_records(roots: Sequence[Path]) -> list[Path]:
    folders = [folder for root in roots for folder in run_folders(root)]
    return [folder for folder in folders if _is_run(folder) and not _has_records(folder)]


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RUN_FILE, "err.txt", "out.txt"))


def _has_records(folder: Path) -> bool:
    records = folder / RECORDS_FILE
    return records.is_file() and records.stat().st_size > 0
