"""The final logits of all images of a dataset, and the images in memory that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from domainbed.core.seeding import global_sources_kept
from domainbed.datasets import get_dataset_class
from domainbed.datasets.base import domains_of
from domainbed.datasets.domain import Draw
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.runs.predictions import Predicted, write_predictions
from domainbed.training.evaluation import EvaluationSplit, splits_to_evaluate
from domainbed.training.experiment import Experiment, dataset_of
from domainbed.training.trained import read_spec


def save_predictions(experiment: Experiment, folder: RunFolder, data_dir: str) -> None:
    """Writes what the algorithm predicts for every split of every domain into the run's folder.

    The images are not augmented, and the batches are those of an evaluation.

    Args:
        experiment: with its final weights; in training mode afterwards.
        folder: the run's.
        data_dir: the data folder, below which images are named.

    Raises:
        UserError: an image cannot be read.
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
    domain, predict = experiment.domains[split.domain], experiment.algorithm.predictor()
    labels, logits = [], []
    for x, y in domain.evaluation_batches(split.indices, workers=experiment.workers):
        with experiment.precision():
            logits.append(predict(x).float().cpu())
        labels.append(y.cpu())
    return Predicted(
        split.domain,
        split.name,
        [_name(domain.files[i], data_dir) if domain.files else str(i) for i in split.indices],
        torch.cat(labels).numpy().astype(np.int64),
        torch.cat(logits).numpy(),
    )


def _name(file: Path, data_dir: str) -> str:
    inside = file.is_relative_to(data_dir)
    return (file.relative_to(data_dir) if inside else file).as_posix()


def pictures(
    folder: RunFolder, data_dir: str, domain: int, positions: Sequence[int]
) -> list[Image.Image]:
    """Images of a domain as a run sees them; nothing is downloaded.

    Args:
        folder: of a finished run on small images; what a dataset draws may be the run's own.
        data_dir: the data folder.
        domain: its number.
        positions: of the images.

    Raises:
        UserError: the data is not there, or its inputs are no pictures.
    """
    spec = read_spec(folder)
    cls = get_dataset_class(spec.dataset)
    info = cls.info
    if info is None or not cls.small_images or spec.features:
        raise UserError(f"{spec.dataset} has no small images")
    if not Path(data_dir, info.folder).is_dir():
        raise UserError(f"{spec.dataset} is not in {data_dir!r}")
    with global_sources_kept():
        chosen = domains_of(dataset_of(spec, data_dir))[domain]
    ((x, _),) = chosen.batches([Draw(torch.tensor(positions, dtype=torch.long))])
    return [_picture(each) for each in (255 * x.clamp(0, 1)).byte().cpu().numpy()]


def _picture(pixels: np.ndarray) -> Image.Image:
    """(C, H, W) uint8, of one channel (grey), two (red and green) or three."""
    channels = len(pixels)
    if channels > 3 or pixels.ndim != 3:
        raise UserError(f"an input of shape {pixels.shape} is no picture")
    if channels == 1:
        return Image.fromarray(pixels[0])
    nothing = np.zeros((3 - channels, *pixels.shape[1:]), np.uint8)
    return Image.fromarray(np.concatenate([pixels, nothing]).transpose(1, 2, 0).copy())
