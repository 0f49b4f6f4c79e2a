"""Launch, watch and repair a sweep, with DomainBed's flags."""

from __future__ import annotations

import argparse
from typing import Any

from domainbed.cli.common import Parser, Run, add_shared, execute, run_script, tell
from domainbed.cli.launching import add_launcher_flags, launch_sweep, launcher_flags
from domainbed.cli.sweep import delete_incomplete
from domainbed.core.flags import add_flags, read_flags
from domainbed.core.names import DATASET_DOMAINS, DOMAINBED_ALGORITHMS, SUBPOPULATIONS
from domainbed.errors import UserError
from domainbed.sweeps.config import SweepConfig, load_config
from domainbed.sweeps.status import status_lines, status_of
from domainbed.sweeps.store import Store

COMMANDS = ("launch", "delete_incomplete", "status", "retry")
_OWN = ("ColoredDigits", "RotatedDigits", "Debug28", "Debug224", *SUBPOPULATIONS, "NICOpp")
DATASETS = [n for n in DATASET_DOMAINS if n not in _OWN and not n.startswith("Penguins")]
LAUNCHERS = {"multi_gpu": "local", "dummy": "debug"}  # DomainBed's names, where they differ
SAME = (  # DomainBed's flags that are fields of a config
    *("datasets", "algorithms", "task", "data_dir", "steps", "hparams"),
    *("holdout_fraction", "skip_model_save"),
)


def sweep(parser: Parser) -> Run:
    """Launch, watch and repair a sweep, with DomainBed's flags.

    Without --datasets and --algorithms it has all of DomainBed's own.
    """
    parser.add_argument("command", choices=COMMANDS)
    add_flags(parser, SweepConfig, only=SAME)
    seeds = {"n_hparams": (20, "hparams seed"), "n_trials": (3, "trial seed")}
    for name, (end, what) in seeds.items():
        parser.add_argument(f"--{name}_from", type=int, default=0, help=f"the first {what} (0)")
        parser.add_argument(
            f"--{name}", type=int, default=end, help=f"the one after the last ({end})"
        )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument(
        "--command_launcher",
        default="local",
        help="a registered launcher (local), or dummy, which is the same as --dry_run",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="of no effect, as in DomainBed: each run's seed follows from itself",
    )
    parser.add_argument("--single_test_envs", action="store_true", help="no pairs of test domains")
    parser.add_argument("--dry_run", action="store_true", help="say what would be done")
    add_shared(parser, "--skip_confirmation")
    add_launcher_flags(parser)
    return _sweep


def _sweep(args: argparse.Namespace) -> int:
    if args.command == "delete_incomplete":
        flags = ["--skip_confirmation"] if args.skip_confirmation else []
        return execute(delete_incomplete, [args.output_dir, *flags])
    if args.command == "status":
        store = Store(args.output_dir)
        print("\n".join(status_lines(status_of(store, store.planned()))))
        return 0
    if args.seed is not None:
        tell("--seed has no effect, as in DomainBed: each run's seed follows from what defines it")
    config = load_config(None, overrides(args), **launcher_flags(args))
    return launch_sweep(
        config,
        retry=args.command == "retry",
        dry_run=args.dry_run or args.command_launcher == "dummy",
        skip_confirmation=args.skip_confirmation,
    )


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that DomainBed's flags stand for."""
    from domainbed.selection import PUBLISHED_METHODS, SELECTION_METHODS

    selection = [
        name
        for name in PUBLISHED_METHODS
        if not (args.single_test_envs and SELECTION_METHODS[name].needs_pairs)
    ]
    return {
        "datasets": DATASETS,
        "algorithms": list(DOMAINBED_ALGORITHMS),
        **read_flags(args, SweepConfig),
        "trials": _seeds("n_trials", args.n_trials_from, args.n_trials),
        "hparams_seeds": _seeds("n_hparams", args.n_hparams_from, args.n_hparams),
        "selection": selection,
        "launcher": LAUNCHERS.get(args.command_launcher, args.command_launcher),
    }


def _seeds(name: str, first: int, end: int) -> list[int]:
    if not 0 <= first < end:
        raise UserError(
            f"--{name}_from {first} and --{name} {end} leave no seed: the first must be 0 or more "
            "and lie below the second"
        )
    return list(range(first, end))


if __name__ == "__main__":
    run_script(sweep)
