"""Commands that compute what a paper prints: reproduce, irm-colored-mnist."""

import argparse
import sys

from domainbed.cli.common import argument, command, execute
from domainbed.cli.launching import add_launcher_flags, launch_sweep, launcher_flags
from domainbed.core.flags import add_flags, read_flags
from domainbed.core.settings import load
from domainbed.errors import UserError, in_shell
from domainbed.experiments.irm_colored_mnist.settings import Config
from domainbed.runs.states import DONE
from domainbed.sweeps.config import SweepConfig

SCALES = ("paper", "small")
_FIELDS = (
    *("data_dir", "output_dir", "device", "num_workers", "launcher"),
    *("plugins", "plugins_changed"),
)


@command(
    argument("paper", metavar="PAPER", help="fishr-2022, domainbed-2020, miro-2022, …"),
    argument("--dataset", required=True, metavar="NAME", help="a dataset in the paper"),
    argument(
        "--scale",
        choices=SCALES,
        default=SCALES[0],
        help="small: minutes on MNIST, without the paper's numbers",
    ),
    argument("--algorithms", nargs="+", metavar="NAME", help="only these algorithms of the paper"),
    argument("--selection", nargs="+", metavar="NAME", help="only these methods"),
    lambda parser: add_flags(parser, SweepConfig, only=_FIELDS),
    argument(
        "--dry_run", action="store_true", help="say what would be done, and how long it takes"
    ),
    "--skip_confirmation",
    add_launcher_flags,
)
def reproduce(args: argparse.Namespace) -> int:
    """Compute a paper's table and print it next to the paper's.

    Estimates the time and says what is left out, does the runs that are not done, prints their
    tables, and compares them with the paper's.
    """
    from domainbed.reporting.published import get_source
    from domainbed.sweeps.launch import prepare
    from domainbed.sweeps.outlook import measured_costs, todo_line
    from domainbed.sweeps.reproduction import left_out, reproduction
    from domainbed.sweeps.status import status_lines, status_of

    config = reproduction(
        *(args.paper, args.dataset, args.scale, args.algorithms, args.selection),
        overrides=read_flags(args, SweepConfig, only=_FIELDS),
        **launcher_flags(args),
    )
    source = get_source(args.paper)
    title = f"{args.dataset} of {source.title} ({source.url})"
    print("\n".join([title, *left_out(config, source)]))
    planned = prepare(config)
    obstacles = planned.obstacles()
    if planned.todo and not obstacles:
        print(todo_line(planned, planned.costs() or measured_costs(planned)), flush=True)
    if args.dry_run:
        warnings = [f"warning: {line}" for line in obstacles]
        print("\n".join([*status_lines(status_of(planned.store, planned.planned)), *warnings]))
        return 0
    if obstacles and planned.launcher.blocking:
        raise UserError(obstacles[0])
    status = launch_sweep(config, wait=True, skip_confirmation=args.skip_confirmation)
    if status in (0, 1) and DONE in planned.store.states(planned.runs).values():
        _tell(config, args.paper)
    return status


def _tell(config: SweepConfig, paper: str) -> None:
    from domainbed.cli.tables import collect, compare

    execute(collect, [config.output_dir])
    execute(compare, [config.output_dir, "--with", paper])
    print(
        f"`domainbed compare {in_shell(config.output_dir)}` compares the algorithms with each "
        "other."
    )


@command(
    argument("config", nargs="?", metavar="CONFIG", help="a YAML file with the fields"),
    argument(
        "--format",
        choices=("text", "markdown", "latex", "csv", "json"),
        default="text",
        help="format of the table (default: text)",
    ),
    lambda parser: add_flags(
        parser.add_argument_group("fields of the config", "each overrides the file's value"),
        Config,
    ),
)
def irm_colored_mnist(args: argparse.Namespace) -> int:
    """Colored MNIST in the setup of IRM, table 2 of the Fishr paper.

    Computes the restarts that are missing, several at a time, and prints the table of all. The
    next call starts an interrupted restart again.
    """
    config = load(Config, args.config, read_flags(args, Config))
    # What is wrong with the config should be told at once, not after PyTorch's import.
    from domainbed.experiments.irm_colored_mnist import results

    try:
        errors = results.compute(config)
    except KeyboardInterrupt:
        total = len(results.planned(config))
        done = total - len(results.missing(config))
        print(
            f"\nstopped: {done} of {total} restarts are done; the same command computes the others",
            file=sys.stderr,
        )
        return 130
    sys.stdout.write(results.to_text(results.read_results(config), args.format))
    print("".join(f"{error}\n" for error in errors), end="", file=sys.stderr)
    return 1 if errors else 0
