"""What folders of sweeps say besides records: planned methods, runs that were left out, names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError
from domainbed.runs.load import PLAN_FILE, Folders, as_paths
from domainbed.runs.records import Records
from domainbed.selection import SELECTION_METHODS

Gaps = dict[tuple[str, str, tuple[int, ...]], str]
"""By dataset, algorithm and test domains, why there are no such runs."""


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
