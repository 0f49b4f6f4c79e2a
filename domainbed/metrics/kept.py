"""Metrics of what a run kept of its predictions: any of them, after training."""

from collections.abc import Sequence
from pathlib import Path

from domainbed.metrics.contract import Value
from domainbed.metrics.labels import label_type
from domainbed.metrics.names import check_metrics, get_metric
from domainbed.runs.predictions import read_outputs


def measure_predictions(file: Path, metrics: Sequence[str]) -> list[Value]:
    """The metrics of each domain's split, at the step that the predictions are of: the last.

    Args:
        file: a run's `predictions.parquet`.
        metrics: names, as in a run's field `metrics`.

    Returns:
        as a record has them, the metrics under their names in records.

    Raises:
        UserError: the file is damaged, or a metric is unknown, not defined for the labels, or by
            group where the predictions have none.
    """
    import torch

    parts, facts = read_outputs(file)
    labels = label_type(facts.get("labels", "classes"))
    check_metrics(metrics, labels)
    found = []
    for part in parts:
        outputs = torch.from_numpy(part.logits.copy())
        targets = torch.from_numpy(part.labels.copy())
        targets = targets if targets.is_floating_point() else targets.long()
        extras = None if part.groups is None else {"group": part.groups}
        for metric in map(get_metric, metrics):
            values = metric.measured(labels, outputs, targets, extras)
            found += [Value(part.domain, part.split, name, values[name]) for name in values]
    return found
