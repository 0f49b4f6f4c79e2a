"""Predict with a trained run: classes of image files, or of a domain of its dataset.

Prints CSV: what was predicted, the class, and its probability.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag
from domainbed.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the folder, the images and the flags."""
    parser.add_argument("folder", metavar="RUN_FOLDER", help="of a finished run with its weights")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files of images")
    add_flag(parser, "--domain", type=int, metavar="N", help="instead: a domain of the dataset")
    add_flag(parser, "--split", choices=("in", "out"), default="in", help="of that domain (in)")
    add_data_dir_flag(parser)
    add_flag(parser, "--dataset", help="where the run's own images lie now: folder:PATH, a YAML "
             "file or a manifest")  # fmt: skip
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints a line for each image.

    Raises:
        UserError: the folder holds no trained run, or an image cannot be read.
    """
    from domainbed.plugins import import_plugins

    if bool(args.images) == (args.domain is not None):
        raise UserError("give either files of images, or --domain N")
    import_plugins(args.plugins)
    rows = _of_files(args) if args.images else _of_domain(args)
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    return 0


def _of_files(args: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    from domainbed.training import load_model

    model = load_model(args.folder, args.device)
    if model.preprocess is None:
        raise UserError(
            f"{args.folder} was trained on {model.spec.dataset_label}, whose inputs are no image "
            "files: give --domain N instead"
        )
    yield "image", "class", "probability"
    for name in args.images:
        x = model.preprocess(Path(name))[None].to(next(model.module.parameters()).device)
        probability, number = model.probabilities(x)[0].max(dim=0)
        yield name, model.classes[int(number)], f"{probability.item():.4f}"


def _of_domain(args: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    from domainbed.run_fields import RunOptions
    from domainbed.run_folder import RunFolder
    from domainbed.training import predictions

    folder = RunFolder(args.folder)
    machine = RunOptions(data_dir=args.data_dir, device=args.device)
    yield "position", "label", "class", "probability"
    yield from predictions(folder, machine, args.dataset, args.domain, args.split)
