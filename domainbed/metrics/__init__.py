"""What is measured of predictions: metrics, what they are of, and their names in records."""

from domainbed.metrics import ready  # noqa: F401  (it registers them)
from domainbed.metrics.contract import METRICS, Accumulator, Metric, MetricFacts, Value
from domainbed.metrics.kept import measure_predictions
from domainbed.metrics.labels import LABEL_TYPES, LabelType, label_type, register_label_type
from domainbed.metrics.names import (
    check_metrics,
    describe_metric,
    get_metric,
    recorded_names,
    registered_as,
    selecting_metric,
)

__all__ = [
    "LABEL_TYPES",
    "METRICS",
    "Accumulator",
    "LabelType",
    "Metric",
    "MetricFacts",
    "Value",
    "check_metrics",
    "describe_metric",
    "get_metric",
    "label_type",
    "measure_predictions",
    "recorded_names",
    "register_label_type",
    "registered_as",
    "selecting_metric",
]
