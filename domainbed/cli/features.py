"""Compute the features of all images of a dataset once, for runs with the field `features`.

Runs do this by themselves at first use, with the cores they have. The features lie in the folder
`cache` of the data folder, or in the folder that the variable DOMAINBED_CACHE_DIR names. A
computation that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag
from domainbed.config.flags import add_flags, read_flags
from domainbed.config.run_fields import FeatureSource
from domainbed.config.settings import load

if TYPE_CHECKING:
    from domainbed.datasets import MultipleDomainDataset
    from domainbed.datasets.features import StoredFeatures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the name and the flags."""
    parser.add_argument("dataset", metavar="NAME", help="a dataset of image files, as for train")
    add_flags(parser, FeatureSource)
    add_data_dir_flag(parser)
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_flag(parser, "--corrupt_images", choices=("error", "skip"), default="error",
             help="what to do about images that cannot be read (default: error)")  # fmt: skip
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Computes, unless that was done before, and says where the features lie.

    Raises:
        UserError: no such dataset or backbone, no image files, or a corrupt image.
    """
    source = load(FeatureSource, None, read_flags(args, FeatureSource))
    from domainbed.core.plugins import import_plugins

    import_plugins(args.plugins)
    _, stored = computed(args, source, args.corrupt_images == "skip")
    number, views, width = stored.values.shape
    of_views = f" and {views - 1} views of each" if views > 1 else ""
    print(f"{width:,} features of {number:,} images{of_views} in {stored.folder}")
    if stored.unreadable:
        print(f"{len(stored.unreadable)} of them cannot be read and are skipped")
    return 0


def computed(
    args: argparse.Namespace, source: FeatureSource, skip_corrupt: bool = False
) -> tuple[MultipleDomainDataset, StoredFeatures]:
    """The dataset that the flags name, and the features of its images.

    Args:
        args: `dataset`, `data_dir` and `device`.
        source: what computes them.
        skip_corrupt: leave images out that cannot be read.

    Raises:
        UserError: see `main`.
    """
    from domainbed.core.cores import usable_cores
    from domainbed.core.files import cache_folder
    from domainbed.core.names import dataset_label
    from domainbed.datasets import load_dataset
    from domainbed.datasets.feature_domain import images_of
    from domainbed.datasets.features import open_features
    from domainbed.training.machine import choose_device

    dataset = load_dataset(args.dataset, args.data_dir, [0], {}, trial_seed=0)
    images = images_of(dataset, dataset_label(args.dataset), skip_corrupt)
    device, cache = choose_device(args.device), cache_folder(args.data_dir)
    return dataset, open_features(images, cache, source, device, usable_cores())
