"""Metrics of torchmetrics by the names of their classes: `torchmetrics:FBetaScore:beta=2`.

A name has the class, below a module of torchmetrics if need be (`nominal.CramersV`), and arguments.
Number and type of the classes follow from the labels.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import yaml

from domainbed.errors import UserError, did_you_mean
from domainbed.metrics.accumulators import WholeSplit
from domainbed.metrics.contract import Accumulator, Metric, number_of

if TYPE_CHECKING:
    import torch

    from domainbed.metrics.labels import LabelType

PREFIX, RECORDED_PREFIX = "torchmetrics:", "torchmetrics_"

_TASKS = {"classes": "multiclass", "binary": "binary", "multilabel": "multilabel"}

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
"""Classes of torchmetrics, whose own word is known only with PyTorch; without what they begin with:
Binary, Multiclass, Multilabel."""


def higher_is_better(name: str) -> bool:
    """The direction of a class of torchmetrics."""
    return re.sub("^(Binary|Multiclass|Multilabel)", "", name) not in LOWER_IS_BETTER


def metric(name: str) -> Metric:
    """The metric of a name with `PREFIX`; its class is looked up when an accumulator is made."""
    path, *given = name.removeprefix(PREFIX).split(":")
    pairs = [argument.partition("=") for argument in given]
    if lacking := [argument for (_, sign, _), argument in zip(pairs, given) if not sign]:
        raise UserError(f"metric {name!r}: {lacking[0]!r} is no argument=value", "metrics")
    arguments = {key: yaml.safe_load(value) for key, _, value in pairs}
    class_name = path.rpartition(".")[2]
    said = re.sub(r"\W+", "_", "_".join([class_name, *given]), flags=re.ASCII)

    def new(labels: LabelType) -> Accumulator:
        cls = _class_of(name, path)
        made = _maker(name, cls, arguments, labels)
        made(2)  # so that a wrong argument is refused before anything is measured

        def of_split(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
            measured = made(outputs.size(1))
            scores = labels.scores(outputs)
            truth = targets.double() if labels.kind == "regression" else targets.long()
            try:
                measured.update(scores.squeeze(1) if scores.size(1) == 1 else scores, truth)
                return number_of(name, measured.compute())
            except (TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"metric {name!r} fails: {error}", "metrics") from error

        return WholeSplit(labels, of_split)

    return Metric(RECORDED_PREFIX + said, new, higher_is_better(class_name))


def _class_of(name: str, path: str) -> Any:
    """The class of torchmetrics, also of its modules for classification and regression.

    Raises:
        UserError: there is none.
    """
    import torchmetrics
    from torchmetrics import classification, regression

    *modules, class_name = path.split(".")
    place: Any = torchmetrics
    for module in modules:
        place = getattr(place, module, None)
    places = [place] if modules else [torchmetrics, classification, regression]
    found = next((vars(p)[class_name] for p in places if p and class_name in vars(p)), None)
    if not (inspect.isclass(found) and issubclass(found, torchmetrics.Metric)):
        known = [n for p in places if p for n in vars(p) if n[0].isupper()]
        raise UserError(
            f"metric {name!r}: torchmetrics {torchmetrics.__version__} has no class "
            f"{path!r}.{did_you_mean(class_name, known)}",
            "metrics",
        )
    return found


def _maker(
    name: str, cls: Any, arguments: dict[str, Any], labels: LabelType
) -> Callable[[int], Any]:
    """What makes a torchmetrics.Metric, given the width of the outputs.

    Raises:
        UserError: the class is not for such labels; or, when it is called, not for these arguments.
    """
    task, parameters = _TASKS.get(labels.kind, "regression"), inspect.signature(cls).parameters
    kinds = [k for k in ("Binary", "Multiclass", "Multilabel") if cls.__name__.startswith(k)]
    if "task" in parameters:
        tasks = list(get_args(parameters["task"].annotation))
    elif cls.__module__.startswith("torchmetrics.regression"):
        tasks = ["regression"]
    else:
        tasks = [kind.lower() for kind in kinds] or [task]
    if task not in tasks:
        raise UserError(
            f"metric {name!r} is not defined for labels of the type {labels.name!r}: torchmetrics "
            f"has it for {' and '.join(tasks)}",
            "metrics",
        )

    def made(width: int) -> Any:
        facts = {"task": task, "num_classes": width, "num_labels": width}
        of_labels = {key: value for key, value in facts.items() if key in parameters}
        try:
            return cls(**{**of_labels, **arguments})
        except (TypeError, ValueError) as error:
            raise UserError(f"metric {name!r} cannot be made: {error}", "metrics") from error

    return made
