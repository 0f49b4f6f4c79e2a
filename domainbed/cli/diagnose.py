"""Diagnose a trained run: how consistent its domains are, before and after training.

Inconsistency scores under several curvatures, risks, means and variances of the classifier's
gradients, and on request the landscape of two domains' risks around the weights.
"""

from __future__ import annotations

import argparse
import sys

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag

FORMATS = ("table", "json")
CURVATURES = ("variance", "empirical_fisher", "true_fisher", "hessian", "full_hessian")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed diagnose`."""
    parser.add_argument("folder", metavar="RUN_FOLDER", help="of a finished run with its weights")
    add_flag(parser, "--format", choices=FORMATS, default="table", help="default: table")
    add_flag(parser, "--plot", metavar="FILE", help="also draw it, as .png, .pdf or .svg")
    add_flag(parser, "--curvature", nargs="+", choices=CURVATURES, default=CURVATURES[:-1],
             help="default: all but full_hessian")  # fmt: skip
    add_flag(parser, "--landscape", nargs="*", type=int, metavar="DOMAIN", help="also the risks "
             "of two domains around the weights (without numbers: the first two training "
             "domains)")  # fmt: skip
    add_flag(parser, "--epsilon", type=float, default=0.1, help="how much the risk of A may rise, "
             "in nats (default: 0.1)")  # fmt: skip
    add_flag(parser, "--damping", type=float, default=1e-3, help="added to all curvatures, "
             "relative to their mean (default: 0.001)")  # fmt: skip
    add_flag(parser, "--samples", type=int, default=2000, metavar="N", help="images per domain, 0 "
             "for all (default: 2000)")  # fmt: skip
    add_data_dir_flag(parser)
    add_flag(parser, "--dataset", help="where the run's own images lie now: folder:PATH or a YAML "
             "file")  # fmt: skip
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_flag(parser, "--num_workers", type=int, default=0, help="processes that read images "
             "(default: 0)")  # fmt: skip
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the diagnosis and draws it if asked to; returns the exit status.

    Raises:
        UserError: a flag is wrong, or the folder holds no run that can be diagnosed.
    """
    from domainbed.diagnostics import DiagnosisOptions, diagnose, rendering
    from domainbed.plugins import import_plugins

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
