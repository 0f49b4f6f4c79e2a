"""Diagnose a trained run: how consistent its domains are, before and after training.

Inconsistency scores under several curvatures, risks, means and variances of the classifier's
gradients, and on request the landscape of two domains' risks around the weights.
"""

from __future__ import annotations

import argparse
import sys

from domainbed.cli.common import add_flag, add_plugins_flag
from domainbed.config.diagnosis_options import CURVATURES, DiagnosisOptions
from domainbed.config.flags import add_flags, default_text, read_flags
from domainbed.config.settings import load

FORMATS = ("table", "json")
_FLAGS = ("epsilon", "damping", "samples", "data_dir", "dataset", "device", "num_workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed diagnose`."""
    parser.add_argument("folder", metavar="RUN_FOLDER", help="of a finished run with its weights")
    add_flag(parser, "--format", choices=FORMATS, default="table", help="default: table")
    add_flag(parser, "--plot", metavar="FILE", help="also draw it, as .png, .pdf or .svg")
    add_flag(parser, "--curvature", dest="curvatures", nargs="+", choices=CURVATURES,
             default=argparse.SUPPRESS,
             help=f"default: {default_text(DiagnosisOptions, 'curvatures')}")  # fmt: skip
    add_flag(parser, "--landscape", nargs="*", metavar="DOMAIN", default=argparse.SUPPRESS,
             help="also the risks of two domains around the weights (without numbers: the first "
             "two training domains)")  # fmt: skip
    add_flags(parser, DiagnosisOptions, _FLAGS)
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the diagnosis and draws it if asked to; returns the exit status.

    Raises:
        UserError: a flag is wrong, or the folder holds no run that can be diagnosed.
    """
    from domainbed.core.drawing import check_figure_file
    from domainbed.core.plugins import import_plugins
    from domainbed.diagnostics import diagnose, rendering

    import_plugins(args.plugins)
    if args.plot is not None:
        check_figure_file("--plot", args.plot)
    options = load(DiagnosisOptions, None, read_flags(args, DiagnosisOptions))
    diagnosis = diagnose(args.folder, options)
    sys.stdout.write(rendering.FORMATS[args.format](diagnosis))
    if args.plot is not None:
        rendering.save_plot(diagnosis, args.plot)
    return 0
