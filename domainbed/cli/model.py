"""`domainbed model`: what can be done with trained runs and pretrained models."""

from __future__ import annotations

import argparse
import csv
import glob
import os
import sys
from collections.abc import Iterator
from itertools import chain, islice
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.cli.common import argument, command, execute
from domainbed.cli.data import computed_features
from domainbed.cli.launching import launch_sweep
from domainbed.config.run_fields import CURVATURES, DiagnosisOptions, FeatureSource, RunOptions
from domainbed.core.flags import add_flags, default_text, read_flags
from domainbed.core.image_files import images
from domainbed.core.names import AVERAGES
from domainbed.core.settings import load
from domainbed.core.text_table import in_csv
from domainbed.errors import UserError
from domainbed.metrics.labels import label_type
from domainbed.runs.folder import RunFolder

if TYPE_CHECKING:
    from domainbed.training.trained import Model

_BACKBONE = "open_clip:ViT-B-16"
_MACHINE = ("--data_dir", "--dataset", "--device", "--plugins")
_DIAGNOSIS_FLAGS = (
    *("epsilon", "damping", "samples", "data_dir", "dataset", "device", "num_workers"),
)


@command(
    argument("folder", metavar="FOLDER", help="a finished run with its weights, or a sweep"),
    argument("images", nargs="*", metavar="IMAGE", help="image files, folders, or quoted globs"),
    argument("--domain", type=int, metavar="N", help="instead of images: a domain of the dataset"),
    argument(
        "--split", choices=("in", "out"), default="in", help="split of that domain (default: in)"
    ),
    argument(
        "--save_predictions",
        action="store_true",
        help="instead of images: keep the logits of the whole dataset in the run's folder, as "
        "Parquet",
    ),
    argument(
        "--average",
        metavar="NAME",
        help=f"use averaged weights of the run: {', '.join(AVERAGES)} (default: the last weights)",
    ),
    argument("--selection", metavar="NAME", help="for a sweep: the selection method"),
    "--algorithm",
    "--test_env",
    *_MACHINE,
    methodcaller("set_defaults", data_dir=None),
)
def predict(args: argparse.Namespace) -> int:
    """Predict with a trained run: image files, or a domain of its dataset.

    Prints CSV: each file with its class and the probability of each class, as p(NAME); for a
    domain also position and label. If labels are not classes, it prints the probability of each
    property, or the numbers, under the names of the outputs.

    For a sweep, --algorithm, --selection and --test_env name the cell of the tables whose model
    predicts files. With --save_predictions it writes the logits of all images of the dataset into
    the run's folder.
    """
    if bool(args.images) + (args.domain is not None) + args.save_predictions != 1:
        raise UserError("give either files of images, or --domain N, or --save_predictions")
    if not args.images and {args.algorithm, args.selection, args.test_env} != {None}:
        raise UserError(
            "--algorithm, --selection and --test_env choose a model for files of images: with "
            "--domain or --save_predictions, name the folder of a run"
        )
    if args.average and args.save_predictions:
        raise UserError("--save_predictions keeps those of the last weights: leave --average out")
    if args.save_predictions:
        return _save_predictions(args)
    if args.images:
        rows = _of_files(args)
    else:
        from domainbed.training import predictions

        rows = predictions(
            *(RunFolder(args.folder), _machine(args), args.dataset),
            *(args.domain, args.split, args.average),
        )
    begun = list(islice(rows, 2))  # the header is not printed where no line can follow it
    csv.writer(sys.stdout, lineterminator="\n").writerows(
        [in_csv(value) for value in row] for row in chain(begun, rows)
    )
    return 0


def _save_predictions(args: argparse.Namespace) -> int:
    from domainbed.training.trained import load_trained_weights, rebuild, save_predictions

    folder = RunFolder(args.folder)
    experiment = rebuild(folder, _machine(args), args.dataset)
    load_trained_weights(experiment, folder)
    save_predictions(experiment, folder)
    print(f"Predictions: {folder.predictions}")
    return 0


def _machine(args: argparse.Namespace) -> RunOptions:
    given = {"data_dir": args.data_dir, "device": args.device}
    return RunOptions(**{name: value for name, value in given.items() if value is not None})


def _model_of(args: argparse.Namespace) -> Model:
    """That of a run, or of a cell of a sweep's tables."""
    from domainbed.training import load_model

    cell = {name: getattr(args, name) for name in ("algorithm", "selection", "test_env")}
    missing = [f"--{name}" for name, value in cell.items() if value is None]
    if len(missing) == len(cell) and not Path(args.folder, "plan.json").is_file():
        return load_model(args.folder, args.device, args.average)
    if missing or args.average:
        raise UserError(
            f"{args.folder} is a sweep, of which --algorithm, --selection and --test_env name a "
            f"model: {'give ' + ', '.join(missing) if missing else 'leave --average out'}"
        )
    from domainbed.sweeps.selected import load_selected

    return load_selected(args.folder, dataset=args.dataset, device=args.device, **cell)


def _files(words: list[str]) -> list[str]:
    """The files that are named, those below folders, and those that globs match."""
    found: list[str] = []
    for word in words:
        matching = [] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))
        for each in matching or [word]:
            found += map(str, images(Path(each))) if os.path.isdir(each) else [each]
    if not found:
        raise UserError(f"no images in {words[0]!r}: give files, folders that have some, or globs")
    return found


def _of_files(args: argparse.Namespace) -> Iterator[list[Any]]:
    from domainbed.training.trained import predicted_columns

    model, files = _model_of(args), _files(args.images)
    if model.preprocess is None:
        raise UserError(
            f"{args.folder} was trained on {model.spec.dataset_label}, whose inputs are not image "
            "files: give --domain N instead"
        )
    yield ["file", *predicted_columns(label_type(model.spec.labels), model.classes)]
    rows = _predicted(model, files)
    if model.module.predicts_batches:
        print(
            f"{model.spec.algorithm} looks at all images of a batch to predict each: those given "
            "are taken as one domain",
            file=sys.stderr,
        )
        rows = iter(sorted(rows, key=itemgetter(0)))
    yield from ([files[position], *cells] for position, cells in rows)


def _predicted(model: Model, files: list[str]) -> Iterator[tuple[int, list[str | float]]]:
    """Position of each file, and what is predicted."""
    import torch

    from domainbed.training.trained import predicted_cells

    assert model.preprocess is not None
    device, labels = next(model.module.parameters()).device, label_type(model.spec.labels)
    for batch in model.together(len(files)):
        x = torch.stack([model.preprocess(Path(files[position])) for position in batch])
        for position, found in zip(batch, model.probabilities(x.to(device))):
            yield position, predicted_cells(labels, model.classes, found)


@command(
    argument("folder", metavar="RUN_FOLDER", help="folder of a finished run with its weights"),
    argument("--format", choices=("table", "json"), default="table", help="default: table"),
    argument("--plot", metavar="FILE", help="also draw a figure: .png, .pdf or .svg"),
    argument(
        "--curvature",
        dest="curvatures",
        nargs="+",
        choices=CURVATURES,
        default=argparse.SUPPRESS,
        help=f"default: {default_text(DiagnosisOptions, 'curvatures')}",
    ),
    argument(
        "--landscape",
        nargs="*",
        metavar="DOMAIN",
        default=argparse.SUPPRESS,
        help="also the risks of two domains around the weights (without numbers: the first two "
        "training domains)",
    ),
    lambda parser: add_flags(parser, DiagnosisOptions, only=_DIAGNOSIS_FLAGS),
    "--plugins",
)
def diagnose(args: argparse.Namespace) -> int:
    """Diagnose a trained run: how consistent its domains are, before and after training.

    Inconsistency scores under several curvatures, risks, means and variances of the classifier's
    gradients, and on request the landscape of two domains' risks around the weights.
    """
    from domainbed.core.drawing import check_figure_file
    from domainbed.diagnostics import diagnose, rendering

    if args.plot is not None:
        check_figure_file("--plot", args.plot)
    options = load(DiagnosisOptions, None, read_flags(args, DiagnosisOptions))
    diagnosis = diagnose(args.folder, options)
    sys.stdout.write(rendering.FORMATS[args.format](diagnosis))
    if args.plot is not None:
        rendering.save_plot(diagnosis, args.plot)
    return 0


@command(
    argument("folder", metavar="FOLDER", help="folder of a sweep that kept its weights"),
    argument(
        "--method",
        required=True,
        metavar="NAME",
        help="uniform-soup, greedy-soup, diwa-uniform, diwa-restricted, ensemble",
    ),
    argument(
        "--together",
        action="store_true",
        help="average runs of different algorithms together (default: each by itself)",
    ),
    "--algorithms",
    "--selection_metric",
    *_MACHINE,
)
def average(args: argparse.Namespace) -> int:
    """Average the finished runs of a sweep: their weights, or their predictions.

    Writes a record of each average next to the runs, for `domainbed collect`.
    """
    from domainbed.sweeps.finished import average_runs

    for averaged in average_runs(
        *(args.folder, args.method, args.algorithms, args.together),
        *(_machine(args), args.dataset, args.selection_metric),
    ):
        print(averaged.describe(), flush=True)
    return 0


@command(
    argument("folder", metavar="FOLDER", help="folder of a sweep that kept its weights"),
    argument(
        "--method",
        default="T3A",
        metavar="NAME",
        help="T3A (default), BatchNorm, Tent, PseudoLabel, SHOT_IM, SHOT or UniDG",
    ),
    argument(
        "--supports",
        nargs="+",
        type=int,
        metavar="M",
        help="for T3A and UniDG: images kept per class, 0 for all; the best in validation is "
        "taken (default: the paper's values)",
    ),
    "--algorithms",
    "--selection_metric",
    *_MACHINE,
)
def adapt(args: argparse.Namespace) -> int:
    """Adapt the finished runs of a sweep to their test images, without labels.

    Each run with a linear classifier gets a record next to it, for `domainbed collect`.
    """
    from domainbed.sweeps.finished import adapt_runs

    if args.supports and (min(args.supports) < 0 or args.method not in ("T3A", "UniDG")):
        raise UserError(
            f"--supports is {min(args.supports)}, with --method {args.method}: expected 0 (all) or "
            "more, with T3A or UniDG",
            "supports",
        )
    for line in adapt_runs(
        *(args.folder, args.algorithms, args.supports, _machine(args), args.dataset),
        *(args.selection_metric, args.method),
    ):
        print(line, flush=True)
    return 0


@command(
    argument("dataset", metavar="NAME", help="a dataset of image files, as for train"),
    argument(
        "--backbone",
        default=_BACKBONE,
        help=f"open_clip:NAME, or open_clip:NAME.TAG (default: {_BACKBONE})",
    ),
    lambda parser: add_flags(parser, FeatureSource, only=("weights", "precision")),
    argument(
        "--prompts",
        default="photo",
        help="templates: photo (default), imagenet-7, imagenet-80, or a file with one per "
        "line, {} for the class",
    ),
    argument(
        "--output_dir",
        default="results/zero-shot",
        help="folder of the runs (default: results/zero-shot)",
    ),
    "--data_dir",
    "--device",
    "--plugins",
)
def zero_shot(args: argparse.Namespace) -> int:
    """Classify a dataset's images by the names of its classes, with a model that reads text.

    There is one run per test domain, which appears in the same tables as trained runs. Missing
    features of the images are computed first.
    """
    from domainbed.cli.tables import collect
    from domainbed.datasets.features import open_text_head
    from domainbed.networks.open_clip_models import PREFIX, prompt_templates
    from domainbed.sweeps.config import load_config

    if not args.backbone.startswith(PREFIX):
        raise UserError(
            f"--backbone {args.backbone!r} reads no text: name a model of open_clip ({_BACKBONE})"
        )
    prompt_templates(args.prompts)
    given = {"backbone": args.backbone, **read_flags(args, FeatureSource)}
    source = load(FeatureSource, None, given)
    # Now, since what is wrong with them would be wrong in each run.
    dataset, stored = computed_features(args, source, {})
    open_text_head(stored.folder, source, dataset.class_names, args.prompts)
    config = load_config(
        None,
        {
            "datasets": [args.dataset],
            "algorithms": ["ZeroShot"],
            "features": given,
            "hparams": {"prompts": args.prompts} if args.prompts != "photo" else {},
            "selection": ["training-domain"],
            "trials": 1,
            "hparams_seeds": 1,
            "launcher": "debug",
            "output_dir": args.output_dir,
            "data_dir": args.data_dir,
            "device": args.device,
            "plugins": args.plugins,
        },
    )
    return launch_sweep(config, skip_confirmation=True) or execute(collect, [args.output_dir])
