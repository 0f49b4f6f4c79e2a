"""The table of the experiment, as in Ramé et al. 2022, with the published values beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from domainbed.core.text_table import pipe_table, text_table
from domainbed.experiments.irm_colored_mnist.settings import Settings
from domainbed.reporting.published import irm_colored_mnist_values

_MEASURES = {
    "train_acc": "train acc",
    "test_acc": "test acc",
    "gray_test_acc": "grey test acc",
}


def table(results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each algorithm, in the order of `results`, which share their settings.

    Columns: algorithm; restarts, how many; for train_acc (mean of the two training domains),
    test_acc and gray_test_acc the mean over restarts in percent, and as …_std the standard
    deviation (of the population: divided by n, as NumPy does); seconds, the mean per restart; and
    for each accuracy published_… and published_…_std, unless `why_unpublished` says why not.
    """
    rows = []
    for algorithm in dict.fromkeys(result["algorithm"] for result in results):
        own = [result for result in results if result["algorithm"] == algorithm]
        row: dict[str, Any] = {"algorithm": algorithm, "restarts": len(own)}
        for name in _MEASURES:
            values = 100 * np.array([result[name] for result in own])
            row |= {name: values.mean(), f"{name}_std": values.std()}
        rows.append(row | {"seconds": np.mean([result["seconds"] for result in own])})
    ours = pd.DataFrame(rows)
    if not results or why_unpublished(results[0]["settings"]):
        return ours
    published = published_values(results[0]["settings"]["label_flip"])
    return ours.merge(published, how="left", on="algorithm")


def why_unpublished(settings: Mapping[str, Any]) -> str:
    """Why no published values can stand beside results of these settings; "" where they can."""
    paper = Settings().identity()
    others = [name for name in paper if name != "label_flip" and settings[name] != paper[name]]
    if others:
        said = [f"{name} is {settings[name]} (the paper's: {paper[name]})" for name in others]
        return f"the settings are not the paper's: {', '.join(said)}"
    if published_values(settings["label_flip"]) is None:
        return f"there are none for label_flip {settings['label_flip']}"
    return ""


def published_values(label_flip: float) -> pd.DataFrame | None:
    """Ramé et al. 2022, table 2; None where there are none for `label_flip`.

    Columns: algorithm, and published_X for every X of the file, in percent.
    """
    values = irm_colored_mnist_values()
    values = values[np.isclose(values["label_flip"], label_flip)].drop(columns="label_flip")
    renamed = values.rename(columns=lambda name: name if name == "algorithm" else _published(name))
    return renamed if len(renamed) else None


def to_text(results: Sequence[dict[str, Any]]) -> str:
    """Aligned columns, and below them what the numbers are."""
    return "\n".join([*text_table(_grid(results, "+/-")), "", *_notes(results)]) + "\n"


def to_markdown(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, and below it what the numbers are."""
    return "\n".join([*pipe_table(_grid(results, "±")), "", *_notes(results)]) + "\n"


def to_csv(results: Sequence[dict[str, Any]]) -> str:
    """The columns of `table`, unrounded."""
    return table(results).to_csv(index=False, lineterminator="\n")


def to_json(results: Sequence[dict[str, Any]]) -> str:
    """The rows of `table`, unrounded, and every restart's result."""
    rows = json.loads(table(results).to_json(orient="records", double_precision=15))
    return json.dumps({"table": rows, "results": list(results)}, indent=2) + "\n"


FORMATS: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
    "json": to_json,
}


def _published(name: str) -> str:
    return f"published_{name}"


def _grid(results: Sequence[dict[str, Any]], plus_minus: str) -> list[list[str]]:
    frame = table(results)
    columns = {"algorithm": "Algorithm", "restarts": "restarts"}
    for name, label in _MEASURES.items():
        columns[name] = label
        if _published(name) in frame:
            columns[_published(name)] = "published"
    columns["seconds"] = "s per restart"
    grid = [list(columns.values())]
    for _, row in frame.iterrows():
        grid.append([_cell(row, name, plus_minus) for name in columns])
    return grid


def _cell(row: pd.Series, name: str, plus_minus: str) -> str:
    value = row[name]
    if pd.isna(value):
        return "-"
    if f"{name}_std" in row:
        return f"{value:.1f} {plus_minus} {row[f'{name}_std']:.1f}"
    return f"{value:.0f}" if name == "seconds" else str(value)


def _notes(results: Sequence[dict[str, Any]]) -> list[str]:
    seeds = {result["restart"]: result["seeds"] for result in results}
    lines = [
        "Accuracy in percent after the last update: mean and standard deviation (divided by n) "
        "over restarts."
    ]
    reason = why_unpublished(results[0]["settings"]) if results else ""
    if reason:
        lines.append(f"No published values beside: {reason}.")
    for name in ("data", "initialisation"):
        values = ", ".join(f"{number}: {of[name]}" for number, of in sorted(seeds.items()))
        lines.append(f"Seeds ({name}) by restart: {values}.")
    return lines
