"""Launch, watch and repair a sweep, with DomainBed's flags.

There is no --seed: every run's seed follows from what defines the run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from domainbed.cli import sweep
from domainbed.cli.common import add_flag, run_script
from domainbed.errors import UserError
from domainbed.names import DATASET_DOMAINS

COMMANDS = ("launch", "delete_incomplete", "status", "retry")
PUBLISHED = [name for name in DATASET_DOMAINS if "Digits" not in name]
LAUNCHERS = {"multi_gpu": "local"}  # DomainBed's names, where they differ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares DomainBed's arguments."""
    parser.add_argument("command", choices=COMMANDS)
    add_flag(parser, "--datasets", nargs="+", default=PUBLISHED, help="the seven of the paper")
    add_flag(parser, "--algorithms", nargs="+", help="all that are registered")
    add_flag(parser, "--task", default="domain_generalization")
    add_flag(parser, "--n_hparams_from", type=int, default=0, help="the first hparams seed (0)")
    add_flag(parser, "--n_hparams", type=int, default=20, help="the one after the last (20)")
    add_flag(parser, "--n_trials_from", type=int, default=0, help="the first trial seed (0)")
    add_flag(parser, "--n_trials", type=int, default=3, help="the one after the last (3)")
    add_flag(parser, "--output_dir", required=True)
    add_flag(parser, "--data_dir", default="data")
    add_flag(parser, "--command_launcher", default="local", help="a registered launcher (local)")
    add_flag(parser, "--workers", type=int, help="processes of the launcher local")
    add_flag(parser, "--steps", type=int, help="updates per run (the dataset's)")
    add_flag(parser, "--hparams", help="fixed hyper-parameters, as JSON")
    add_flag(parser, "--holdout_fraction", type=float, default=0.2)
    add_flag(parser, "--single_test_envs", action="store_true", help="no pairs of test domains")
    add_flag(parser, "--skip_confirmation", action="store_true", help="do not ask")
    add_flag(parser, "--skip_model_save", action="store_true", help="do not keep the weights")
    add_flag(parser, "--dry_run", action="store_true", help="say what would be done")


def main(args: argparse.Namespace) -> int:
    """Does the command; returns the exit status.

    Raises:
        UserError: a flag or a folder is wrong.
    """
    if args.command == "delete_incomplete":
        return sweep.delete_incomplete(Path(args.output_dir), args.skip_confirmation)
    if args.command == "status":
        return sweep.show_status(args.output_dir, as_json=False)
    from domainbed.sweeps.config import load_config

    options = {} if args.workers is None else {"workers": args.workers}
    config = load_config(None, overrides(args), **options)
    return sweep.launch(config, args.command == "retry", args.dry_run, args.skip_confirmation)


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that DomainBed's flags stand for."""
    from domainbed.algorithms import ALGORITHMS
    from domainbed.selection import SELECTION_METHODS

    same = ("datasets", "task", "output_dir", "data_dir", "holdout_fraction", "skip_model_save")
    selection = [
        name
        for name, method in SELECTION_METHODS.items()
        if not (args.single_test_envs and method.needs_pairs)
    ]
    return {
        **{name: getattr(args, name) for name in same},
        "algorithms": args.algorithms or list(ALGORITHMS),
        "trials": _seeds("n_trials", args.n_trials_from, args.n_trials),
        "hparams_seeds": _seeds("n_hparams", args.n_hparams_from, args.n_hparams),
        "selection": selection,
        "steps": args.steps,
        "hparams": _json(args.hparams),
        "launcher": LAUNCHERS.get(args.command_launcher, args.command_launcher),
    }


def _seeds(name: str, first: int, end: int) -> list[int]:
    if not 0 <= first < end:
        raise UserError(
            f"--{name}_from {first} and --{name} {end} leave no seed: the first must be 0 or more "
            "and lie below the second"
        )
    return list(range(first, end))


def _json(text: str | None) -> dict[str, Any] | None:
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise UserError(
            f"--hparams {text!r} is no JSON ({error}): write '{{\"lr\": 0.001}}'"
        ) from error


if __name__ == "__main__":
    run_script(add_arguments, main, __doc__ or "")
