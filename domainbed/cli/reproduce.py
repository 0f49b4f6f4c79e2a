"""From nothing to a paper's numbers, and those of this machine beside them.

Says how long it will take and what it leaves out, does the sweep (what is done of it is not done
again), prints its tables, and compares them.
"""

from __future__ import annotations

import argparse

from domainbed.cli.common import add_flag
from domainbed.cli.launcher_flags import add_launcher_flags, launcher_flags
from domainbed.cli.sweep.common import add_skip_flag
from domainbed.cli.sweep.launch import launch
from domainbed.config.flags import add_flags, read_flags
from domainbed.errors import UserError
from domainbed.sweeps.config import SweepConfig

SCALES = ("paper", "small")
_FIELDS = ("data_dir", "output_dir", "device", "num_workers", "launcher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed reproduce`."""
    parser.add_argument("paper", metavar="PAPER", help="fishr-2022, domainbed-2020")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="one of the paper's")
    parser.add_argument("--scale", choices=SCALES, default=SCALES[0],
                        help="small: minutes on MNIST, not the paper's numbers")  # fmt: skip
    parser.add_argument("--algorithms", nargs="+", metavar="NAME", help="only these of the paper")
    parser.add_argument("--selection", nargs="+", metavar="NAME", help="only these methods")
    add_flags(parser, SweepConfig, only=_FIELDS)
    add_launcher_flags(parser)
    add_flag(parser, "--dry_run", action="store_true",
             help="say what would be done, and how long")  # fmt: skip
    add_skip_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Does it all; returns the exit status, which is 1 if a run failed.

    Raises:
        UserError: a name or a flag is wrong, or the data is not there.
    """
    from domainbed.reporting.published import get_source
    from domainbed.sweeps.launch import prepare
    from domainbed.sweeps.outlook import time_line
    from domainbed.sweeps.reproduction import left_out, reproduction
    from domainbed.sweeps.status import status_lines

    given = read_flags(args, SweepConfig)
    config = reproduction(
        *(args.paper, args.dataset, args.scale, args.algorithms, args.selection),
        overrides={name: value for name, value in given.items() if name in _FIELDS},
        **launcher_flags(args),
    )
    source = get_source(args.paper)
    title = f"{args.dataset} of {source.title} ({source.url})"
    print("\n".join([title, *left_out(config, source)]))
    planned = prepare(config)
    obstacles = planned.obstacles()
    if planned.todo and not obstacles:
        print(time_line(planned), flush=True)
    if args.dry_run:
        warnings = [f"warning: {line}" for line in obstacles]
        print("\n".join([*status_lines(planned.status()), *warnings]))
        return 0
    if obstacles and planned.blocking:
        raise UserError(obstacles[0])
    status = launch(config, wait=True, skip_confirmation=args.skip_confirmation)
    if status in (0, 1) and any(planned.store.root.glob("*/done")):
        _tell(config, args.paper)
    return status


def _tell(config: SweepConfig, paper: str) -> None:
    from domainbed.reporting import RENDERERS, build_report, load_records
    from domainbed.reporting.beside import beside_published
    from domainbed.reporting.render_comparison import to_text
    from domainbed.reporting.sections import beside_sections

    report = build_report(load_records(config.output_dir), config.selection)
    print(RENDERERS["text"](report))
    print(to_text(beside_sections(beside_published(report, paper), paper)))
    print(f"`domainbed compare {config.output_dir}` compares the algorithms with each other.")
