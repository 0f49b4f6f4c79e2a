"""The logits of all images of a dataset, at the weights that training came to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from domainbed.runs.folder import RunFolder
from domainbed.runs.predictions import Predicted, write_predictions
from domainbed.training.evaluation import EvaluationSplit, splits_to_evaluate
from domainbed.training.experiment import Experiment


def save_predictions(experiment: Experiment, folder: RunFolder, data_dir: str) -> None:
    """Writes what the algorithm says of every split of every domain into the run's folder.

    The images are not augmented, and the batches are those of an evaluation.

    Args:
        experiment: with the weights that training came to; in training mode afterwards.
        folder: the run's.
        data_dir: which the names of images leave out.

    Raises:
        UserError: pyarrow is not installed, or an image cannot be read.
    """
    spec = experiment.spec
    facts = {
        "run_id": spec.run_id,
        "step": spec.steps - 1,
        "classes": experiment.dataset.class_names,
        "domains": experiment.domain_names,
    }
    splits = splits_to_evaluate(experiment.splits, spec.test_envs, everything=True)
    experiment.algorithm.eval()
    try:
        parts = (_predicted(experiment, split, data_dir) for split in splits)
        write_predictions(folder.predictions, facts, parts, experiment.dataset.num_classes)
    finally:
        experiment.algorithm.train()


@torch.no_grad()
def _predicted(experiment: Experiment, split: EvaluationSplit, data_dir: str) -> Predicted:
    labels, logits, predict = [], [], experiment.algorithm.predictor()
    for x, y in _batches(experiment, split):
        with experiment.precision():
            logits.append(predict(x).float().cpu())
        labels.append(y.cpu())
    files = experiment.domains[split.domain].files
    images = [_name(files[i], data_dir) if files else str(i) for i in split.indices]
    return Predicted(
        split.domain,
        split.name,
        images,
        torch.cat(labels).numpy().astype(np.int64),
        torch.cat(logits).numpy(),
    )


def _batches(
    experiment: Experiment, split: EvaluationSplit
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    domain = experiment.domains[split.domain]
    return domain.evaluation_batches(split.indices, workers=experiment.workers)


def _name(file: Path, data_dir: str) -> str:
    inside = file.is_relative_to(data_dir)
    return (file.relative_to(data_dir) if inside else file).as_posix()
