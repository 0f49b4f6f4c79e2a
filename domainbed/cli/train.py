"""Train one algorithm on one dataset, with one or two domains held out for testing.

A run that was interrupted goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from domainbed.cli.common import add_flag
from domainbed.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags; names and meanings are DomainBed's where it has them."""
    what = parser.add_argument_group("what to train")
    add_flag(what, "--dataset", default="ColoredDigits", help="a name of `domainbed list datasets`,"
             " folder:PATH, a YAML file, a .csv or .jsonl of images"
             " (default: %(default)s)")  # fmt: skip
    add_flag(what, "--algorithm", default="ERM", help="a name of `domainbed list algorithms`"
             " (default: %(default)s)")  # fmt: skip
    add_flag(what, "--test_envs", type=int, nargs="+", default=[0], metavar="DOMAIN",
             help="the domains held out, from 0 (default: 0)")  # fmt: skip
    add_flag(what, "--hparams", metavar="JSON", help="fixed hyper-parameters, "
             """such as '{"lr": 0.001}'""")  # fmt: skip
    add_flag(what, "--hparams_seed", type=int, default=0, help="0: the defaults; any other: a "
             "random draw (default: 0)")  # fmt: skip
    add_flag(what, "--trial_seed", type=int, default=0, help="decides the split (default: 0)")
    add_flag(what, "--seed", type=int, help="of everything else (default: derived from the run, "
             "as in a sweep)")  # fmt: skip
    add_flag(what, "--steps", type=int, help="updates (default: the dataset's)")
    add_flag(what, "--checkpoint_freq", type=int, help="updates between records (default: the "
             "dataset's)")  # fmt: skip
    add_flag(what, "--holdout_fraction", type=float, default=0.2, help="the out-split's share "
             "of a domain (default: 0.2)")  # fmt: skip
    add_flag(what, "--uda_holdout_fraction", type=float, default=0.0, help="share of a test "
             "domain's in-split given without labels (default: 0)")  # fmt: skip
    add_flag(what, "--task", default="domain_generalization",
             help="or domain_adaptation (default: %(default)s)")  # fmt: skip
    add_flag(what, "--precision", default="float32", help="float32 or bf16 (default: float32)")
    add_flag(what, "--shared_draws", action="store_true", help="the same random hyper-parameters "
             "in all trials (DomainBed draws anew)")  # fmt: skip
    add_flag(what, "--augment_validation", action="store_true", help="augment validation images "
             "of training domains, as DomainBed does")  # fmt: skip
    where = parser.add_argument_group("where and how")
    add_flag(where, "--data_dir", default="data", help="holds the datasets (default: data)")
    add_flag(where, "--output_dir", default="train_output", help="the run's folder "
             "(default: train_output)")  # fmt: skip
    add_flag(where, "--device", help="cpu, cuda, mps (default: the best there is)")
    add_flag(where, "--num_workers", type=int, help="processes that read images, in all "
             "(default: one per core, at most 8)")  # fmt: skip
    add_flag(where, "--eval_splits", choices=("needed", "all"), default="needed", help="all: also "
             "the training domains' in-splits at every record")  # fmt: skip
    add_flag(where, "--skip_model_save", action="store_true", help="do not keep the weights")
    add_flag(where, "--save_model_every_checkpoint", action="store_true",
             help="keep the weights of every record")  # fmt: skip
    add_flag(where, "--plugins", nargs="+", default=[], metavar="MODULE", help="modules or .py "
             "files to import first, which register more names")  # fmt: skip


_SPEC_FLAGS = (
    *("hparams_seed", "trial_seed", "seed", "steps", "checkpoint_freq", "holdout_fraction"),
    *("uda_holdout_fraction", "task", "precision", "shared_draws", "augment_validation"),
)
_OPTION_FLAGS = (
    *("data_dir", "device", "num_workers", "eval_splits"),
    *("skip_model_save", "save_model_every_checkpoint"),
)


def main(args: argparse.Namespace) -> int:
    """Trains, and says where the results lie.

    Raises:
        UserError: a flag's value is wrong, or the output folder holds another run.
    """
    hparams = parse_hparams(args.hparams)
    if not args.output_dir:
        raise UserError("--output_dir is empty: name a folder")
    if args.num_workers is not None and args.num_workers < 0:
        raise UserError(f"--num_workers is {args.num_workers}: expected 0 or more")
    # Bad JSON should be told at once, not after PyTorch's import.
    from domainbed.plugins import import_plugins
    from domainbed.run_folder import DONE, Busy, RunFolder
    from domainbed.spec import RunSpec
    from domainbed.training.trainer import RunOptions, run

    import_plugins(args.plugins)
    spec = RunSpec.create(
        args.dataset,
        args.algorithm,
        args.test_envs,
        hparams=hparams,
        **{name: getattr(args, name) for name in _SPEC_FLAGS},
    )
    options = RunOptions(echo=True, **{name: getattr(args, name) for name in _OPTION_FLAGS})
    folder = RunFolder(args.output_dir)
    was_done = folder.state() == DONE
    try:
        run(spec, folder, options)
    except Busy as error:
        raise UserError(f"{error}: wait for it, or choose another --output_dir") from None
    except KeyboardInterrupt:
        print(f"\nInterrupted; the same command goes on from {folder.path}", file=sys.stderr)
        return 130
    print(f"{'Was finished before' if was_done else 'Finished'}: {folder.results}")
    return 0


def parse_hparams(text: str | None) -> dict[str, Any]:
    """The JSON object of --hparams.

    Raises:
        UserError: it is not a JSON object.
    """
    try:
        hparams = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"--hparams {text!r} is not JSON ({error})") from None
    if not isinstance(hparams, dict):
        raise UserError(f"--hparams {text!r}: expected a JSON object such as '{{\"lr\": 0.001}}'")
    return hparams
