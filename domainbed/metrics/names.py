"""Names of metrics: those in a run's field `metrics`, and those of their values in records.

A field names a registered metric, `torchmetrics:CLASS`, or one of these with `_by_group` or
`_by_class` behind it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from domainbed.errors import UserError
from domainbed.metrics import foreign
from domainbed.metrics.accumulators import by_part, of_samples
from domainbed.metrics.contract import METRICS, PARTS, Metric, MetricFacts
from domainbed.metrics.labels import LabelType, label_type

BY_GROUP = "_by_group"
_SUFFIXES = {f"_{part}": suffix for suffix, parts in PARTS.items() for part in parts}


def get_metric(name: str) -> Metric:
    """The metric of this name in a run's field `metrics`.

    Raises:
        UserError: there is none, or its name cannot be that of a value in records.
    """
    for suffix in PARTS:
        if name.endswith(suffix):
            return by_part(get_metric(name.removesuffix(suffix)), suffix)
    if name.startswith(foreign.PREFIX):
        return foreign.metric(name)
    named = name if name in METRICS else recorded_by(name)
    if named != name:
        raise UserError(f"metric {name!r} is a value of {named!r}: name that one", "metrics")
    entry = METRICS[name]
    if isinstance(entry, Metric):
        return entry
    if not re.fullmatch(r"\w+", name, re.ASCII) or name == "acc":
        raise UserError(
            f"metric {name!r} cannot be recorded under this name: register it under one of "
            "letters, digits and underscores, other than acc",
            "metrics",
        )
    facts = {
        fact: getattr(entry, fact)
        for fact in ("higher_is_better", "percent", "label_kinds", "parts")
        if hasattr(entry, fact)
    }
    if isinstance(entry, type):
        return Metric(name, lambda labels: entry(), **facts)
    return of_samples(name, lambda labels: entry, **facts)


def recorded_by(value: str) -> str:
    """The name in a run's field `metrics` of what records a value.

    Examples:
        >>> recorded_by("mae_worst_group")
        'mae_by_group'
    """
    for part, suffix in _SUFFIXES.items():
        if value.endswith(part):
            return value.removesuffix(part) + suffix
    of_several = (known for known in METRICS if value.startswith(f"{known}_"))
    return next((known for known in of_several if value in get_metric(known).recorded), value)


def registered_as(names: Iterable[str]) -> list[Any]:
    """What is registered under the names of metrics, and of those by group."""
    own = (re.sub("_by_(group|class)$", "", name) for name in names)
    return [METRICS[name] for name in own if name in METRICS]


def check_metrics(names: Iterable[str], labels: LabelType) -> None:
    """Checks that a run can record these metrics of labels of a type.

    Raises:
        UserError: one is unknown, is not defined for such labels, cannot be made, or has the name
            of another in records.
    """
    taken: dict[str, str] = {}
    for name in names:
        metric = get_metric(name)
        if not metric.suits(labels):
            suited = ", ".join(n for n in METRICS if get_metric(n).suits(labels))
            raise UserError(
                f"metric {name!r} is not defined for labels of the type {labels.name!r}, but for "
                f"{', '.join(metric.label_kinds)}: choose among {suited}",
                "metrics",
            )
        for key in metric.recorded:
            if key in taken:
                raise UserError(
                    f"metrics {taken[key]!r} and {name!r} are both recorded as {key!r}: leave one "
                    "out",
                    "metrics",
                )
            taken[key] = name
        try:
            metric.new(labels)
        except (TypeError, ValueError) as error:  # of a constructor: a wrong argument, say
            raise UserError(f"metric {name!r} cannot be made: {error}", "metrics") from error


def recorded_names(metrics: Iterable[str]) -> tuple[str, ...]:
    """The names in records of the values of these metrics.

    Examples:
        >>> recorded_names(["accuracy", "auroc_by_group"])
        ('accuracy', 'auroc_worst_group', 'auroc_mean_group', 'auroc_group_gap')
    """
    return tuple(key for name in metrics for key in get_metric(name).recorded)


def selecting_metric(asked: str | None, labels: str, metrics: Sequence[str]) -> str:
    """The recorded value that selects among runs: the one that is asked for, or that of the labels.

    Args:
        asked: its name; None where none is asked for.
        labels: the name of the runs' label type.
        metrics: what the runs record.

    Raises:
        UserError: the runs do not record what is asked for, or it is unknown.
    """
    if asked is None:
        return label_type(labels).selection_metric
    name, recorded = describe_metric(asked).name, recorded_names(metrics)
    if name not in recorded:
        raise UserError(
            f"selection_metric is {asked!r}, and the metrics {', '.join(metrics)} are recorded as "
            f"{', '.join(recorded)}: choose one of these, or add it to metrics",
            "selection_metric",
        )
    return name


def describe_metric(name: str) -> MetricFacts:
    """Direction and unit of a value, by its name in records, or that of its metric in `metrics`.

    Raises:
        UserError: no such metric is known, or it has several values.

    Examples:
        >>> describe_metric("rmse_worst_group")
        MetricFacts(name='rmse_worst_group', higher_is_better=False, percent=False)
    """
    for part in _SUFFIXES:
        if name.endswith(part):
            of_all = describe_metric(name.removesuffix(part))
            higher = of_all.higher_is_better and not part.endswith("_gap")
            return MetricFacts(f"{of_all.name}{part}", higher, of_all.percent)
    if name.startswith(foreign.RECORDED_PREFIX):
        return MetricFacts(name, foreign.higher_is_better(name.split("_")[1]), percent=False)
    several = name if name in METRICS else recorded_by(name)
    metric = get_metric(several)
    if metric.parts and several == name:
        raise UserError(
            f"metric {name!r} has several values: choose one of {', '.join(metric.recorded)}"
        )
    recorded = metric.name if several == name else name
    return MetricFacts(recorded, metric.higher_is_better, metric.percent)
