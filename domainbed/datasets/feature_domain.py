"""Datasets whose inputs are features of their images, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from domainbed.config.run_fields import FeatureSource
from domainbed.core.transfer import sent
from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.domain import Draw, Minibatch
from domainbed.datasets.features import Images, StoredFeatures, open_features
from domainbed.datasets.image_access import image_domains, listing_of
from domainbed.datasets.tensor_domain import TensorDomain
from domainbed.errors import UserError


class FeatureDomain(TensorDomain):
    """Features of the images of one domain, mapped into memory.

    An image that is to be augmented is one of its augmented views, where there are any, drawn
    anew for each place in a minibatch.

    Args:
        x: (n, 1 + views, d).
        y: (n,) labels.
    """

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Minibatch]:
        """See `Domain`. x is (B, d) float32."""
        for draw in draws:
            chosen, views = (sent(v, self.device) for v in (draw.indices, self._views(draw)))
            yield self._x[chosen, views].float(), self._y[chosen]

    def _views(self, draw: Draw) -> torch.Tensor:
        """(B,) 0 for the image itself."""
        count, views = len(draw.indices), self._x.shape[1] - 1
        if not (draw.augment and views):
            return torch.zeros(count, dtype=torch.long)
        generator = torch.Generator().manual_seed(draw.batch_seed())
        return torch.randint(1, views + 1, (count,), generator=generator)


def images_of(dataset: MultipleDomainDataset, name: str, skip_corrupt: bool = False) -> Images:
    """What features of a dataset are computed of.

    Raises:
        UserError: its inputs are no image files.
    """
    domains = image_domains(dataset)
    if not domains:
        raise UserError(f"features are of image files, and {name} has none", "features")
    crops = [domain.crop for domain in domains for _ in domain.files]
    return Images(listing_of(name, domains), crops, skip_corrupt)


def apply_features(
    dataset: MultipleDomainDataset,
    name: str,
    cache: Path,
    source: FeatureSource,
    skip_corrupt: bool = False,
) -> None:
    """Puts features in the place of images; computes them first where they are not there.

    Args:
        dataset: newly built; its `datasets` and `input_shape` are replaced.
        name: the dataset's, without paths.
        cache: holds the features of all datasets.
        source: what computes them.
        skip_corrupt: leave images out that cannot be read, instead of raising an error.

    Raises:
        UserError: see `images_of` and `open_features`.
    """
    images = images_of(dataset, name, skip_corrupt)
    stored = open_features(images, cache, source, threads=torch.get_num_threads())
    domains = image_domains(dataset)
    starts = [0, *accumulate(map(len, domains))]
    found: list[Any] = [
        _domain(stored, start, domain.targets, domain.files)
        for start, domain in zip(starts, domains)
    ]
    dataset.datasets = found
    dataset.input_shape = (stored.values.shape[2],)
    dataset.features_folder = stored.folder


def _domain(
    stored: StoredFeatures, start: int, targets: list[int], files: Sequence[Path]
) -> FeatureDomain:
    end = start + len(targets)
    domain = FeatureDomain(stored.values[start:end], torch.tensor(targets))
    domain.files = files
    domain.unreadable = [number - start for number in stored.unreadable if start <= number < end]
    return domain
