"""Coloured and rotated handwritten digits: MNIST, and scikit-learn's as the embedded data.

All images are shuffled, and domain i of N gets every N-th one from position i. The shuffle, the
label noise and the colours come from the trial seed, so that every run of a trial sees the same
domains; a `data_seed` replaces it where they should change with every run, as in DomainBed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from domainbed.config.dimensions import Option
from domainbed.core import seeding
from domainbed.core.files import regular
from domainbed.datasets.base import MultipleDomainDataset, published
from domainbed.datasets.domain import Draw, TensorDomain
from domainbed.errors import UserError, in_shell, one_line


class ByteImages(TensorDomain, TensorDataset):
    """Images of grey levels that stay bytes in memory, and become numbers when they are drawn.

    Also a `TensorDataset` of these numbers, in a quarter of the memory, or less with several
    channels: x = levels / 255 in the channels that show the image, and 0 in the others.

    Args:
        levels: (n, H, W) uint8.
        labels: (n,) int64.
        shown: (n, C) bool, which channels show the image; None for one channel that does.
    """

    def __init__(
        self, levels: torch.Tensor, labels: torch.Tensor, shown: torch.Tensor | None = None
    ) -> None:
        super().__init__(levels, labels)
        self.shown = torch.ones(len(labels), 1, dtype=torch.bool) if shown is None else shown

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """(n, C, H, W) float32 and the labels, computed at each call."""
        return self._numbers(slice(None)), self.y

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return self._numbers([index])[0], self.y[index]

    def to(self, device: torch.device) -> ByteImages:
        moved = super().to(device)
        moved.shown = self.shown.to(device)
        return moved

    def inputs(self, draw: Draw, chosen: torch.Tensor) -> torch.Tensor:
        return self._numbers(chosen)

    def _numbers(self, chosen: Any) -> torch.Tensor:
        """(n, C, H, W) float32 in [0, 1]."""
        return self.x[chosen].div(255).unsqueeze(1) * self.shown[chosen][:, :, None, None]


def _mnist(root: str) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST's 60,000 training and 10,000 test images: (70000, 28, 28) uint8, and digits."""
    from torchvision.datasets import MNIST

    if Path(root).name == "MNIST" and (Path(root) / "raw").is_dir():
        root = str(Path(root).parent)  # DomainBed's README gives MNIST's own folder
    raw = Path(root) / "MNIST" / "raw"
    made = [folder for folder in (raw, raw.parent, Path(root)) if not folder.exists()]
    try:
        for file in raw.glob("*-ubyte"):
            regular(file)
        parts = [MNIST(root, train=train, download=True) for train in (True, False)]
        images, digits = torch.cat([p.data for p in parts]), torch.cat([p.targets for p in parts])
        if images.shape != (len(digits), 28, 28) or digits.max() > 9:
            raise ValueError(
                f"images {tuple(images.shape)}, {len(digits)} labels to {digits.max()}"
            )
        return images, digits
    except Exception as error:  # damaged files raise many different exceptions
        reason = one_line(error)
        for folder in made:  # torchvision created them, and they are empty
            with suppress(OSError):
                folder.rmdir()
        message = (
            f"MNIST is not in {root!r} and could not be downloaded ({reason}): put its four "
            f"idx files, as they are distributed, into {raw}, or give another --data_dir"
        )
        if len(list(raw.glob("*-ubyte"))) == 4:
            message = (
                f"MNIST in {str(raw)!r} is damaged ({reason}): remove that folder, and get it "
                f"again with `domainbed data download ColoredMNIST --data_dir {in_shell(root)}`"
            )
        raise UserError(message) from error


def _digits(root: str) -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 1,797 digits: (1797, 8, 8) uint8, and digits."""
    # From its file: importing scikit-learn takes as long as importing PyTorch.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    # A line has 64 levels from 0 to 16, and the digit.
    table = torch.from_numpy(np.loadtxt(str(file), delimiter=","))
    images = (table[:, :-1] * (255 / 16)).round().to(torch.uint8)
    return images.reshape(-1, 8, 8), table[:, -1].long()


class DrawnDataset(MultipleDomainDataset):
    """Domains that depend on the trial seed, or in its place a `data_seed`; a subclass makes them.

    Attributes:
        generator: of what is random about them.
    """

    shareable = True

    def __init__(
        self,
        root: str,
        test_envs: Sequence[int],
        hparams: Mapping[str, Any],
        trial_seed: int = 0,
        data_seed: int | None = None,
    ) -> None:
        seed = seeding.data_seed(trial_seed) if data_seed is None else data_seed
        self.hparams, self.generator = hparams, torch.Generator().manual_seed(seed)
        self.datasets = self.make_domains(root)
        self.input_shape = tuple(self.datasets[0][0][0].shape)

    @abstractmethod
    def make_domains(self, root: str) -> Sequence[TensorDataset]:
        """The domains; `root` is the data folder."""


class _ShuffledDigits(DrawnDataset):
    """Joins and shuffles the images; a subclass makes the domains of them."""

    small_images = True
    read = staticmethod(_mnist)

    def make_domains(self, root: str) -> Sequence[TensorDataset]:
        images, digits = self.read(root)
        order = torch.randperm(len(images), generator=self.generator)
        return self.of_shuffled(images[order], digits[order])

    @abstractmethod
    def of_shuffled(self, images: torch.Tensor, digits: torch.Tensor) -> Sequence[TensorDataset]:
        """The domains, from the shuffled images."""


class _Colored(_ShuffledDigits):
    """Two channels; the colour predicts the (noisy) label better than the digit does.

    y = 1 if digit < 5, flipped with probability 0.25; colour = y flipped with probability e, per
    domain; the channel 1 − colour is zero (Arjovsky et al. 2019, section 5.1).
    """

    num_classes = 2
    label_noise = 0.25
    color_noise = (0.1, 0.2, 0.9)

    def of_shuffled(self, images: torch.Tensor, digits: torch.Tensor) -> Sequence[TensorDataset]:
        domains, n = [], len(self.color_noise)
        for i, noise in enumerate(self.color_noise):
            labels = self._flipped(digits[i::n] < 5, self.label_noise)
            colors = self._flipped(labels, noise)
            keep = torch.stack([~colors, colors], dim=1)  # channel `colour` stays
            domains.append(ByteImages(images[i::n].contiguous(), labels.long(), keep))
        return domains

    def _flipped(self, bits: torch.Tensor, probability: float) -> torch.Tensor:
        return bits ^ (torch.rand(len(bits), generator=self.generator) < probability)


class _Rotated(_ShuffledDigits):
    """One channel; the domains are angles in degrees, with black corners."""

    num_classes = 10
    angles = (0, 15, 30, 45, 60, 75)
    options: ClassVar[Mapping[str, Option]] = {
        "rotation": Option("bilinear", "interpolation of the rotation", ("bilinear", "bicubic"))
    }

    def of_shuffled(self, images: torch.Tensor, digits: torch.Tensor) -> Sequence[TensorDataset]:
        resampling = Image.Resampling[self.option("rotation", self.hparams).upper()]
        domains, n = [], len(self.angles)
        for i, angle in enumerate(self.angles):
            upright = map(Image.fromarray, images[i::n].numpy())
            turned = [np.asarray(image.rotate(angle, resampling)) for image in upright]
            domains.append(ByteImages(torch.from_numpy(np.stack(turned)), digits[i::n]))
        return domains


@published
class ColoredMNIST(_Colored):
    """MNIST coloured: (2, 28, 28) in [0, 1], 2 classes, domains +90%, +80%, -90%."""


@published
class RotatedMNIST(_Rotated):
    """MNIST rotated: (1, 28, 28) in [0, 1], 10 classes, domains 0 to 75 degrees."""


@published
class ColoredDigits(_Colored):
    """The construction of ColoredMNIST over scikit-learn's digits: (2, 8, 8), needs no files."""

    read = staticmethod(_digits)
    N_STEPS, CHECKPOINT_FREQ = 301, 50


@published
class RotatedDigits(_Rotated):
    """The construction of RotatedMNIST over scikit-learn's digits: (1, 8, 8), needs no files."""

    read = staticmethod(_digits)
    N_STEPS, CHECKPOINT_FREQ = 301, 50
