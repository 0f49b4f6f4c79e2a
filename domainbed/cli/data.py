"""`domainbed data`: download, verify, pack, and compute features of datasets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from domainbed.cli.common import argument, command
from domainbed.config.run_fields import FeatureSource
from domainbed.core.flags import add_flags, read_flags
from domainbed.core.settings import load
from domainbed.core.text_table import terminal_width, text_table
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.datasets import MultipleDomainDataset
    from domainbed.datasets.features import StoredFeatures
    from domainbed.download.verify import Verification

_READ = ("corrupt_images", "image_size", "orientation", "window")
_MOST_COLUMNS = 12  # classes that fit beside each other


@command(
    argument("names", nargs="+", metavar="NAME", help="datasets, or all"),
    "--data_dir",
    "--plugins",
    argument(
        "--from",
        dest="copy",
        metavar="PATH",
        help="an archive or folder that you have, instead of the sources; it is read, not changed",
    ),
    argument(
        "--accept_checksum",
        action="store_true",
        help="accept a file with another checksum than the known one",
    ),
    argument(
        "--accept_incomplete",
        action="store_true",
        help="accept a dataset whose domains, classes or image counts differ from the published "
        "ones",
    ),
)
def download(args: argparse.Namespace) -> int:
    """Put published datasets into the data folder: from their sources, or from a copy you have.

    An interrupted download resumes when the same command is given again.
    """
    from domainbed.download.download import download_dataset, downloadable

    names = downloadable() if "all" in args.names else list(dict.fromkeys(args.names))
    if args.copy is not None and len(names) > 1:
        raise UserError(f"--from {args.copy!r} goes with one dataset, not with {len(names)}")
    failed = 0
    for name in names:
        try:
            download_dataset(
                *(name, args.data_dir, args.copy),
                accept_checksum=args.accept_checksum,
                accept_incomplete=args.accept_incomplete,
                say=lambda line: print(line, flush=True),
            )
        except UserError as error:
            if len(names) == 1:
                raise
            print(f"error: {name}: {error}", file=sys.stderr)
            failed += 1
    return 2 if failed else 0


@command(
    argument(
        "names",
        nargs="*",
        default=["all"],
        metavar="NAME",
        help="datasets, folder:PATH, manifests; or all that are there (default)",
    ),
    "--data_dir",
    "--plugins",
    argument("--format", choices=("text", "json"), default="text", help="(default: text)"),
)
def verify(args: argparse.Namespace) -> int:
    """Compare datasets on disk with what was published, and read every image.

    The exit status is 0 if nothing is wrong and 1 if something is.
    """
    from domainbed.download.verify import verify_dataset

    names = _present(args.data_dir) if "all" in args.names else list(dict.fromkeys(args.names))
    reports = []
    for name in names:
        reports.append(verify_dataset(name, args.data_dir))
        if args.format == "text":
            print("\n".join(_lines(reports[-1])), flush=True)
    ok = all(report.ok for report in reports)
    if args.format == "json":
        found = [report.to_json() for report in reports]
        print(json.dumps({"ok": ok, "datasets": found}, indent=2))
    return 0 if ok else 1


def _present(data_dir: str) -> list[str]:
    from domainbed.datasets import DATASETS
    from domainbed.download.download import downloadable

    folders = {name: os.path.join(data_dir, DATASETS[name].info.folder) for name in downloadable()}
    names = [name for name, folder in folders.items() if os.path.exists(folder)]
    if not names:
        raise UserError(f"no dataset in {data_dir!r}: get one with `domainbed data download NAME`")
    return names


def _lines(report: Verification) -> list[str]:
    state = "ok" if report.ok else f"{len(report.problems)} problem(s)"
    return [
        f"{report.name} in {report.folder or 'the package'}: {state}",
        *(_table(report) if report.counts else ()),
        *(f"  problem: {problem.message}" for problem in report.problems),
        *(f"  note: {note}" for note in report.notes),
    ]


def _table(report: Verification) -> list[str]:
    classes = sorted({name for counts in report.counts.values() for name in counts})
    shown = classes if len(classes) <= _MOST_COLUMNS else []
    rows = [["domain", "images", "published", "classes", *shown]]
    for domain in sorted(set(report.counts) | set(report.published)):
        counts = report.counts.get(domain, {})
        published = report.published.get(domain)
        row = [domain, f"{sum(counts.values()):,}", "-" if published is None else f"{published:,}"]
        rows.append([*row, str(len(counts)), *(f"{counts.get(name, 0):,}" for name in shown)])
    return text_table(rows, range(1, len(rows[0])), indent="  ", width=terminal_width())


@command(
    argument("dataset", metavar="NAME", help="a dataset of image files, as for train"),
    "--data_dir",
    *(f"--{name}" for name in _READ),
    "--plugins",
    argument(
        "--size",
        type=int,
        default=256,
        help="height and width to resize images to, unless all have one size that is no larger "
        "(default: 256)",
    ),
    argument(
        "--format",
        choices=("raw", "jpeg"),
        default="raw",
        help="jpeg: less disk space, more work (default: raw)",
    ),
)
def pack(args: argparse.Namespace) -> int:
    """Pack the images of a dataset into one file, for runs with the hyper-parameter data_path fast.

    The first such run does this by itself. The pack is in the folder `cache` of the data
    folder, or in the folder that the variable DOMAINBED_CACHE_DIR names.
    """
    from domainbed.datasets import load_dataset
    from domainbed.datasets.image_domains import PackedDomain

    packed = {"data_path": "fast", "packed_size": args.size, "packed_format": args.format}
    hparams = packed | _reading(args)
    first = load_dataset(args.dataset, args.data_dir, [0], hparams, trial_seed=0)[0]
    assert isinstance(first, PackedDomain)
    print(f"{len(first.pack):,} images in {first.pack.folder}")
    if first.pack.unreadable:
        print(f"{len(first.pack.unreadable)} of them cannot be read and are skipped")
    return 0


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    """How image files are read, as hyper-parameters."""
    return {name: getattr(args, name) for name in _READ if getattr(args, name) is not None}


@command(
    argument("dataset", metavar="NAME", help="a dataset of image files, as for train"),
    lambda parser: add_flags(parser, FeatureSource),
    "--data_dir",
    "--device",
    *(f"--{name}" for name in _READ),
    "--plugins",
)
def features(args: argparse.Namespace) -> int:
    """Compute the features of all images of a dataset once, for runs with the field `features`.

    The first such run does this by itself, with the cores it has. The features are in the
    folder `cache` of the data folder, or in the folder that the variable DOMAINBED_CACHE_DIR names.
    An interrupted computation resumes when the same command is given again.
    """
    source = load(FeatureSource, None, read_flags(args, FeatureSource))
    _, stored = computed_features(args, source, _reading(args))
    number, views, width = stored.values.shape
    of_views = f" and {views - 1} views of each" if views > 1 else ""
    print(f"{width:,} features of {number:,} images{of_views} in {stored.folder}")
    if stored.unreadable:
        print(f"{len(stored.unreadable)} of them cannot be read and are skipped")
    return 0


def computed_features(
    args: argparse.Namespace, source: FeatureSource, hparams: Mapping[str, Any]
) -> tuple[MultipleDomainDataset, StoredFeatures]:
    """The dataset that the flags name, and the features of its images.

    Args:
        args: `dataset`, `data_dir` and `device`.
        source: what computes them.
        hparams: how images are read.

    Raises:
        UserError: no such dataset or backbone, no image files, or a corrupt image.
    """
    from domainbed.core.cores import usable_cores
    from domainbed.core.device import choose_device
    from domainbed.core.files import cache_folder
    from domainbed.core.names import dataset_label
    from domainbed.datasets import load_dataset
    from domainbed.datasets.features import open_features
    from domainbed.datasets.image_domains import listing_of

    dataset = load_dataset(args.dataset, args.data_dir, [0], {}, trial_seed=0)
    device, cache = choose_device(args.device), cache_folder(args.data_dir)
    listing = listing_of(dataset, dataset_label(args.dataset), hparams, cache)
    return dataset, open_features(
        *(listing, cache, source, device, usable_cores()),
        skip_corrupt=hparams.get("corrupt_images") == "skip",
    )
