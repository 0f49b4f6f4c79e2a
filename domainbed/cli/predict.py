"""Predict with a trained run: classes of image files, or of a domain of its dataset.

Prints CSV. Of files: the file, its class, and the probability of each class, as p(NAME); of a
domain: the position, the label, the class and its probability.

With --save_predictions it writes the logits of all images of the dataset into the run's folder.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag
from domainbed.errors import UserError
from domainbed.runs.record_keys import AVERAGES

if TYPE_CHECKING:
    from domainbed.training.trained import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the folder, the images and the flags."""
    parser.add_argument("folder", metavar="RUN_FOLDER", help="of a finished run with its weights")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files of images")
    add_flag(parser, "--domain", type=int, metavar="N", help="instead: a domain of the dataset")
    add_flag(parser, "--split", choices=("in", "out"), default="in", help="of that domain (in)")
    add_flag(parser, "--save_predictions", action="store_true", help="instead: keep the logits of "
             "every image of the dataset in the run's folder, as Parquet")  # fmt: skip
    add_data_dir_flag(parser)
    add_flag(parser, "--dataset", help="where the run's own images lie now: folder:PATH, a YAML "
             "file or a manifest")  # fmt: skip
    add_flag(parser, "--average", metavar="NAME", help="with averaged weights of the run: "
             f"{', '.join(AVERAGES)} (default: the last weights)")  # fmt: skip
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints a line for each image, or keeps all predictions.

    Raises:
        UserError: the folder holds no trained run, or an image cannot be read.
    """
    from domainbed.core.plugins import import_plugins

    if bool(args.images) + (args.domain is not None) + args.save_predictions != 1:
        raise UserError("give either files of images, or --domain N, or --save_predictions")
    if args.average and args.save_predictions:
        raise UserError("--save_predictions keeps those of the last weights: leave --average out")
    import_plugins(args.plugins)
    if args.save_predictions:
        return _save(args)
    rows = _of_files(args) if args.images else _of_domain(args)
    begun = list(islice(rows, 2))  # the header is not printed where no line can follow it
    csv.writer(sys.stdout, lineterminator="\n").writerows(chain(begun, rows))
    return 0


def _save(args: argparse.Namespace) -> int:
    from domainbed.config.run_fields import RunOptions
    from domainbed.runs.folder import RunFolder
    from domainbed.training.saved_predictions import save_predictions
    from domainbed.training.trained import load_trained_weights, rebuild

    folder = RunFolder(args.folder)
    machine = RunOptions(data_dir=args.data_dir, device=args.device)
    experiment = rebuild(folder, machine, args.dataset)
    load_trained_weights(experiment, folder)
    save_predictions(experiment, folder, args.data_dir)
    print(f"Predictions: {folder.predictions}")
    return 0


def _of_files(args: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    from domainbed.training import load_model

    model = load_model(args.folder, args.device, args.average)
    if model.preprocess is None:
        raise UserError(
            f"{args.folder} was trained on {model.spec.dataset_label}, whose inputs are no image "
            "files: give --domain N instead"
        )
    yield "file", "class", *(f"p({name})" for name in model.classes)
    rows = _predicted(model, args.images)
    if model.module.predicts_batches:
        print(
            f"{model.spec.algorithm} looks at all images of a batch to predict each: those given "
            "are taken as one domain",
            file=sys.stderr,
        )
        rows = iter(sorted(rows, key=itemgetter(0)))
    yield from ((args.images[position], *row) for position, *row in rows)


def _predicted(model: Model, images: list[str]) -> Iterator[tuple[object, ...]]:
    """Position, class and all probabilities of each file."""
    import torch

    assert model.preprocess is not None
    device = next(model.module.parameters()).device
    for batch in model.together(len(images)):
        x = torch.stack([model.preprocess(Path(images[position])) for position in batch])
        for position, found in zip(batch, model.probabilities(x.to(device))):
            shown = (f"{probability:.4f}" for probability in found.tolist())
            yield position, model.classes[int(found.argmax())], *shown


def _of_domain(args: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    from domainbed.config.run_fields import RunOptions
    from domainbed.runs.folder import RunFolder
    from domainbed.training import predictions

    folder = RunFolder(args.folder)
    machine = RunOptions(data_dir=args.data_dir, device=args.device)
    yield "position", "label", "class", "probability"
    yield from predictions(folder, machine, args.dataset, args.domain, args.split, args.average)
