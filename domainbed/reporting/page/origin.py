"""Where a sweep's numbers are from: the machines and versions, and the commands."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.runs.load import Folders, as_paths

_OF_ONE_RUN = ("seconds", "resumed")


def environments(folders: Iterable[str]) -> tuple[list[list[str]], str]:
    """What the runs were made with.

    Args:
        folders: of the runs.

    Returns:
        Rows of a name, its value and how many runs have it; and a line on the time they took.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds = told = 0.0
    for path in dict.fromkeys(folders):
        found = _environment(RunFolder(path))
        for name, value in found.items():
            if name not in _OF_ONE_RUN:
                counts[name][str(value)] += 1
        if isinstance(took := found.get("seconds"), (int, float)):
            seconds, told = seconds + took, told + 1
    rows = [
        [name, value, str(count)] for name in counts for value, count in counts[name].most_common()
    ]
    runs = "1 run" if told == 1 else f"{told:.0f} runs"
    return rows, f"{seconds / 3600:.2f} hours in all, of {runs}" if told else ""


def _environment(folder: RunFolder) -> dict[str, Any]:
    try:
        return folder.read_json(folder.environment) or {}
    except UserError:  # a report is not the place to fail about it
        return {}


def commands(folders: Folders) -> list[tuple[str, str]]:
    """What makes the sweeps, tables and report anew: a title and its text, one after the other.

    Raises:
        UserError: the config of a sweep is damaged.
    """
    found = []
    for root in as_paths(folders):
        config = root / "sweep.yaml"
        if config.is_file():
            read_yaml(config)
            text = config.read_text(encoding="utf-8")
            found.append((f"sweep.yaml of {root.name}", text))
        else:
            found.append((str(root), "# no sweep.yaml: made by other commands than a sweep\n"))
    made = [root for root in as_paths(folders) if (root / "sweep.yaml").is_file()]
    named = " ".join(shlex.quote(str(root)) for root in as_paths(folders))
    lines = [f"domainbed sweep launch {shlex.quote(str(root / 'sweep.yaml'))}" for root in made]
    lines += [f"domainbed {command} {named}" for command in ("collect", "compare", "report")]
    return [*found, ("Commands", "\n".join(lines) + "\n")]


def names_of(folders: Folders) -> str:
    """The folders, for a title."""
    return ", ".join(Path(root).name or str(root) for root in as_paths(folders))
