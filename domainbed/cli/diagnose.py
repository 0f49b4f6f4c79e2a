"""Diagnose a trained run: how consistent its domains are, before and after training.

Inconsistency scores under several curvatures, risks, means and variances of the classifier's
gradients, and on request the landscape of two domains' risks around the weights.
"""

from __future__ import annotations

import argparse
import sys

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag
from domainbed.config.diagnosis_options import CURVATURES, DiagnosisOptions

FORMATS = ("table", "json")
_DEFAULTS = DiagnosisOptions()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed diagnose`."""
    parser.add_argument("folder", metavar="RUN_FOLDER", help="of a finished run with its weights")
    add_flag(parser, "--format", choices=FORMATS, default="table", help="default: table")
    add_flag(parser, "--plot", metavar="FILE", help="also draw it, as .png, .pdf or .svg")
    add_flag(parser, "--curvature", nargs="+", choices=CURVATURES,
             default=_DEFAULTS.curvatures,
             help=f"default: {' '.join(_DEFAULTS.curvatures)}")  # fmt: skip
    add_flag(parser, "--landscape", nargs="*", type=int, metavar="DOMAIN", help="also the risks "
             "of two domains around the weights (without numbers: the first two training "
             "domains)")  # fmt: skip
    add_flag(parser, "--epsilon", type=float, default=_DEFAULTS.epsilon, help="how much the risk "
             f"of A may rise, in nats (default: {_DEFAULTS.epsilon})")  # fmt: skip
    add_flag(parser, "--damping", type=float, default=_DEFAULTS.damping, help="added to all "
             f"curvatures, relative to their mean (default: {_DEFAULTS.damping})")  # fmt: skip
    add_flag(parser, "--samples", type=int, default=_DEFAULTS.samples, metavar="N", help="images "
             f"per domain, 0 for all (default: {_DEFAULTS.samples})")  # fmt: skip
    add_data_dir_flag(parser)
    add_flag(parser, "--dataset", help="where the run's own images lie now: folder:PATH or a YAML "
             "file")  # fmt: skip
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_flag(parser, "--num_workers", type=int, default=_DEFAULTS.num_workers, help="processes "
             f"that read images (default: {_DEFAULTS.num_workers})")  # fmt: skip
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the diagnosis and draws it if asked to; returns the exit status.

    Raises:
        UserError: a flag is wrong, or the folder holds no run that can be diagnosed.
    """
    from domainbed.core.plugins import import_plugins
    from domainbed.diagnostics import diagnose, rendering

    import_plugins(args.plugins)
    if args.plot is not None:
        rendering.check_plot(args.plot)
    names = ("data_dir", "dataset", "epsilon", "damping", "samples", "landscape", "device")
    options = DiagnosisOptions(
        curvatures=args.curvature,
        num_workers=args.num_workers,
        **{name: getattr(args, name) for name in names},
    )
    diagnosis = diagnose(args.folder, options)
    sys.stdout.write(rendering.FORMATS[args.format](diagnosis))
    if args.plot is not None:
        rendering.save_plot(diagnosis, args.plot)
    return 0
