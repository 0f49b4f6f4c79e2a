"""`domainbed top-hparams`: the best hyper-parameters of an algorithm on a test domain."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from domainbed.cli.common import add_flag
from domainbed.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from domainbed.selection import SelectionMethod


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `domainbed top-hparams` and scripts/list_top_hparams.py."""
    add_flag(parser, "--input_dir", required=True, metavar="FOLDER", help="sweep or run folder")
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument("--algorithm", required=True, metavar="NAME")
    add_flag(parser, "--test_env", required=True, type=int, metavar="N", help="number of a domain")
    parser.add_argument(
        "--selection", nargs="+", metavar="NAME", help="selection methods, by short name (all)"
    )
    parser.add_argument("--top", type=int, metavar="N", help="only the best N of each trial (all)")


def main(args: argparse.Namespace) -> int:
    """Prints, for each selection method and trial, the hparams seeds from best to worst.

    Raises:
        UserError: a folder or a record is wrong, or there are no records of what is asked for.
    """
    from domainbed.cli.collect import show_progress
    from domainbed.reporting import load_records
    from domainbed.selection import SELECTION_METHODS

    if args.top is not None and args.top < 1:
        raise UserError(f"--top {args.top} lists nothing: give a number from 1 on")
    methods = [SELECTION_METHODS[name] for name in args.selection or SELECTION_METHODS]
    records = load_records(args.input_dir, progress=show_progress)
    print(f"Total records: {len(records)}")
    of_cell = _records_of_cell(records, args.dataset, args.algorithm, args.test_env)
    for method in methods:
        print("\n".join(["", f"Model selection: {method.title}"]))
        print("\n".join(ranking(of_cell, method, args.test_env, args.top)))
    return 0


def ranking(
    records: pd.DataFrame, method: SelectionMethod, test_env: int, top: int | None = None
) -> list[str]:
    """The lines of one method's list: for each trial the best `top` hparams seeds (None: all)."""
    ranked = method.rank(records)
    ranked = ranked[ranked["test_env"] == test_env]
    lines = []
    for trial, rows in ranked.groupby("trial_seed"):
        lines.append(f"trial_seed: {trial}")
        for choice in rows.head(top if top is not None else len(rows)).to_dict("records"):
            lines += [f"\t{line}" for line in _choice_lines(records, method, choice)]
    return lines or ["no result: `domainbed collect --explain` says which runs are missing"]


def _records_of_cell(
    records: pd.DataFrame, dataset: str, algorithm: str, test_env: int
) -> pd.DataFrame:
    for column, value in (("dataset", dataset), ("algorithm", algorithm)):
        known = list(dict.fromkeys(records[column]))
        if value not in known:
            raise UserError(f"no records of --{column} {value}: there are {', '.join(known)}")
        records = records[records[column] == value]
    tested = [test_env in envs for envs in records["test_envs"]]
    if not any(tested):
        known = sorted({env for envs in records["test_envs"] for env in envs})
        raise UserError(f"no records with --test_env {test_env}: there are {known}")
    return records[tested]


def _choice_lines(
    records: pd.DataFrame, method: SelectionMethod, choice: dict[Any, Any]
) -> list[str]:
    of_choice = records[
        (records["trial_seed"] == choice["trial_seed"])
        & (records["hparams_seed"] == choice["hparams_seed"])
    ]
    used = of_choice[of_choice["test_envs"].map(len) <= (2 if method.needs_pairs else 1)]
    # The run on the single test domain is the one whose accuracy is reported.
    single = used[used["test_envs"].map(len) == 1]
    lines = [
        f"val_acc: {choice['val_acc']:.6f}, test_acc: {choice['test_acc']:.6f}, "
        f"step: {choice['step']}, hparams_seed: {choice['hparams_seed']}",
        "\thparams:",
    ]
    lines += [f"\t\t{key}: {value}" for key, value in sorted(single.iloc[0]["hparams"].items())]
    return [*lines, "\toutput_dirs:", *(f"\t\t{folder}" for folder in used["folder"].unique())]
