"""A diagnosis as a table, as JSON, or as a plot. Nothing is computed here."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from domainbed.core.drawing import check_figure_file, new_figure, save_figure
from domainbed.core.files import as_json_values
from domainbed.core.text_table import text_table
from domainbed.diagnostics.diagnosis import Diagnosis, Stage
from domainbed.diagnostics.landscape import Landscape

JSON_VERSION = 1

Rows = Iterator[list[str]]


def to_table(diagnosis: Diagnosis) -> str:
    """Aligned text: risks, scores, their parts, distances, and how close curvatures are."""
    d = diagnosis
    parts = "Parts of I(A, B) {} training: R_B - R_A, and epsilon * max curvature B / A"
    blocks = {
        "Domains": _domain_rows(d),
        "Inconsistency score: the largest I(A, B)": _score_rows(d),
        parts.format("before"): _pair_rows(d, d.before),
        parts.format("after"): _pair_rows(d, d.after),
        "The classifier's gradients, before > after training": _gradient_rows(d),
    }
    if d.after.closeness_to_hessian:
        title = "Curvatures beside the diagonal of the Hessian, before > after training"
        blocks[title] = _closeness_rows(d)
    lines = [
        d.run,
        f"epsilon {d.epsilon:g}, damping {d.damping:g}, {d.parameters:,} parameters in the "
        "classifier",
    ]
    for title, rows in blocks.items():
        lines += ["", title, *text_table(rows)]
    return "\n".join(lines) + "\n"


def to_json(diagnosis: Diagnosis) -> str:
    """All numbers, unrounded; the keys are the attributes of `Diagnosis`.

    JSON has no infinity and no NaN: such a number is null.
    """
    values = {"version": JSON_VERSION, **asdict(diagnosis)}
    return json.dumps(as_json_values(values), indent=2, allow_nan=False) + "\n"


FORMATS = {"table": to_table, "json": to_json}


def save_plot(diagnosis: Diagnosis, file: Path | str) -> None:
    """Draws the scores, the risks and, if it was computed, the landscape.

    Raises:
        UserError: see `check_figure_file`; or the file cannot be written.
    """
    check_figure_file("--plot", file)
    d, landscape = diagnosis, diagnosis.landscape
    rows = 1 if landscape is None else 2
    figure = new_figure(figsize=(13, 4.2 * rows), layout="constrained")
    figure.suptitle(d.run)
    axes = figure.subplots(rows, 3, squeeze=False)
    _draw_scores(axes[0][0], d)
    names = [f"{each.name}\n{'training' if each.is_training else 'test'}" for each in d.domains]
    for panel, quantity, label in (
        (axes[0][1], "risks", "risk (nats)"),
        (axes[0][2], "accuracies", "accuracy"),
    ):
        both = {f"{stage} training": getattr(getattr(d, stage), quantity) for stage in _STAGES}
        _draw_bars(panel, names, both, ylabel=label)
    if landscape is not None:
        _draw_landscape(figure, axes[1], d, landscape)
    save_figure(figure, "--plot", Path(file), dpi=120)


_STAGES = ("before", "after")


def _domain_rows(d: Diagnosis) -> Rows:
    yield ["domain", "name", "role", "images", "risk before", "after", "acc before", "after"]
    for i, domain in enumerate(d.domains):
        role = "training" if domain.is_training else "test"
        risks = [f"{stage.risks[i]:.4f}" for stage in (d.before, d.after)]
        accuracies = [f"{stage.accuracies[i]:.3f}" for stage in (d.before, d.after)]
        yield [str(domain.number), domain.name, role, f"{domain.images:,}", *risks, *accuracies]


def _score_rows(d: Diagnosis) -> Rows:
    yield ["curvature", "training: before", "after", "with test: before", "after", "damped"]
    for name, after in d.after.inconsistency.items():
        before = d.before.inconsistency[name]
        scores = [before.score, after.score, before.score_with_test, after.score_with_test]
        yield [name, *map(_number, scores), "/".join(map(str, after.damped))]


def _pair_rows(d: Diagnosis, stage: Stage) -> Rows:
    yield ["A", "B", "R_B - R_A", *stage.inconsistency]
    for parts in zip(*(found.pairs for found in stage.inconsistency.values())):
        first = parts[0]
        names = [d.domains[first.a].name, d.domains[first.b].name]
        terms = [_number(part.curvature_term) for part in parts]
        yield [*names, f"{first.risk_difference:+.4f}", *terms]


def _gradient_rows(d: Diagnosis) -> Rows:
    yield ["A", "B", "means: distance", "cosine", "variances: distance", "cosine"]
    for i, j in combinations(range(len(d.domains)), 2):
        numbers = [
            _change([getattr(getattr(s, quantity), measure)[i][j] for s in (d.before, d.after)])
            for quantity in ("gradient_means", "gradient_variances")
            for measure in ("distances", "cosines")
        ]
        yield [d.domains[i].name, d.domains[j].name, *numbers]


def _closeness_rows(d: Diagnosis) -> Rows:
    yield ["curvature", "domain", "cosine", "correlation", "relative distance"]
    for kind, after in d.after.closeness_to_hessian.items():
        stages = (d.before.closeness_to_hessian[kind], after)
        for i, domain in enumerate(d.domains):
            numbers = [
                _change([getattr(stage, measure)[i] for stage in stages])
                for measure in ("cosine", "correlation", "relative_distance")
            ]
            yield [kind, domain.name, *numbers]


def _change(before_and_after: Sequence[float]) -> str:
    return " > ".join(map(_number, before_and_after))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _draw_scores(axes: Any, d: Diagnosis) -> None:
    kinds = list(d.after.inconsistency)
    series = {
        f"{name} training{scope}": [
            getattr(getattr(d, name).inconsistency[kind], field) for kind in kinds
        ]
        for field, scope in (("score", ""), ("score_with_test", ", with test domain"))
        for name in _STAGES
    }
    drawn = {label: values for label, values in series.items() if None not in values}
    names = [kind.replace("_", "\n") for kind in kinds]
    _draw_bars(axes, names, drawn, ylabel="inconsistency (nats)", logy=True)


def _draw_bars(axes: Any, names: list[str], series: dict[str, list[float]], **look: Any) -> None:
    pd.DataFrame(series, index=names).plot.bar(ax=axes, rot=0, width=0.8, fontsize="small", **look)
    axes.legend(fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))


def _draw_landscape(figure: Any, axes: Any, d: Diagnosis, landscape: Landscape) -> None:
    names = [d.domains[number].name for number in landscape.domains]
    line, plane = landscape.line, landscape.plane
    for name, risks in zip(names, line.risks):
        axes[0].plot(line.positions, risks, label=f"risk on {name}")
    for position in (0, 1):
        axes[0].axvline(position, color="grey", linewidth=0.8)
    axes[0].set(xlabel="all weights: before (0), after (1)", ylabel="risk (nats)", yscale="log")
    axes[0].legend(fontsize="small")
    for panel, name, grid in zip(axes[1:], names, plane.risks):
        contours = panel.contourf(plane.x, plane.y, grid, levels=20)
        panel.plot([0, 1], [0, 0], "w.--")
        panel.set(
            title=f"risk on {name}",
            xlabel="classifier: before (0), after (1)",
            ylabel="random direction",
        )
        figure.colorbar(contours, ax=panel)
