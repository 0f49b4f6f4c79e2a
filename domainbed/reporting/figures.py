"""Figures of a sweep, drawn with matplotlib: the same in the report and, as files, for papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from domainbed.core.drawing import new_figure
from domainbed.core.names import order_algorithms, order_datasets
from domainbed.core.registry import Registry
from domainbed.core.text_table import printable
from domainbed.reporting.findings import Findings, is_logarithmic, is_numeric
from domainbed.reporting.statistics import CriticalDifference
from domainbed.reporting.tables import AVERAGE, domain_names
from domainbed.reporting.units import PERCENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]
"""Figures of one kind, by dataset or algorithm, or "" for a single one."""

Look = dict[str, Any]
"""How something is drawn: its `color`, `marker` and `linestyle`."""

FIGURES: Registry[Callable[[Findings], Figures]] = Registry("kind of figure")
"""By kind, functions from findings to figures; empty where there is nothing to draw."""

INK, MUTED, GRID, PAPER = "#1b1b1d", "#66666a", "#d8d8dc", "#fefefe"
"""Of text and lines, of secondary elements, of the grid, and of the background."""

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#332288", "#999933", "#882255", "#56b4e9")
"""Of lines and points, by Okabe and Ito and by Tol: colour-blind people can tell them apart too.

Each also has its own marker.
"""

WIDTHS = {"page": 14.0, "column": 3.25, "single": 5.5, "double": 6.75}
"""In inches: of the report; for papers of a column of ICML or CVPR, of the text of NeurIPS or ICLR,
of both columns of ICML or CVPR."""

MARKERS = "os^DvPX*"
COLUMNS, LEAST_WIDTH = 4, 1.6  # panels beside each other, and how wide one has to be
ACROSS, DOWN = 24, 16  # cells into which many points of a panel are gathered
ALL_POINTS = 150  # a panel with more is gathered


@contextmanager
def plain_style(width: float = WIDTHS["page"]) -> Iterator[None]:
    """Width, colours and fonts of all figures; no name is parsed as a formula.

    On the report's page, text stays text. In figures of other widths, which are for papers, fonts
    are embedded.
    """
    import matplotlib

    is_page = width == WIDTHS["page"]
    options: Any = {
        "figure.figsize": (width, width),
        "svg.fonttype": "none" if is_page else "path",
        "svg.hashsalt": "domainbed",
        "pdf.fonttype": 42,
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 12 if is_page else 8,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": "medium",
        "legend.fontsize": "small",
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
    return {
        name: _differences(frame[frame["dataset"] == name], findings.unit.of_differences)
        for name in shown
    }


def _differences(frame: pd.DataFrame, unit: str) -> Figure:
    methods = list(dict.fromkeys(frame["selection"]))
    names = order_algorithms(frame["algorithm"])
    figure, panels = _panels(len(methods), height=0.9 + 0.26 * len(names), sharex=True, sharey=True)
    for axes, method in zip(panels, methods):
        rows = frame[frame["selection"] == method]
        places = rows["algorithm"].map(names.index)
        told = (rows["trials_low"] > 0) | (rows["trials_high"] < 0)
        for kind, width in (("datasets", 1.2), ("trials", 4.0)):
            ends = rows[f"{kind}_low"], rows[f"{kind}_high"]
            colors = told.map({True: SERIES[0], False: GRID})
            axes.hlines(places, *ends, colors=colors, linewidth=width)
        for sure, face in ((True, INK), (False, PAPER)):
            axes.plot(rows["difference"][told == sure], places[told == sure], "o", color=INK,
                      markerfacecolor=face, markersize=5)  # fmt: skip
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set(title=method, yticks=range(len(names)))
        axes.set_yticklabels(list(map(printable, names)))
        axes.grid(axis="y", visible=False)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(unit, fontsize="medium")
    return figure


@FIGURES.register(name="ranks")
def rank_figures(findings: Findings) -> Figures:
    """Mean ranks, the critical difference, and bars over algorithms that cannot be told apart."""
    drawn = {
        name: ranks
        for name, ranks in findings.ranks.items()
        if len(ranks.mean_ranks) > 1 and ranks.count
    }
    if not drawn:
        return {}
    size = max(len(ranks.mean_ranks) for ranks in drawn.values())
    figure, panels = _panels(len(drawn), 1.0 + 0.2 * math.ceil(size / 2), columns=1)
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
        axes.text(tick, 0.25, str(tick), ha="center", va="bottom", fontsize="small")
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
                      (6, 0), textcoords="offset points", va="center",
                      fontsize="small")  # fmt: skip
    if ranks.tells_apart:
        for number, group in enumerate(ranks.groups):
            first, last = ranks.mean_ranks[group[0]], ranks.mean_ranks[group[-1]]
            height = -0.35 - 0.22 * number
            axes.hlines(height, first - 0.04, last + 0.04, color=SERIES[1], linewidth=3)


@FIGURES.register(name="curves")
def curve_figures(findings: Findings) -> Figures:
    """The metric by step of the runs that the first method chose, one figure per dataset."""
    frame, axis = findings.curves, findings.unit.of_axis
    frame = frame[frame["selection"] == findings.selection[0]]
    return {
        dataset: _curves(
            frame[frame["dataset"] == dataset], domain_names(findings.records.runs, dataset), axis
        )
        for dataset in order_datasets(frame["dataset"])
    }


def _curves(frame: pd.DataFrame, domains: Sequence[str], axis: str) -> Figure:
    names = order_algorithms(frame["algorithm"])
    figure, panels = _panels(len(names), height=2.1, sharex=True, sharey=True)
    for axes, name in zip(panels, names):
        for env, of_env in frame[frame["algorithm"] == name].groupby("test_env"):
            look = _look(int(env))
            measured, best = of_env.dropna(subset=["test"]), of_env[of_env["chosen"] > 0]
            axes.plot(measured["step"], measured["test"], color=look["color"])
            axes.plot(of_env["step"], of_env["validation"], color=look["color"], linestyle=":")
            axes.plot(best["step"], best["test"], linestyle="", markeredgecolor=INK, markersize=6,
                      **look)  # fmt: skip
        axes.set_title(printable(name))
    looks = {domains[env]: _look(env) for env in sorted(set(frame["test_env"]))}
    looks |= {"test": {"color": INK}, "validation": {"color": INK, "linestyle": ":"}}
    _add_to_legend(panels[0], looks)
    _finish(figure, "step", axis, len(looks))
    return figure


@FIGURES.register(name="on-the-line")
def line_figures(findings: Findings) -> Figures:
    """The in-domain metric against the out-of-domain one at all runs' last record, by dataset."""
    points, lines, unit = findings.last_records.dropna(), findings.lines, findings.unit
    if points.empty:
        return {}
    datasets = order_datasets(points["dataset"])
    figure, panels = _panels(len(datasets), height=3.0, columns=3)
    for axes, dataset in zip(panels, datasets):
        names = domain_names(findings.records.runs, dataset)
        for env, of_env in points[points["dataset"] == dataset].groupby("test_env"):
            look = _look(int(env))
            _scatter(axes, of_env["in_domain"], of_env["out_of_domain"], **look)
            fits = lines[(lines["dataset"] == dataset) & (lines["domain"] == names[env])]
            is_probit = unit.factor == PERCENT
            _draw_line(axes, of_env["in_domain"], fits.iloc[0], look["color"], is_probit)
            _add_to_legend(axes, {names[env]: look})
        axes.set_title(printable(dataset))
        axes.legend(loc="best")
    _finish(figure, f"in-domain {unit.of_axis}", f"out-of-domain {unit.of_axis}")
    return {"": figure}


def _draw_line(axes: Axes, x: pd.Series, fit: pd.Series, color: str, is_probit: bool) -> None:
    """The line of the values, or that of the probits, which is a curve in percent."""
    if math.isnan(fit["slope"]):
        return
    if is_probit:
        at = np.linspace(max(x.min(), 0.1), min(x.max(), 99.9), 30)
        drawn = 100 * ndtr(fit["slope"] * ndtri(at / 100) + fit["intercept"])
    else:
        at = np.array([x.min(), x.max()])
        drawn = fit["slope"] * at + fit["intercept"]
    axes.plot(at, drawn, color=color, linewidth=1)


@FIGURES.register(name="hparams")
def hparam_figures(findings: Findings) -> Figures:
    """The metric by each hyper-parameter that was drawn, one figure per algorithm."""
    tuning, unit = findings.tuning, findings.unit
    axis = "points" if unit.factor == PERCENT else unit.name
    return {
        name: _hparams(tuning[tuning["algorithm"] == name], f"{axis} above the mean")
        for name in order_algorithms(tuning["algorithm"])
    }


def _hparams(frame: pd.DataFrame, axis: str) -> Figure:
    names = sorted(set(frame["name"]))
    figure, panels = _panels(len(names), height=2.1, sharey=True)
    dot: Look = {"color": SERIES[0], "marker": "o"}
    diamond: Look = {"color": SERIES[1], "marker": "D"}
    for axes, name in zip(panels, names):
        of_name = frame[frame["name"] == name]
        values, best = of_name["value"], of_name["chosen"]
        if is_numeric(values):
            values = values.astype(float)
            _set_scale(axes, values)
        else:
            kinds = values.map(str).astype("category").cat
            values = kinds.codes.astype(float)
            ticks = [printable(text)[:12] for text in kinds.categories]
            axes.set_xticks(range(len(ticks)), ticks)
        _scatter(axes, values, of_name["gain"], **dot)
        axes.plot(values[best], of_name["gain"][best], linestyle="", markersize=5,
                  markeredgecolor=INK, **diamond)  # fmt: skip
        axes.set_title(printable(name))
    _add_to_legend(panels[0], {"a run": dot, "chosen": diamond})
    _finish(figure, "", axis, legend=2)
    return figure


def _set_scale(axes: Axes, values: pd.Series) -> None:
    """A scale for numbers, with few ticks and no formulas.

    On a logarithmic scale zero has its own place, left of the others.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, SymmetricalLogLocator

    if is_logarithmic(values):
        lowest = values[values > 0].min()
        axes.set_xscale("symlog", linthresh=lowest, linscale=0.4)
        locator = SymmetricalLogLocator(base=10, linthresh=lowest)
        locator.set_params(numticks=6)
        axes.xaxis.set_major_locator(locator)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scatter(axes: Axes, x: pd.Series, y: pd.Series, color: str, marker: str) -> None:
    """Points; of many points the cells that hold some: the larger, the more they hold."""
    points = pd.DataFrame({"x": x, "y": y, "n": 1})
    if len(points) > ALL_POINTS:
        across = axes.xaxis.get_transform().transform(x.to_numpy())
        points = points.groupby(
            [pd.cut(across, ACROSS, labels=False), pd.cut(y, DOWN, labels=False)]
        ).agg({"x": "median", "y": "median", "n": "sum"})
    most = points["n"].max()
    below = 0.0
    for share, size in ((0.1, 3), (0.4, 5), (1.0, 8)):  # markers of one size are small in a file
        of_size = points[(points["n"] > below * most) & (points["n"] <= share * most)]
        axes.plot(of_size["x"], of_size["y"], linestyle="", marker=marker, color=color, alpha=0.5,
                  markersize=size if len(points) < len(x) else 3.5, markeredgewidth=0)  # fmt: skip
        below = share


def _panels(
    count: int, height: float, columns: int = COLUMNS, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure as wide as the style says, with so many panels, up to `columns` in a row.

    A row has this height in inches where letters have 9 points.
    """
    import matplotlib

    width, of_letters = matplotlib.rcParams["figure.figsize"][0], matplotlib.rcParams["font.size"]
    across = min(count, columns, max(1, int(width / LEAST_WIDTH)))
    down = math.ceil(count / across)
    size = width, (height * down + 0.5) * of_letters / 9
    figure = new_figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, **shared).flat)
    for axes in panels[count:]:
        axes.remove()
    if shared.get("sharex"):
        for axes in panels[max(0, count - across) : count]:
            axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _look(number: int) -> Look:
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)]}


def _add_to_legend(axes: Axes, looks: Mapping[str, Look]) -> None:
    """Names what is drawn with a marker, or as a line where a look has none."""
    for name, look in looks.items():
        options = {"linestyle": "" if "marker" in look else "-", **look}
        axes.plot([], [], label=printable(name), markersize=5, **options)


def _finish(figure: Figure, x: str, y: str, legend: int = 0) -> None:
    """Names the axes of all panels; above them the legend, if it has entries."""
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    if legend:
        across = max(2, int(figure.get_figwidth() / LEAST_WIDTH) + 1)
        figure.legend(loc="outside upper center", ncols=min(across, legend))
