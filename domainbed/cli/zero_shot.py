"""Classify the images of a dataset by the names of its classes, with a model that reads text.

A run for each test domain, whose records stand in the same tables as those of trained runs. The
features of the images are computed first, where they are not there.
"""

from __future__ import annotations

import argparse

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag
from domainbed.cli.features import computed
from domainbed.cli.sweep.launch import launch
from domainbed.config.flags import add_flags, read_flags
from domainbed.config.run_fields import FeatureSource
from domainbed.config.settings import load
from domainbed.errors import UserError

_BACKBONE = "open_clip:ViT-B-16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed zero-shot`."""
    parser.add_argument("dataset", metavar="NAME", help="a dataset of image files, as for train")
    add_flag(parser, "--backbone", default=_BACKBONE,
             help=f"open_clip:NAME, or open_clip:NAME.TAG (default: {_BACKBONE})")  # fmt: skip
    add_flags(parser, FeatureSource, only=("weights", "precision"))
    add_flag(parser, "--prompts", default="photo", help="templates: photo (default), imagenet-7, "
             "imagenet-80, or a file with one in each line, {} for the class")  # fmt: skip
    add_flag(parser, "--output_dir", default="results/zero-shot",
             help="the folder of the runs (default: results/zero-shot)")  # fmt: skip
    add_data_dir_flag(parser)
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Does the runs and prints their tables; returns the exit status, which is 1 if one failed.

    Raises:
        UserError: no such dataset, backbone or prompts, or the weights are not to be had.
    """
    from domainbed.core.plugins import import_plugins
    from domainbed.datasets.features import open_text_head
    from domainbed.networks.open_clip_models import PREFIX, prompt_templates
    from domainbed.reporting import RENDERERS, build_report, load_records
    from domainbed.sweeps.config import load_config

    if not args.backbone.startswith(PREFIX):
        raise UserError(
            f"--backbone {args.backbone!r} reads no text: name a model of open_clip ({_BACKBONE})"
        )
    prompt_templates(args.prompts)
    import_plugins(args.plugins)
    given = {"backbone": args.backbone, **read_flags(args, FeatureSource)}
    source = load(FeatureSource, None, given)
    # Now, since what is wrong with them would be wrong in each run.
    dataset, stored = computed(args, source)
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
            **({"device": args.device} if args.device else {}),
            **({"plugins": args.plugins} if args.plugins else {}),
        },
    )
    status = launch(config, retry=False, dry_run=False, skip_confirmation=True)
    if status == 0:
        report = build_report(load_records(args.output_dir), config.selection)
        print(RENDERERS["text"](report))
    return status
