"""From a run's predictions to decisions: threshold, calibration, and what they give by domain."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import optimize, special, stats
from sklearn import metrics

from domainbed.errors import UserError
from domainbed.metrics.labels import CLASSES, label_type
from domainbed.metrics.whole_split import ece
from domainbed.runs.folder import RunFolder
from domainbed.runs.predictions import read_outputs

RATES = ("auroc", "sensitivity", "specificity")


def decide(
    folder: Path | str,
    positive: str | None = None,
    sensitivity: float | None = None,
    draws: int = 1000,
) -> tuple[float, float, pd.DataFrame]:
    """Chooses threshold and temperature on validation, and measures both in each domain.

    Validation are the out-splits of the training domains, whose rows are of these images; a test
    domain's row is of all its images. The temperature has the least cross-entropy (Guo et al. 2017,
    section 4.2). Intervals hold 95 % of the values of resampled groups: patients, say, or images
    that have none.

    Args:
        folder: of a run that kept its predictions.
        positive: the class to decide for, against all others; None for the last of two.
        sensitivity: the threshold is the highest that reaches it; None for the one with the
            highest sum of sensitivity and specificity (Youden 1950).
        draws: how often groups are resampled.

    Returns:
        The threshold of the class's probability, as the model predicts it; the temperature, which
        logits are divided by; and a row for each domain. Columns are `test`, whether it is a test
        domain; the numbers of `images` and `groups`; `RATES`, each with its interval
        (`auroc_low`, `auroc_high`); `ece` and `ece_calibrated` (15 bins, of the predicted class);
        and the confusion `tp`, `fn`, `fp`, `tn`. What a domain has no images for is NaN.

    Raises:
        UserError: there are no predictions, labels are not classes, there is no such class, or
            validation is all of it or has none of it.
    """
    run = RunFolder(folder)
    parts, facts = read_outputs(run.predictions)
    tests, classes = (run.read_json(run.spec) or {})["test_envs"], facts["classes"]
    chosen = classes[-1] if positive is None and len(classes) == 2 else positive
    if chosen not in classes or not label_type(facts.get("labels", "classes")).has_classes:
        raise UserError(
            f"positive is {positive!r}, and {run.path} predicts {', '.join(classes)}: name the "
            "class to decide for",
            "positive",
        )
    kept = [part for part in parts if part.split == "out" or part.domain in tests]
    logits = np.concatenate([part.logits for part in kept]).astype(np.float64)
    if logits.shape[1] == 1:  # of binary labels: that of 1, beside which that of 0 is 0
        logits = np.hstack([np.zeros_like(logits), logits])
    labels = np.concatenate([part.labels for part in kept]).astype(np.int64)
    frame = pd.DataFrame(
        {
            "domain": [part.domain for part in kept for _ in part.images],
            "group": [group for part in kept for group in part.groups or part.images],
            "truth": labels == classes.index(chosen),
            "score": special.softmax(logits, axis=1)[:, classes.index(chosen)],
        }
    )
    validates = ~frame["domain"].isin(tests)
    validation = frame[validates]
    if validation["truth"].nunique() < 2:
        raise UserError(f"validation is all or none of {chosen!r}: no threshold can be chosen")
    fall_out, recall, at = metrics.roc_curve(
        validation["truth"], validation["score"], drop_intermediate=False
    )
    is_best = recall - fall_out if sensitivity is None else recall >= sensitivity
    threshold = float(at[np.argmax(is_best)])
    temperature = _temperature(logits[validates], labels[validates])
    by_domain = {}
    for domain, own in frame.groupby("domain"):
        outputs, targets = torch.from_numpy(logits[own.index]), torch.from_numpy(labels[own.index])
        confusion = metrics.confusion_matrix(
            own["truth"], own["score"] >= threshold, labels=[True, False]
        )
        by_domain[facts["domains"][domain]] = {
            "test": domain in tests,
            **_with_intervals(own, threshold, draws),
            "ece": ece(outputs, targets, CLASSES),
            "ece_calibrated": ece(outputs / temperature, targets, CLASSES),
            **dict(zip(("tp", "fn", "fp", "tn"), confusion.ravel())),
        }
    return threshold, temperature, pd.DataFrame.from_dict(by_domain, orient="index")


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What logits are divided by for the least cross-entropy."""
    calibrated = optimize.minimize_scalar(
        lambda temperature: metrics.log_loss(
            labels, special.softmax(logits / temperature, axis=1), labels=range(logits.shape[1])
        ),
        bounds=(0.01, 100),
        method="bounded",
    )
    return float(calibrated.x)


def _with_intervals(own: pd.DataFrame, threshold: float, draws: int) -> dict[str, float]:
    """How many images and groups a domain has, and `RATES`, with ends of their intervals."""
    truth, score = own["truth"].to_numpy(), own["score"].to_numpy()
    groups = list(own.groupby("group").indices.values())
    again = np.random.default_rng(0).integers(len(groups), size=(draws, len(groups)))
    resampled = (np.concatenate([groups[g] for g in each]) for each in again)
    drawn = pd.DataFrame(
        [_rates(truth[rows], score[rows], threshold) for rows in resampled], columns=RATES
    )
    return {
        "images": len(own),
        "groups": len(groups),
        **dict(zip(RATES, _rates(truth, score, threshold))),
        **drawn.quantile(0.025).add_suffix("_low"),
        **drawn.quantile(0.975).add_suffix("_high"),
    }


def _rates(truth: np.ndarray, score: np.ndarray, threshold: float) -> list[float]:
    """`RATES`; NaN where there is nothing to compute one from."""
    decided, (n0, n1) = score >= threshold, np.bincount(truth, minlength=2)
    # The statistic of Mann and Whitney is the AUROC, at a hundredth of the time.
    auroc = (stats.rankdata(score)[truth].mean() - (n1 + 1) / 2) / n0 if n0 and n1 else np.nan
    sensitivity = decided[truth].mean() if n1 else np.nan
    return [auroc, sensitivity, 1 - decided[~truth].mean() if n0 else np.nan]
