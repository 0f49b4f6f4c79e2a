"""Images that lie in memory and in no files, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from domainbed.core.seeding import global_sources_kept
from domainbed.datasets import get_dataset_class
from domainbed.datasets.domain import Draw
from domainbed.datasets.foreign import domains_of
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.training.experiment import dataset_of
from domainbed.training.trained import read_spec


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
