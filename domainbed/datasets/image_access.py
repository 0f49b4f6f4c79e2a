"""How a run reads a dataset's image files: as they are or packed, and what if one is corrupt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from domainbed.config.dimensions import Option, with_defaults
from domainbed.core.files import cache_folder
from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.image_folders import ImageDomain
from domainbed.datasets.images.listing import Listing, unreadable_images
from domainbed.datasets.images.packing import PackOptions, open_pack
from domainbed.datasets.packed_domain import PackedDomain
from domainbed.errors import UserError

DATA_OPTIONS: dict[str, Option] = {
    "data_path": Option("exact", "how images are read; fast: packed once", ("exact", "fast")),
    "packed_size": Option(256, "height and width of packed images"),
    "packed_format": Option("raw", "of packed images; jpeg: less of the disk", ("raw", "jpeg")),
    "corrupt_images": Option("error", "images that cannot be read", ("error", "skip")),
}
"""How image files are read, whatever the algorithm."""


def data_options(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the hyper-parameters that say how images are read, where they are not usual."""
    chosen = with_defaults(DATA_OPTIONS, hparams)
    return {
        name: chosen[name]
        for name, option in DATA_OPTIONS.items()
        if chosen[name] != option.default
    }


def image_domains(dataset: MultipleDomainDataset) -> list[ImageDomain]:
    """The domains of a dataset of image files; of any other none."""
    found = [domain for domain in dataset.datasets if isinstance(domain, ImageDomain)]
    return found if len(found) == len(dataset.datasets) else []


def listing_of(name: str, domains: Sequence[ImageDomain]) -> Listing:
    """The images of all domains, domain by domain."""
    return Listing(
        name,
        [file for domain in domains for file in domain.files],
        [target for domain in domains for target in domain.targets],
    )


def apply_data_options(
    dataset: MultipleDomainDataset, name: str, data_dir: str, hparams: Mapping[str, Any]
) -> None:
    """Packs the domains of `dataset`, or finds images to skip, where `hparams` ask for it.

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
    domains = image_domains(dataset)
    if not domains:
        option, value = next(iter(wanted.items()))
        raise UserError(
            f"hyper-parameter {option!r} is {value!r}, but {name} has no image files: leave it out"
        )
    listing = listing_of(name, domains)
    cache = cache_folder(data_dir)
    options = PackOptions.from_hparams(with_defaults(DATA_OPTIONS, hparams))
    starts = [0, *accumulate(map(len, domains))]
    if wanted.get("data_path") == "fast":
        pack = open_pack(listing, cache, options)
        dataset.datasets = [
            PackedDomain(pack, start, domain.targets, domain.crop, domain.files)
            for start, domain in zip(starts, domains)
        ]
    elif options.skip_corrupt:
        unreadable = unreadable_images(listing, cache, options.threads)
        for start, domain in zip(starts, domains):
            domain.unreadable = [n - start for n in unreadable if 0 <= n - start < len(domain)]
