"""Pack the images of a dataset into one file, for runs with the hyper-parameter data_path fast.

Runs do this by themselves at first use. The pack lies in the folder `cache` of the data folder,
or in the folder that the variable DOMAINBED_CACHE_DIR names.
"""

from __future__ import annotations

import argparse

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the name and the flags."""
    parser.add_argument("dataset", metavar="NAME", help="a dataset of image files, as for train")
    add_data_dir_flag(parser)
    add_flag(parser, "--size", type=int, default=256, help="height and width to squeeze images "
             "to, unless all are of one size and no larger (default: 256)")  # fmt: skip
    add_flag(parser, "--format", choices=("raw", "jpeg"), default="raw", help="jpeg: less of the "
             "disk, more work (default: raw)")  # fmt: skip
    add_flag(parser, "--corrupt_images", choices=("error", "skip"), default="error",
             help="what to do about images that cannot be read (default: error)")  # fmt: skip
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Packs, unless that was done before, and says where the pack lies.

    Raises:
        UserError: no such dataset, no image files, no room on the disk, or a corrupt image.
    """
    from domainbed.core.plugins import import_plugins
    from domainbed.datasets import load_dataset
    from domainbed.datasets.packed_domain import PackedDomain

    import_plugins(args.plugins)
    hparams = {
        "data_path": "fast",
        "packed_size": args.size,
        "packed_format": args.format,
        "corrupt_images": args.corrupt_images,
    }
    dataset = load_dataset(args.dataset, args.data_dir, [0], hparams, trial_seed=0)
    first = dataset[0]
    assert isinstance(first, PackedDomain)
    pack = first.pack
    print(f"{len(pack):,} images in {pack.folder}")
    if pack.unreadable:
        print(f"{len(pack.unreadable)} of them cannot be read and are skipped")
    return 0
