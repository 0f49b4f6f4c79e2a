"""Launch, watch and repair a sweep, with DomainBed's flags.

There is no --seed: every run's seed follows from what defines the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from domainbed.cli.common import add_flag, run_script
from domainbed.cli.launcher_flags import add_launcher_flags, launcher_flags
from domainbed.cli.sweep.delete_incomplete import delete_incomplete
from domainbed.cli.sweep.launch import launch
from domainbed.cli.sweep.status import show_status
from domainbed.config.flags import add_flags, read_flags
from domainbed.core.names import DATASET_DOMAINS, DOMAINBED_ALGORITHMS
from domainbed.errors import UserError
from domainbed.sweeps.config import SweepConfig, load_config

COMMANDS = ("launch", "delete_incomplete", "status", "retry")
DATASETS = [n for n in DATASET_DOMAINS if "Digits" not in n and not n.startswith("Debug")]
LAUNCHERS = {"multi_gpu": "local"}  # DomainBed's names, where they differ
SAME = (  # DomainBed's flags that are fields of a config
    *("datasets", "algorithms", "task", "data_dir", "steps", "hparams"),
    *("holdout_fraction", "skip_model_save"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares DomainBed's arguments; without --datasets and --algorithms all of its own."""
    parser.add_argument("command", choices=COMMANDS)
    add_flags(parser, SweepConfig, only=SAME)
    add_flag(parser, "--n_hparams_from", type=int, default=0, help="the first hparams seed (0)")
    add_flag(parser, "--n_hparams", type=int, default=20, help="the one after the last (20)")
    add_flag(parser, "--n_trials_from", type=int, default=0, help="the first trial seed (0)")
    add_flag(parser, "--n_trials", type=int, default=3, help="the one after the last (3)")
    add_flag(parser, "--output_dir", required=True)
    add_flag(parser, "--command_launcher", default="local", help="a registered launcher (local)")
    add_launcher_flags(parser)
    add_flag(parser, "--single_test_envs", action="store_true", help="no pairs of test domains")
    add_flag(parser, "--skip_confirmation", action="store_true", help="do not ask")
    add_flag(parser, "--dry_run", action="store_true", help="say what would be done")


def main(args: argparse.Namespace) -> int:
    """Does the command; returns the exit status.

    Raises:
        UserError: a flag or a folder is wrong.
    """
    if args.command == "delete_incomplete":
        return delete_incomplete(Path(args.output_dir), args.skip_confirmation)
    if args.command == "status":
        return show_status(args.output_dir, as_json=False)
    config = load_config(None, overrides(args), **launcher_flags(args))
    return launch(
        config,
        retry=args.command == "retry",
        dry_run=args.dry_run,
        skip_confirmation=args.skip_confirmation,
    )


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that DomainBed's flags stand for."""
    from domainbed.selection import SELECTION_METHODS

    selection = [
        name
        for name, method in SELECTION_METHODS.items()
        if not (args.single_test_envs and method.needs_pairs)
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
    run_script(add_arguments, main, __doc__ or "")
