"""The ready-made metrics of whole splits, through torchmetrics.

Each is a function of the outputs (n, C) in float64, the labels (n, …) and their type. Of several
classes or properties it is the mean over those for which it is defined (one-vs-rest, macro); NaN
where it is defined for none.
"""

import math
import warnings
from typing import Any

import torch
from torchmetrics import functional

from domainbed.core.plugins import warn_once
from domainbed.metrics.labels import LabelType


def auroc(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Area under the receiver operating characteristic."""
    return _of_rankings("auroc", outputs, targets, labels)


def average_precision(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Mean precision over recalls, without interpolation."""
    return _of_rankings("average_precision", outputs, targets, labels)


def balanced_accuracy(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Mean recall of the classes; of binary labels and properties, of both their values."""
    tp, fp, tn, fn = _counts(outputs, targets, labels)
    recall = tp / (tp + fn)
    if labels.kind != "classes":
        recall = torch.cat([recall, tn / (tn + fp)])
    return _mean_of_defined(recall, "balanced_accuracy")


def f1(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Harmonic mean of precision and recall; of binary labels, those of the label 1.

    It is defined where a class is among the labels or the predictions.
    """
    tp, fp, _, fn = _counts(outputs, targets, labels)
    return _mean_of_defined(2 * tp / (2 * tp + fp + fn), "f1")


def mcc(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Matthews' correlation coefficient; NaN where all labels are one class."""
    if (targets == targets[0]).all():
        return math.nan
    predicted = labels.decode(outputs)
    if (predicted == predicted[0]).all():
        return 0.0  # as scikit-learn has it: the covariance is 0
    return float(functional.matthews_corrcoef(predicted, targets.long(), **_task(outputs, labels)))


def ece(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Expected calibration error, in 15 bins of confidence (Guo et al. 2017, equation 3)."""
    scores = _scores(outputs, labels)
    return float(
        functional.calibration_error(scores, targets.long(), n_bins=15, **_task(outputs, labels))
    )


def nll(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Negative log-likelihood in nats, the mean over samples (and properties)."""
    scores = labels.scores(outputs)
    if labels.kind == "classes":
        return -scores.gather(1, targets[:, None]).log().mean().item()
    truth = targets.reshape(scores.shape) == 1
    return -torch.where(truth, scores, 1 - scores).log().mean().item()


def brier(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Brier score: squared error of the probabilities, summed over classes (Brier 1950)."""
    scores = labels.scores(outputs)
    if labels.kind == "classes":
        truth = torch.nn.functional.one_hot(targets, scores.size(1))
        return (scores - truth).square().sum(dim=1).mean().item()
    return (scores - targets.reshape(scores.shape)).square().mean().item()


def mae(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Mean absolute error."""
    return float(functional.mean_absolute_error(*_numbers(outputs, targets, labels)))


def rmse(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Root of the mean squared error."""
    return float(functional.mean_squared_error(*_numbers(outputs, targets, labels), squared=False))


def r2(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> float:
    """Coefficient of determination; not defined where all labels are one number."""
    predicted, truth = _numbers(outputs, targets, labels)
    varies = (truth != truth[:1]).any(dim=0)
    if not varies.any():
        return math.nan
    # It sums squares of the labels, which would lose a variance that is small beside their mean.
    centre = truth.mean(dim=0)
    values = functional.r2_score(predicted - centre, truth - centre, multioutput="raw_values")
    return _mean_of_defined(torch.where(varies, values, math.nan), "r2")


def _of_rankings(
    name: str, outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType
) -> float:
    scores = _scores(outputs, labels)
    if labels.kind == "classes":
        positives = targets.bincount(minlength=outputs.size(1))
    else:
        positives = (targets.reshape(outputs.shape) == 1).sum(dim=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is left out below
        values = getattr(functional, name)(
            scores, targets.long(), average="none", **_task(outputs, labels)
        )
    defined = (positives > 0) & ((positives < len(targets)) | (name != "auroc"))
    return _mean_of_defined(torch.where(defined, values, math.nan), name)


def _mean_of_defined(values: torch.Tensor, name: str) -> float:
    """The mean of all values that are numbers, with a warning if it is not of all."""
    absent = int(values.isnan().sum())
    if 0 < absent < values.numel():
        warn_once(
            f"{name} is a mean over {values.numel() - absent} of {values.numel()} classes: a split "
            "lacks the others"
        )
    return values.double().nanmean().item()


def _counts(outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType) -> Any:
    """True and false positives, true and false negatives, each (K,) of K classes or properties."""
    arguments = _task(outputs, labels)
    if labels.kind != "binary":
        arguments["average"] = "none"
    found = functional.stat_scores(labels.decode(outputs), targets.long(), **arguments)
    return found.reshape(-1, 5)[:, :4].double().unbind(dim=1)


def _scores(outputs: torch.Tensor, labels: LabelType) -> torch.Tensor:
    """Probabilities as torchmetrics takes them: (n, C), or (n,) of one output."""
    scores = labels.scores(outputs)
    return scores.squeeze(1) if scores.size(1) == 1 else scores


def _task(outputs: torch.Tensor, labels: LabelType) -> dict[str, Any]:
    """Arguments that say what the labels are."""
    task = "multiclass" if labels.kind == "classes" else labels.kind
    counted = "num_labels" if task == "multilabel" else "num_classes"
    return {"task": task, counted: outputs.size(1)}


def _numbers(
    outputs: torch.Tensor, targets: torch.Tensor, labels: LabelType
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true numbers, (n, C) float64."""
    return labels.scores(outputs), targets.reshape(outputs.shape).double()
