"""Metrics of torchmetrics by the names of their classes: `torchmetrics:FBetaScore:beta=2`.

A name has the class, below a module of torchmetrics if need be (`nominal.CramersV`), and arguments.
Number and type of the classes follow from the labels.
"""

from __future__ import annotations

import inspect
import re
from pydoc import locate
from typing import TYPE_CHECKING, Any

import yaml

from domainbed.errors import UserError, did_you_mean
from domainbed.metrics.accumulators import WholeSplit
from domainbed.metrics.contract import Accumulator, Metric, number_of

if TYPE_CHECKING:
    import torch

    from domainbed.metrics.labels import LabelType

PREFIX, RECORDED_PREFIX = "torchmetrics:", "torchmetrics_"

_TASK = re.compile("^(Binary|Multiclass|Multilabel)")

# Classes of torchmetrics, whose own word is known only with PyTorch; without what they begin
# with: Binary, Multiclass, Multilabel.
LOWER_IS_BETTER = frozenset(
    {
        *("CalibrationError", "CoverageError", "EER", "Fairness", "GroupStatRates"),
        *("HammingDistance", "HingeLoss", "RankingLoss"),
        *("ContinuousRankedProbabilityScore", "JensenShannonDivergence", "KLDivergence"),
        *("LogCoshError", "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredError"),
        *("MeanSquaredLogError", "MinkowskiDistance", "NormalizedRootMeanSquaredError"),
        *("RelativeSquaredError", "SymmetricMeanAbsolutePercentageError", "TweedieDevianceScore"),
        *("WeightedMeanAbsolutePercentageError", "Perplexity"),
    }
)


def higher_is_better(name: str) -> bool:
    """The direction of a class of torchmetrics."""
    return _TASK.sub("", name) not in LOWER_IS_BETTER


def metric(name: str) -> Metric:
    """The metric of a name with `PREFIX`; its class is looked up when an accumulator is made."""
    path, *given = name.removeprefix(PREFIX).split(":")
    pairs = [argument.partition("=") for argument in given]
    if lacking := [argument for (_, sign, _), argument in zip(pairs, given) if not sign]:
        raise UserError(
            f"metric {name!r}: {lacking[0]!r} is not of the form argument=value", "metrics"
        )
    arguments = {key: yaml.safe_load(value) for key, _, value in pairs}
    class_name = path.rpartition(".")[2]
    said = re.sub(r"\W+", "_", "_".join([class_name, *given]), flags=re.ASCII)

    def new(labels: LabelType) -> Accumulator:
        cls = _class_of(name, path, labels)
        _made(cls, arguments, labels, 2)  # a wrong argument is refused before a run

        def of_split(outputs: torch.Tensor, targets: torch.Tensor) -> float:
            measured = _made(cls, arguments, labels, outputs.size(1))
            scores = labels.scores(outputs)
            truth = targets.double() if labels.kind == "regression" else targets.long()
            try:
                measured.update(scores.squeeze(1) if scores.size(1) == 1 else scores, truth)
                return number_of(name, measured.compute())
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"metric {name!r} fails: {error}", "metrics") from error

        return WholeSplit(of_split)

    return Metric(RECORDED_PREFIX + said, new, higher_is_better(class_name))


def _class_of(name: str, path: str, labels: LabelType) -> Any:
    """The class of torchmetrics, also of its modules for classification and regression.

    Raises:
        UserError: there is none, or it is for labels of another kind.
    """
    import torchmetrics

    below = ("", "classification.", "regression.")
    found = next(filter(None, (locate(f"torchmetrics.{place}{path}") for place in below)), None)
    if not (isinstance(found, type) and issubclass(found, torchmetrics.Metric)):
        raise UserError(
            f"metric {name!r}: torchmetrics {torchmetrics.__version__} has no class "
            f"{path!r}.{did_you_mean(path, dir(torchmetrics))}",
            "metrics",
        )
    task = _TASK.match(found.__name__)
    kind = task.group().lower() if task else None
    if found.__module__.startswith("torchmetrics.regression"):
        kind = "regression"
    if kind not in (None, _task(labels)):
        raise UserError(
            f"metric {name!r} is not defined for labels of the type {labels.name!r}: it is for "
            f"{kind}",
            "metrics",
        )
    return found


def _made(cls: Any, arguments: dict[str, Any], labels: LabelType, width: int) -> Any:
    """A torchmetrics.Metric for outputs of a width.

    Raises:
        TypeError, ValueError: the class does not take these arguments, or is not for such labels.
    """
    facts = {"task": _task(labels), "num_classes": width, "num_labels": width}
    parameters = inspect.signature(cls).parameters
    of_labels = {key: value for key, value in facts.items() if key in parameters}
    return cls(**{**of_labels, **arguments})


def _task(labels: LabelType) -> str:
    """What torchmetrics calls the kind of the labels."""
    return "multiclass" if labels.kind == "classes" else labels.kind
