"""List the best hyper-parameters of an algorithm on a test domain."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from domainbed.cli.common import add_flag
from domainbed.core.text_table import text_table
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.runs.records import Records
    from domainbed.selection import SelectionMethod

Choice = dict[str, Any]


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
    parser.add_argument("--format", choices=list(_FORMATS), default="text", help="default: text")


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
    of_cell = _records_of_cell(records, args.dataset, args.algorithm, args.test_env)
    rankings = [(method, ranking(of_cell, method, args.test_env, args.top)) for method in methods]
    sys.stdout.write(_FORMATS[args.format](len(records), rankings))
    return 0


def ranking(
    records: Records, method: SelectionMethod, test_env: int, top: int | None = None
) -> list[Choice]:
    """One method's choices, trial by trial the best `top` hparams seeds from best to worst.

    Each has `selection`, `trial_seed`, `rank` (1 is best), `hparams_seed`, `step`, `val_acc`,
    `test_acc`, `hparams`, and the `output_dirs` of the runs that it rests on.
    """
    ranked = method.rank(records)
    ranked = ranked[ranked["test_env"] == test_env]
    return [
        _choice(records, method, rank, row)
        for _, rows in ranked.groupby("trial_seed")
        for rank, row in enumerate(rows[:top].to_dict("records"), start=1)
    ]


def _choice(records: Records, method: SelectionMethod, rank: int, score: dict[Any, Any]) -> Choice:
    runs = records.runs
    runs = runs[
        (runs["trial_seed"] == score["trial_seed"])
        & (runs["hparams_seed"] == score["hparams_seed"])
        & runs["test_envs"].map(lambda envs: method.uses(envs, score["test_env"]))
    ]
    # The run on the single test domain is the one whose accuracy is reported.
    single = runs[runs["test_envs"].map(len) == 1].iloc[0]
    return {
        "selection": method.name,
        "trial_seed": score["trial_seed"],
        "rank": rank,
        **{name: score[name] for name in _NUMBERS},
        "hparams": single["hparams"],
        "output_dirs": list(dict.fromkeys(runs["folder"])),
    }


def _records_of_cell(records: Records, dataset: str, algorithm: str, test_env: int) -> Records:
    for column, value in (("dataset", dataset), ("algorithm", algorithm)):
        known = list(dict.fromkeys(records.runs[column]))
        if value not in known:
            raise UserError(f"no records of --{column} {value}: there are {', '.join(known)}")
        records = records.only(records.runs[column] == value)
    test_envs = records.runs["test_envs"]
    known_envs = sorted({env for envs in test_envs for env in envs})
    if test_env not in known_envs:
        raise UserError(f"no records with --test_env {test_env}: there are {known_envs}")
    return records.only([test_env in envs for envs in test_envs])


Rankings = Sequence[tuple["SelectionMethod", list[Choice]]]


def _to_text(total: int, rankings: Rankings) -> str:
    lines = [f"Total records: {total}"]
    for method, choices in rankings:
        lines += ["", f"Model selection: {method.title}"]
        lines += [*_best(choices), *_list(choices)] if choices else [_NO_RESULT]
    return "\n".join(lines) + "\n"


_NO_RESULT = "no result: `domainbed collect --explain` says which runs are missing"


def _best(choices: Iterable[Choice]) -> list[str]:
    """The best choice of each trial, as a table; validation accuracies compare within a trial."""
    columns = ("trial_seed", *_NUMBERS, "hparams")
    rows = [[_shown(choice[name]) for name in columns] for choice in choices if choice["rank"] == 1]
    return ["best of each trial:", *text_table([columns, *rows], right=range(5), indent="  ")]


def _list(choices: Iterable[Choice]) -> list[str]:
    lines = []
    for choice in choices:
        lines += [f"trial_seed: {choice['trial_seed']}"] * (choice["rank"] == 1)
        numbers = ("val_acc", "test_acc", "step", "hparams_seed")
        lines.append("\t" + ", ".join(f"{name}: {_shown(choice[name])}" for name in numbers))
        lines.append(f"\t\thparams: {_shown(choice['hparams'])}")
        lines += [f"\t\toutput_dir: {folder}" for folder in choice["output_dirs"]]
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _to_json(_: int, rankings: Rankings) -> str:
    return json.dumps([choice for _, choices in rankings for choice in choices], indent=2) + "\n"


def _to_csv(_: int, rankings: Rankings) -> str:
    """One line per choice; hparams and output_dirs as JSON."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for _method, choices in rankings:
        for choice in choices:
            as_json = {name: json.dumps(choice[name], sort_keys=True) for name in _AS_JSON}
            writer.writerow({**choice, **as_json})
    return text.getvalue()


_NUMBERS = ("hparams_seed", "step", "val_acc", "test_acc")
_AS_JSON = ("hparams", "output_dirs")
_COLUMNS = ("selection", "trial_seed", "rank", *_NUMBERS, *_AS_JSON)
_FORMATS = {"text": _to_text, "json": _to_json, "csv": _to_csv}
