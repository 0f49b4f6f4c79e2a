"""A diagnosis as a table, as JSON, or as a plot. Nothing is computed here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from domainbed.core.drawing import new_figure
from domainbed.core.files import as_json_values, written_aside
from domainbed.core.text_table import text_table
from domainbed.diagnostics.diagnosis import Diagnosis, Landscape, Stage
from domainbed.errors import UserError

JSON_VERSION = 1

Rows = list[list[str]]


def to_table(diagnosis: Diagnosis) -> str:
    """Aligned text: risks, scores, their parts, distances, and how close curvatures are."""
    d = diagnosis
    blocks: list[tuple[str, Rows]] = [
        ("Domains", _domain_rows(d)),
        ("Inconsistency score: the largest I(A, B)", _score_rows(d)),
    ]
    for name, stage in _stages(d):
        title = f"Parts of I(A, B) {name} training: R_B - R_A, and epsilon * max curvature B / A"
        blocks.append((title, _pair_rows(d, stage)))
    blocks.append(("The classifier's gradients, before > after training", _gradient_rows(d)))
    if d.after.closeness_to_hessian:
        title = "Curvatures beside the diagonal of the Hessian, before > after training"
        blocks.append((title, _closeness_rows(d)))
    lines = [
        d.run,
        f"epsilon {d.epsilon:g}, damping {d.damping:g}, {d.parameters:,} parameters in the "
        "classifier",
    ]
    for title, rows in blocks:
        lines += ["", title, *text_table(rows)]
    return "\n".join(lines) + "\n"


def to_json(diagnosis: Diagnosis) -> str:
    """All numbers, unrounded; the keys are the attributes of `Diagnosis`.

    JSON has no infinity and no NaN: such a number is null.
    """
    values = {"version": JSON_VERSION, **asdict(diagnosis)}
    return json.dumps(as_json_values(values), indent=2, allow_nan=False) + "\n"


FORMATS = {"table": to_table, "json": to_json}


def check_plot(file: Path | str) -> None:
    """Makes sure that a plot can be written there, before anything is computed for it.

    Raises:
        UserError: matplotlib is missing or cannot write such a file, or there is no such folder.
    """
    kinds = new_figure().canvas.get_supported_filetypes()
    kind = Path(file).suffix.removeprefix(".").lower()
    if kind not in kinds:
        raise UserError(f"plot {str(file)!r}: expected a file that ends in .png, .pdf or .svg")
    if not Path(file).parent.is_dir():
        raise UserError(f"plot {str(file)!r}: there is no such folder; make it first")


def save_plot(diagnosis: Diagnosis, file: Path | str) -> None:
    """Draws the scores, the risks and, if it was computed, the landscape.

    Raises:
        UserError: see `check_plot`; or the file cannot be written.
    """
    check_plot(file)
    landscape = diagnosis.landscape
    rows = 1 if landscape is None else 2
    figure = new_figure(figsize=(13, 4.2 * rows), layout="constrained")
    figure.suptitle(diagnosis.run)
    axes = figure.subplots(rows, 3, squeeze=False)
    _draw_scores(axes[0][0], diagnosis)
    _draw_domains(axes[0][1], diagnosis, "risks", "risk (nats)")
    _draw_domains(axes[0][2], diagnosis, "accuracies", "accuracy")
    if landscape is not None:
        _draw_landscape(figure, axes[1], diagnosis, landscape)
    try:
        with written_aside(Path(file)) as aside:
            figure.savefig(aside, format=Path(file).suffix[1:].lower(), dpi=120)
    except OSError as error:
        raise UserError(f"cannot write plot {str(file)!r}: {error.strerror}") from error


def _stages(diagnosis: Diagnosis) -> list[tuple[str, Stage]]:
    return [("before", diagnosis.before), ("after", diagnosis.after)]


def _domain_rows(d: Diagnosis) -> Rows:
    rows = [["domain", "name", "role", "images", "risk before", "after", "acc before", "after"]]
    for i, domain in enumerate(d.domains):
        role = "training" if domain.is_training else "test"
        risks = [f"{stage.risks[i]:.4f}" for _, stage in _stages(d)]
        accuracies = [f"{stage.accuracies[i]:.3f}" for _, stage in _stages(d)]
        facts = [str(domain.number), domain.name, role, f"{domain.images:,}"]
        rows.append([*facts, *risks, *accuracies])
    return rows


def _score_rows(d: Diagnosis) -> Rows:
    rows = [["curvature", "training: before", "after", "with test: before", "after", "damped"]]
    for name in d.after.inconsistency:
        both = [stage.inconsistency[name] for _, stage in _stages(d)]
        damped = "/".join(map(str, both[1].damped))
        cells = [_number(one.score) for one in both] + [_number(s.score_with_test) for s in both]
        rows.append([name, *cells, damped])
    return rows


def _pair_rows(d: Diagnosis, stage: Stage) -> Rows:
    kinds = list(stage.inconsistency)
    rows = [["A", "B", "R_B - R_A", *kinds]]
    for parts in zip(*[stage.inconsistency[kind].pairs for kind in kinds]):
        first = parts[0]
        names = [d.domains[first.a].name, d.domains[first.b].name]
        terms = [_number(part.curvature_term) for part in parts]
        rows.append([*names, f"{first.risk_difference:+.4f}", *terms])
    return rows


def _gradient_rows(d: Diagnosis) -> Rows:
    rows = [["A", "B", "means: distance", "cosine", "variances: distance", "cosine"]]
    for i, j in combinations(range(len(d.domains)), 2):
        row = [d.domains[i].name, d.domains[j].name]
        for quantity in ("gradient_means", "gradient_variances"):
            for measure in ("distances", "cosines"):
                both = [getattr(getattr(s, quantity), measure)[i][j] for _, s in _stages(d)]
                row.append(_change(both))
        rows.append(row)
    return rows


def _closeness_rows(d: Diagnosis) -> Rows:
    rows = [["curvature", "domain", "cosine", "correlation", "relative distance"]]
    for kind in d.after.closeness_to_hessian:
        for i, domain in enumerate(d.domains):
            row = [kind, domain.name]
            for measure in ("cosine", "correlation", "relative_distance"):
                both = [getattr(s.closeness_to_hessian[kind], measure)[i] for _, s in _stages(d)]
                row.append(_change(both))
            rows.append(row)
    return rows


def _change(before_and_after: Sequence[float]) -> str:
    return " > ".join(_number(value) for value in before_and_after)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _draw_scores(axes: Any, d: Diagnosis) -> None:
    kinds = list(d.after.inconsistency)
    series = {
        f"{name} training{scope}": [getattr(stage.inconsistency[kind], field) for kind in kinds]
        for field, scope in (("score", ""), ("score_with_test", ", with test domain"))
        for name, stage in _stages(d)
    }
    drawn = {label: values for label, values in series.items() if None not in values}
    _draw_bars(axes, [kind.replace("_", "\n") for kind in kinds], drawn)
    axes.set(ylabel="inconsistency (nats)", yscale="log")


def _draw_domains(axes: Any, d: Diagnosis, quantity: str, label: str) -> None:
    names = [
        f"{domain.name}\n{'training' if domain.is_training else 'test'}" for domain in d.domains
    ]
    _draw_bars(
        axes, names, {f"{name} training": getattr(stage, quantity) for name, stage in _stages(d)}
    )
    axes.set_ylabel(label)


def _draw_bars(axes: Any, names: list[str], series: dict[str, list[float]]) -> None:
    width = 0.8 / max(len(series), 1)
    for number, (label, values) in enumerate(series.items()):
        left = [i - 0.4 + width * number for i in range(len(names))]
        axes.bar(left, values, width, align="edge", label=label)
    axes.set_xticks(range(len(names)), names, fontsize="small")
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
