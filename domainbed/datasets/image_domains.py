"""Domains of image files, and how a run reads them: as files, from a pack, or as features."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from domainbed.config.dimensions import Option, is_number, with_defaults
from domainbed.config.run_fields import FeatureSource
from domainbed.core.device import sent
from domainbed.core.files import cache_folder
from domainbed.core.image_files import USUAL, Decoding
from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.domain import Batch, Draw, LoadedDomain, TensorDomain, on_device
from domainbed.datasets.features import StoredFeatures, open_features
from domainbed.datasets.images.dataset_files import Listing, in_order, read_image, unreadable_images
from domainbed.datasets.images.packs import Pack, PackOptions, open_pack
from domainbed.datasets.images.transforms import (
    IMAGE_SIZE,
    Augmentation,
    Crop,
    evaluation_transform,
    normalised,
    training_transform,
)
from domainbed.datasets.listing import content_digests
from domainbed.errors import UserError

# How image files are read, whatever the algorithm.
DATA_OPTIONS: dict[str, Option] = {
    "data_path": Option("exact", "how images are read; fast: packed once", ("exact", "fast")),
    "packed_size": Option(256, "height and width of packed images"),
    "packed_format": Option(
        "raw", "format of packed images; jpeg: less disk space", ("raw", "jpeg")
    ),
    "corrupt_images": Option(
        "error", "what to do about images that cannot be read", ("error", "skip")
    ),
    "image_size": Option(IMAGE_SIZE, "height and width of inputs", least=8),
    "orientation": Option(
        "ignore", "exif: rotate images as their EXIF data says", ("ignore", "exif")
    ),
    "window": Option(
        [], "[low, high]: the values of black and white in images of more than 8 bits"
    ),
}

# Those of them that runs on features of images have as well.
OF_FEATURES = ("corrupt_images", "image_size", "orientation", "window")


class ImageDomain(LoadedDomain, Dataset[tuple[torch.Tensor, int]]):
    """The images of one domain; also a PyTorch dataset of them, not augmented.

    Attributes:
        files: their paths.
        targets: their labels.
        crop: what the training augmentation crops.
        size: height and width of inputs.
        decoding: of the files.
    """

    size = IMAGE_SIZE
    decoding = USUAL

    def __init__(self, files: Sequence[Path], targets: Sequence[int], crop: Crop = "image") -> None:
        self.files, self.targets, self.crop = list(files), list(targets), crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """(3, size, size), resized and normalised; and its label."""
        return self.read(index, augment=False)

    @cached_property
    def labels(self) -> torch.Tensor:
        return torch.tensor(self.targets)

    def read(self, index: int, augment: bool) -> tuple[torch.Tensor, int]:
        image = self.pixels(index)
        if augment:
            return training_transform(image, self.crop, self.size), self.targets[index]
        return evaluation_transform(image, self.size), self.targets[index]

    def pixels(self, index: int) -> torch.Tensor:
        """(3, H, W) uint8."""
        return read_image(self.files[index], self.decoding)


class PackedDomain(ImageDomain):
    """Images that lie in a pack; threads read and augment ahead.

    Args:
        pack: of all domains.
        start: the number of the first image.
        domain: of the files.
    """

    def __init__(self, pack: Pack, start: int, domain: ImageDomain) -> None:
        super().__init__(domain.files, domain.targets, domain.crop)
        self.pack, self._start, self.size = pack, start, domain.size
        self.unreadable = _own(pack.unreadable, start, len(self))

    def pixels(self, index: int) -> torch.Tensor:
        return self.pack.image(self._start + index).permute(2, 0, 1)

    def batches(self, draws: Iterable[Draw], workers: int = 0) -> Iterator[Batch]:
        """See `Domain`. x is (B, 3, size, size)."""
        for x, y in in_order(self._batch, draws, workers):
            if self.device.type == "cpu":
                yield x, y
            else:
                yield on_device(x, self.device), sent(y, self.device)

    def _batch(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """What a thread does."""
        size, images = self.size, map(self.pixels, draw.indices.tolist())
        if draw.augment:
            generator = torch.Generator().manual_seed(draw.batch_seed())
            sizes = self.pack.sizes[draw.indices + self._start]
            drawn = Augmentation.draw(sizes, self.pack.shape, generator, self.crop, size)
            augmented = (drawn.applied(image, number, size) for number, image in enumerate(images))
            x = torch.stack(list(map(normalised, augmented)))
        else:
            x = torch.stack([evaluation_transform(image, size) for image in images])
        if self.device.type == "cuda":  # here, since the batch is awaited in another thread
            x = x.pin_memory()
        return x, self.labels[draw.indices]


class FeatureDomain(TensorDomain):
    """Features of the images of one domain, mapped into memory.

    An image that is to be augmented is one of its augmented views, where there are any, drawn
    separately for each place in a minibatch.

    Args:
        features: of all domains; x is (n, 1 + views, d) of them.
        start: the number of the first image.
        domain: of the files.
    """

    def __init__(self, features: StoredFeatures, start: int, domain: ImageDomain) -> None:
        n = len(domain)
        super().__init__(features.values[start : start + n], domain.labels)
        self.files, self.unreadable = domain.files, _own(features.unreadable, start, n)

    def inputs(self, draw: Draw, chosen: torch.Tensor) -> torch.Tensor:
        """(B, d) float32."""
        views = self.x.shape[1] - 1
        if not (draw.augment and views):  # the images themselves, which whole rows copy faster
            return self.x[:, 0].index_select(0, chosen).float()
        generator = torch.Generator().manual_seed(draw.batch_seed())
        drawn = torch.randint(1, views + 1, (len(chosen),), generator=generator)
        return self.x[chosen, sent(drawn, self.device)].float()


def _own(numbers: Iterable[int], start: int, n: int) -> list[int]:
    """The numbers that lie in a domain of n images, as positions in it."""
    return [number - start for number in numbers if start <= number < start + n]


def data_options(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that say how images are read, where they are not the defaults."""
    chosen = with_defaults(DATA_OPTIONS, hparams)
    return {
        name: chosen[name]
        for name, option in DATA_OPTIONS.items()
        if chosen[name] != option.default
    }


def decoding_of(hparams: Mapping[str, Any]) -> Decoding:
    """How a run decodes image files.

    Raises:
        UserError: the window is none.
    """
    chosen = with_defaults(DATA_OPTIONS, hparams)
    window = chosen["window"]
    if window and not (len(window) == 2 and all(map(is_number, window)) and window[0] < window[1]):
        raise UserError(
            f"hyper-parameter 'window' is {window}: expected two numbers, the value of black "
            "and a higher one of white",
            *("hparams", "window"),
        )
    return Decoding(chosen["orientation"], tuple(map(float, window)))


def listing_of(
    dataset: MultipleDomainDataset,
    name: str,
    hparams: Mapping[str, Any],
    cache: Path,
    reason: str = "features are computed from them",
    where: Sequence[str] = ("features",),
) -> Listing:
    """The images of all domains, domain by domain.

    Args:
        dataset: with domains of image files; is given the digests of their contents.
        name: the dataset's, without paths.
        hparams: see `DATA_OPTIONS`.
        cache: the folder of what is kept of all datasets.
        reason: why it needs to have image files, for the error.
        where: the field that asks for it.

    Raises:
        UserError: the dataset's inputs are not image files.
    """
    domains = [domain for domain in dataset.datasets if isinstance(domain, ImageDomain)]
    if len(domains) < len(dataset.datasets):
        raise UserError(f"{name} has no image files, but {reason}", *where)
    files = [file for domain in domains for file in domain.files]
    dataset.digests = content_digests(files, cache)
    return Listing(
        name,
        files,
        [target for domain in domains for target in domain.targets],
        [domain.crop for domain in domains for _ in domain.files],
        dataset.digests[0],
        decoding_of(hparams),
        hparams.get("image_size"),
    )


def apply_data_options(
    dataset: MultipleDomainDataset, name: str, data_dir: str, hparams: Mapping[str, Any]
) -> None:
    """Makes the domains of `dataset` read, pack or skip images as `hparams` ask.

    Args:
        dataset: newly built; its `datasets` are replaced.
        name: the dataset's, without paths.
        data_dir: caches lie below it.
        hparams: see `DATA_OPTIONS`.

    Raises:
        UserError: the dataset has no image files, or one that cannot be read.
    """
    wanted = data_options(hparams)
    if not wanted:
        return
    option, value = next(iter(wanted.items()))
    reason = f"hyper-parameter {option!r} is {value!r}: leave it out"
    cache, threads = cache_folder(data_dir), min(8, torch.get_num_threads())
    listing = listing_of(dataset, name, hparams, cache, reason, ("hparams", option))
    chosen = with_defaults(DATA_OPTIONS, hparams)
    size, skip = chosen["packed_size"], chosen["corrupt_images"] == "skip"
    if chosen["data_path"] == "fast" and size < chosen["image_size"]:
        raise UserError(f"packed_size is {size}: expected {chosen['image_size']} or more")
    dataset.input_shape = (3, chosen["image_size"], chosen["image_size"])
    for _, domain in _places(dataset):
        domain.size, domain.decoding = chosen["image_size"], listing.decoding
    if chosen["data_path"] == "fast":
        pack = open_pack(listing, cache, PackOptions(size, chosen["packed_format"], skip, threads))
        dataset.datasets = [PackedDomain(pack, *place) for place in _places(dataset)]
    elif skip:
        unreadable = unreadable_images(listing, cache, threads)
        for start, domain in _places(dataset):
            domain.unreadable = _own(unreadable, start, len(domain))


def apply_features(
    dataset: MultipleDomainDataset,
    name: str,
    cache: Path,
    source: FeatureSource,
    hparams: Mapping[str, Any],
) -> None:
    """Replaces images by their features, which are computed first unless they exist.

    Args:
        dataset: newly built; its `datasets` and `input_shape` are replaced.
        name: the dataset's, without paths.
        cache: the folder of the features of all datasets.
        source: what computes them.
        hparams: see `OF_FEATURES`.

    Raises:
        UserError: the dataset has no image files; or see `open_features`.
    """
    listing, threads = listing_of(dataset, name, hparams, cache), torch.get_num_threads()
    stored = open_features(
        *(listing, cache, source),
        skip_corrupt=hparams.get("corrupt_images") == "skip",
        threads=threads,
    )
    domains: list[Any] = [FeatureDomain(stored, *place) for place in _places(dataset)]
    dataset.datasets = domains
    dataset.input_shape = (stored.values.shape[2],)
    dataset.features_folder = stored.folder


def _places(dataset: MultipleDomainDataset) -> Iterator[tuple[int, ImageDomain]]:
    """Each domain of image files, with the number of its first image."""
    domains: Sequence[Any] = dataset.datasets
    yield from zip([0, *accumulate(map(len, domains))], domains)
