"""From an image to its features, with the preprocessing that the backbone was published with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from domainbed.config.run_fields import FeatureSource
from domainbed.core.seeding import global_sources_kept
from domainbed.datasets.images.augmentation import Augmentation
from domainbed.datasets.images.transforms import Crop, resize
from domainbed.errors import UserError, one_line
from domainbed.networks.preprocessing import Preprocessing, preprocessing_of
from domainbed.networks.pretrained import headless_model


class FeatureExtractor:
    """A backbone in eval mode, and the preprocessing of its images.

    Attributes:
        source: names the backbone, its weights and the precision.
        preprocessing: of its images.
        width: d, of the features.

    Raises:
        UserError: no such backbone, its weights are not available, or it gives no vectors.
    """

    def __init__(self, source: FeatureSource, device: torch.device | str = "cpu") -> None:
        self.source, self.device = source, torch.device(device)
        with global_sources_kept():  # random weights, where there are no others, are the same
            torch.manual_seed(0)
            network = headless_model(source.backbone, source.weights)
        self.preprocessing: Preprocessing = preprocessing_of(source.backbone)
        # PyTorch's stubs know no overload with both a device and a memory format.
        self._network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.width = self._width_of_features()

    def content_digest(self) -> str:
        """The SHA-256 of the weights themselves, by name."""
        digest = hashlib.sha256()
        for name, value in self._network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 to (3, size, size) float32: resized, centre-cropped, normalised."""
        wanted = self.preprocessing
        height, width = image.shape[1:]
        shorter = (height, width) if wanted.squash else [min(height, width)] * 2
        # Cut off and rounded as in torchvision.
        height, width = (wanted.resized * s // by for s, by in zip((height, width), shorter))
        resized = resize(image, height, width, wanted.interpolation)
        top, left = (round((side - wanted.size) / 2) for side in (height, width))
        return self._normalised(resized[:, top : top + wanted.size, left : left + wanted.size])

    def views(
        self, image: torch.Tensor, seeds: Sequence[int], crop: Crop = "image"
    ) -> list[torch.Tensor]:
        """As `image`, with the published training augmentation, once for each seed."""
        found = []
        sizes = torch.tensor([image.shape[1:]])
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn = Augmentation.draw(sizes, (image.shape[1], image.shape[2]), generator, crop)
            found.append(self._normalised(drawn.applied(image, 0, self.preprocessing.size)))
        return found

    @torch.inference_mode()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, size, size) to (B, d), on the CPU, float32 or bfloat16."""
        x = x.to(self.device, memory_format=torch.channels_last)
        kept = torch.bfloat16 if self.source.precision == "bf16" else torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=kept == torch.bfloat16):
            found = self._network(x)
        return found.to(kept).cpu()

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (
            torch.tensor([255 * v for v in values])[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return x.float().sub_(mean).div_(std)

    def _width_of_features(self) -> int:
        size = self.preprocessing.size
        try:
            found = self.features(torch.zeros(1, 3, size, size))
        except Exception as error:  # models raise different exceptions
            raise UserError(
                f"backbone {self.source.backbone!r} cannot take images of {size}×{size} "
                f"({one_line(error)}): choose another"
            ) from error
        if found.dim() != 2:
            raise UserError(
                f"backbone {self.source.backbone!r} does not give one vector of features per "
                "image: choose another"
            )
        return found.shape[1]
