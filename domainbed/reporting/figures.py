"""Figures of a sweep, drawn with matplotlib: the same in the report and, as files, for papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from domainbed.core.drawing import new_figure
from domainbed.core.names import order_algorithms, order_datasets
from domainbed.core.registry import Registry
from domainbed.core.text_table import printable
from domainbed.reporting.findings import Findings, is_logarithmic, is_numeric, without_zeros
from domainbed.reporting.statistics import CriticalDifference
from domainbed.reporting.tables import AVERAGE, domain_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]
"""Figures of one kind, by what tells them apart: a dataset, an algorithm, or ""."""

FIGURES: Registry[Callable[[Findings], Figures]] = Registry("kind of figure")
"""By kind, functions from findings to figures; empty where there is nothing to draw."""

INK, MUTED, GRID, PAPER = "#1b1b1d", "#66666a", "#d8d8dc", "#fefefe"
"""Of text and lines, of what is less important, of the grid, and of the ground."""

SERIES = ("#0067a8", "#c14a00", "#007d5a", "#a8418c", "#8a6a00", "#5b5bd6", "#b3263a", "#4f6b2f")
"""Of lines and points; each is told from the next by its marker as well."""

MARKERS = "os^DvPX*"
COLUMNS = 4  # panels beside each other
ACROSS, DOWN = 24, 16  # cells into which many points of a panel are gathered
ALL_POINTS = 150  # a panel with more is gathered


@contextmanager
def plain_style() -> Iterator[None]:
    """Colours and fonts of all figures; text stays text, and no name is read as a formula."""
    new_figure()  # says what to do where matplotlib is missing
    import matplotlib

    options: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "domainbed",
        "pdf.fonttype": 42,
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 9,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.facecolor": "none",
        "figure.facecolor": PAPER,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.markersize": 4,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(options):
        yield


@FIGURES.register(name="differences")
def difference_figures(findings: Findings) -> Figures:
    """Differences to the baseline with both intervals: over all datasets, then of each."""
    frame = findings.differences
    datasets = list(dict.fromkeys(frame["dataset"]))
    # One dataset is its own average.
    shown = [AVERAGE, *datasets[:-1]] if len(datasets) > 2 else datasets[:1]
    return {name: _differences(frame[frame["dataset"] == name]) for name in shown}


def _differences(frame: pd.DataFrame) -> Figure:
    methods = list(dict.fromkeys(frame["selection"]))
    names = order_algorithms(frame["algorithm"])
    figure, panels = _panels(len(methods), height=0.9 + 0.26 * len(names), sharex=True, sharey=True)
    for axes, method in zip(panels, methods):
        for row in frame[frame["selection"] == method].to_dict("records"):
            place = names.index(row["algorithm"])
            for kind, width in (("datasets", 1.2), ("trials", 4.0)):
                ends = [row[f"{kind}_low"], row[f"{kind}_high"]]
                axes.plot(ends, [place, place], color=SERIES[0], linewidth=width, alpha=0.75,
                          solid_capstyle="butt")  # fmt: skip
            axes.plot(row["difference"], place, "o", color=INK, markersize=5)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set(title=method, yticks=range(len(names)), xlabel="points of percent")
        axes.set_yticklabels(list(map(printable, names)))
        axes.grid(axis="y", visible=False)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


@FIGURES.register(name="ranks")
def rank_figures(findings: Findings) -> Figures:
    """Mean ranks, the critical difference, and bars over algorithms that are not told apart."""
    found = {name: ranks for name, ranks in findings.ranks.items() if len(ranks.mean_ranks) > 1}
    drawn = {name: ranks for name, ranks in found.items() if ranks.count}
    if not drawn:
        return {}
    size = max(len(ranks.mean_ranks) for ranks in drawn.values())
    height = 1.0 + 0.2 * math.ceil(size / 2)
    figure = new_figure(figsize=(8, height * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axes, (name, ranks) in zip(panels, drawn.items()):
        _draw_ranks(axes, name, ranks)
    return {"": figure}


def _draw_ranks(axes: Axes, title: str, ranks: CriticalDifference) -> None:
    """The diagram of Demšar 2006, figure 1: the best rank is on the left."""
    size = len(ranks.mean_ranks)
    half = math.ceil(size / 2)
    margin = 0.3 * (size - 1)
    axes.axis("off")
    axes.set(xlim=(1 - margin, size + margin), ylim=(-half - 1.1, 1.5))
    axes.set_title(title, loc="left")
    axes.hlines(0, 1, size, color=INK, linewidth=1)
    for tick in range(1, size + 1):
        axes.vlines(tick, 0, 0.15, color=INK, linewidth=1)
        axes.text(tick, 0.25, str(tick), ha="center", va="bottom", fontsize=8)
    for place, (name, rank) in enumerate(ranks.mean_ranks.items()):
        on_left = place < half
        depth = -(place + 1 if on_left else size - place) - 0.5
        end = 1 - 0.08 * margin if on_left else size + 0.08 * margin
        axes.plot([rank, rank, end], [0, depth, depth], color=MUTED, linewidth=0.8)
        text = f"{printable(name)}  {rank:.2f}" if on_left else f"{rank:.2f}  {printable(name)}"
        axes.annotate(text, (end, depth), (-4 if on_left else 4, 0), textcoords="offset points",
                      ha="right" if on_left else "left", va="center")  # fmt: skip
    if ranks.can_differ:
        axes.errorbar(1 + ranks.distance / 2, 1.15, xerr=ranks.distance / 2, color=INK, capsize=3)
        axes.annotate(f"critical difference {ranks.distance:.2f}", (1 + ranks.distance, 1.15),
                      (6, 0), textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    if ranks.tells_apart:
        for number, group in enumerate(ranks.groups):
            first, last = ranks.mean_ranks[group[0]], ranks.mean_ranks[group[-1]]
            height = -0.35 - 0.22 * number
            axes.hlines(height, first - 0.04, last + 0.04, color=SERIES[1], linewidth=3)


@FIGURES.register(name="curves")
def curve_figures(findings: Findings) -> Figures:
    """Accuracy by step of the runs that the first method chose, one figure per dataset."""
    frame = findings.curves
    frame = frame[frame["selection"] == findings.selection[0]]
    return {
        dataset: _curves(
            frame[frame["dataset"] == dataset], domain_names(findings.records.runs, dataset)
        )
        for dataset in order_datasets(frame["dataset"])
    }


def _curves(frame: pd.DataFrame, domains: Sequence[str]) -> Figure:
    names = order_algorithms(frame["algorithm"])
    figure, panels = _panels(len(names), height=2.1, sharex=True, sharey=True)
    for axes, name in zip(panels, names):
        of_algorithm = frame[frame["algorithm"] == name]
        for env, of_env in of_algorithm.groupby("test_env"):
            look = _look(int(env))
            color, marker = look["color"], look["marker"]
            measured = of_env.dropna(subset=["test"])
            axes.plot(measured["step"], measured["test"], color=color)
            axes.plot(of_env["step"], of_env["validation"], color=color, linestyle=":")
            best = of_env[of_env["chosen"] > 0]
            axes.plot(best["step"], best["test"], linestyle="", marker=marker, color=color,
                      markeredgecolor=INK, markersize=6)  # fmt: skip
        axes.set_title(printable(name))
    _name_edges(panels, len(names), "step", "accuracy (%)")
    looks = {domains[env]: _look(env) for env in sorted(set(frame["test_env"]))}
    _legend(figure, {**looks, "test": {"color": INK}, "validation": _DOTTED})
    return figure


@FIGURES.register(name="on-the-line")
def line_figures(findings: Findings) -> Figures:
    """In-domain against out-of-domain accuracy of all runs at their last record, by dataset."""
    points, lines = findings.last_records.dropna(), findings.lines
    if points.empty:
        return {}
    datasets = order_datasets(points["dataset"])
    figure, panels = _panels(len(datasets), height=3.0, columns=3)
    shown = 0
    for axes, dataset in zip(panels, datasets):
        names = domain_names(findings.records.runs, dataset)
        of_dataset = points[points["dataset"] == dataset]
        for env, of_env in of_dataset.groupby("test_env"):
            _scatter(axes, of_env["in_domain"], of_env["out_of_domain"], **_look(int(env)))
            fits = lines[(lines["dataset"] == dataset) & (lines["domain"] == names[env])]
            _draw_line(axes, of_env["in_domain"], fits.iloc[0], _look(int(env))["color"])
            shown = max(shown, int(env) + 1)
        axes.set_title(printable(dataset))
        looks = {names[env]: _look(env) for env in sorted(set(of_dataset["test_env"]))}
        axes.legend(_handles(looks), list(map(printable, looks)), fontsize=7, loc="best")
    _name_edges(panels, len(datasets), "in-domain accuracy (%)", "out-of-domain accuracy (%)", 3)
    return {"": figure}


def _draw_line(axes: Axes, x: pd.Series, fit: pd.Series, color: str) -> None:
    """The line of the probits, a curve in percent."""
    from scipy.stats import norm

    if math.isnan(fit["slope"]):
        return
    at = np.linspace(max(x.min(), 0.1), min(x.max(), 99.9), 30)
    drawn = 100 * norm.cdf(fit["slope"] * norm.ppf(at / 100) + fit["intercept"])
    axes.plot(at, drawn, color=color, linewidth=1)


@FIGURES.register(name="hparams")
def hparam_figures(findings: Findings) -> Figures:
    """Accuracy by each hyper-parameter that was drawn, one figure per algorithm."""
    tuning = findings.tuning
    return {
        name: _hparams(tuning[tuning["algorithm"] == name])
        for name in order_algorithms(tuning["algorithm"])
    }


def _hparams(frame: pd.DataFrame) -> Figure:
    names = sorted(set(frame["name"]))
    figure, panels = _panels(len(names), height=2.1, sharey=True)
    for axes, name in zip(panels, names):
        of_name = frame[frame["name"] == name]
        values = of_name["value"]
        if is_numeric(values):
            values = values.astype(float)
            values = _scaled(axes, values)
        else:
            texts = values.map(str)
            known = sorted(set(texts))
            values = texts.map(known.index).astype(float)
            axes.set_xticks(range(len(known)), [printable(text)[:12] for text in known])
        _scatter(axes, values, of_name["gain"], color=SERIES[0], marker="o")
        best = of_name["chosen"]
        axes.plot(values[best], of_name["gain"][best], linestyle="", marker="D", markersize=5,
                  color=SERIES[1], markeredgecolor=INK)  # fmt: skip
        axes.set_title(printable(name))
    _name_edges(panels, len(names), "", "points above the mean")
    dot, diamond = {"color": SERIES[0], "marker": "o"}, {"color": SERIES[1], "marker": "D"}
    _legend(figure, {"a run": dot, "chosen": diamond})
    return figure


def _scaled(axes: Axes, values: pd.Series) -> pd.Series:
    """Sets the scale of numbers, with few ticks and no formulas; returns where to draw them.

    On a logarithmic scale zero has a place of its own, left of the others.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    drawn, zero = values, math.nan
    if is_logarithmic(values):
        axes.set_xscale("log")
        drawn, locator = without_zeros(values), LogLocator(numticks=4)
        axes.xaxis.set_major_locator(locator)
        if (values == 0).any():
            zero, lowest = drawn.min(), values[values > 0].min()
            ticks = locator.tick_values(lowest, values.max())
            within = ticks[(ticks >= lowest) & (ticks <= values.max())].tolist()
            axes.set_xticks([zero, *within[:: max(1, len(within) - 1)]])  # the outer ones
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "0" if value == zero else f"{value:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
    return drawn


def _scatter(axes: Axes, x: pd.Series, y: pd.Series, color: str, marker: str) -> None:
    """Points, or, of many, the cells that hold some: the larger, the more they hold."""
    points = pd.DataFrame({"x": x, "y": y, "n": 1})
    if len(points) > ALL_POINTS:
        across = np.log(x) if axes.get_xscale() == "log" else x
        cells = points.groupby([_cell_of(across, ACROSS), _cell_of(y, DOWN)])
        points = cells.agg({"x": "median", "y": "median", "n": "sum"})
    most = points["n"].max()
    below = 0.0
    for share, size in ((0.1, 3), (0.4, 5), (1.0, 8)):  # markers of one size are small in a file
        of_size = points[(points["n"] > below * most) & (points["n"] <= share * most)]
        axes.plot(of_size["x"], of_size["y"], linestyle="", marker=marker, color=color, alpha=0.5,
                  markersize=size if len(points) < len(x) else 3.5, markeredgewidth=0)  # fmt: skip
        below = share


def _cell_of(values: pd.Series, count: int) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    spread = np.ptp(numbers) or 1.0
    return np.minimum(((numbers - numbers.min()) / spread * count).astype(int), count - 1)


def _panels(
    count: int, height: float, columns: int = COLUMNS, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, up to `columns` in a row of this height in inches."""
    across = min(count, columns)
    down = math.ceil(count / across)
    figure = new_figure(figsize=(min(9.0, 1.2 + 3.0 * across), height * down + 0.5),
                        layout="constrained")  # fmt: skip
    panels = list(figure.subplots(down, across, squeeze=False, **shared).flat)
    for axes in panels[count:]:
        axes.remove()
    if shared.get("sharex"):
        for axes in panels[max(0, count - across) : count]:
            axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _name_edges(panels: Sequence[Axes], count: int, x: str, y: str, columns: int = COLUMNS) -> None:
    """Names the axes once a row and once a column."""
    across = min(count, columns)
    for number, axes in enumerate(panels):
        if number % across == 0:
            axes.set_ylabel(y)
        if number + across >= count:
            axes.set_xlabel(x)


_DOTTED = {"color": INK, "linestyle": ":"}


def _look(number: int) -> dict[str, str]:
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)]}


def _handles(looks: dict[str, dict[str, str]]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = []
    for look in looks.values():
        options: dict[str, Any] = {"linestyle": "" if "marker" in look else "-", **look}
        handles.append(Line2D([], [], markersize=5, **options))
    return handles


def _legend(figure: Figure, looks: dict[str, dict[str, str]]) -> None:
    labels = list(map(printable, looks))
    figure.legend(_handles(looks), labels, loc="outside upper center", ncols=min(8, len(looks)))
