"""Adapt the finished runs of a sweep to their test images with T3A, without training.

Each run that predicts by a linear classifier gets a record beside it, for `domainbed collect`.
"""

from __future__ import annotations

import argparse

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed adapt`."""
    parser.add_argument("folder", metavar="FOLDER", help="of a sweep that kept its weights")
    add_flag(parser, "--supports", nargs="+", type=int, metavar="M", help="images kept of each "
             "class, 0 for all; the best in validation is taken (the paper's values)")  # fmt: skip
    add_flag(parser, "--algorithms", nargs="+", metavar="NAME", help="only runs of these (all)")
    add_data_dir_flag(parser)
    add_flag(parser, "--dataset", help="where the runs' own images lie now: folder:PATH or a YAML "
             "file")  # fmt: skip
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints a line for each run; returns the exit status.

    Raises:
        UserError: the folder holds no runs that can be adapted, or M is negative.
    """
    from domainbed.algorithms.t3a import SUPPORTS
    from domainbed.config.run_fields import RunOptions
    from domainbed.core.plugins import import_plugins
    from domainbed.errors import UserError
    from domainbed.sweeps.adapting import adapt_runs

    import_plugins(args.plugins)
    supports = args.supports or SUPPORTS
    if min(supports) < 0:
        raise UserError(f"--supports is {min(supports)}: expected 0 (all) or more", "supports")
    machine, adapted = RunOptions(data_dir=args.data_dir, device=args.device), 0
    for each in adapt_runs(args.folder, args.algorithms, supports, machine, args.dataset):
        print(each.describe(), flush=True)
        adapted += each.supports is not None
    if not adapted:
        raise UserError(f"no run in {args.folder!r} predicts by a linear classifier on features")
    return 0
