"""Average the finished runs of a sweep: their weights, or their predictions.

Writes a record of each average beside the runs, for `domainbed collect`.
"""

from __future__ import annotations

import argparse

from domainbed.cli.common import add_data_dir_flag, add_flag, add_plugins_flag

_METHODS = "uniform-soup, greedy-soup, diwa-uniform, diwa-restricted, ensemble"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed average`."""
    parser.add_argument("folder", metavar="FOLDER", help="of a sweep that kept its weights")
    add_flag(parser, "--method", required=True, metavar="NAME", help=_METHODS)
    add_flag(parser, "--algorithms", nargs="+", metavar="NAME", help="only runs of these (all)")
    add_flag(parser, "--together", action="store_true", help="average runs of different "
             "algorithms with each other (each algorithm by itself)")  # fmt: skip
    add_data_dir_flag(parser)
    add_flag(parser, "--dataset", help="where the runs' own images lie now: folder:PATH or a YAML "
             "file")  # fmt: skip
    add_flag(parser, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_plugins_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints a line for each average; returns the exit status.

    Raises:
        UserError: the folder holds no runs that can be averaged so.
    """
    from domainbed.config.run_fields import RunOptions
    from domainbed.core.plugins import import_plugins
    from domainbed.sweeps.averaging import average_runs

    import_plugins(args.plugins)
    machine = RunOptions(data_dir=args.data_dir, device=args.device)
    for averaged in average_runs(
        args.folder, args.method, args.algorithms, args.together, machine, args.dataset
    ):
        print(averaged.describe(), flush=True)
    return 0
