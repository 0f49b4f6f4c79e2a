"""Commands that print what records say: collect, compare, errors, top-hparams, published."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from domainbed.cli.common import (
    BASELINE,
    JUDGES,
    Argument,
    Parser,
    add_shared,
    argument,
    command,
    tell,
)
from domainbed.config.baselines import PREFIX
from domainbed.core.files import write_text
from domainbed.core.names import key_suffix, order_algorithms
from domainbed.core.text_table import csv_text, json_text, over_progress
from domainbed.errors import UserError
from domainbed.reporting import (
    Report,
    build_report,
    comparison,
    explain,
    load_records,
    only,
    planned_gaps,
    planned_selection,
)
from domainbed.reporting import comparison_sections as sections
from domainbed.reporting.explain import by_folder
from domainbed.reporting.misclassified import error_sections, misclassified
from domainbed.reporting.published import find_values, published_sections
from domainbed.reporting.published.agreement import agreement, agreement_sections
from domainbed.reporting.released import beside_released
from domainbed.reporting.render import renderer, styled
from domainbed.reporting.section import LATEX_DOCUMENT, Section, section_renderer
from domainbed.reporting.single_source import count_single_source, single_source_report
from domainbed.reporting.statistics import UNITS
from domainbed.reporting.tables import Style
from domainbed.runs.records import Records
from domainbed.selection import PUBLISHED_METHODS, SELECTION_METHODS, SelectionMethod
from domainbed.selection.judging import judged_alike

_TOP = 20
_BASELINES = "baselines"


# ---- what several commands share ----


def add_style(parser: Parser) -> None:
    """Declares what `style_of` reads."""
    add_shared(
        parser.add_argument_group("style of tables"),
        argument(
            "--order",
            metavar="NAME",
            default="table",
            help="order of rows: table (default), given (as in --algorithms and --datasets), mean "
            "(the best average first)",
        ),
        argument("--domains", nargs="+", metavar="NAME", help="domains to show first"),
        argument(
            "--decimals",
            type=int,
            metavar="N",
            help="decimals of numbers (default: 1; other metrics than percentages get four digits)",
        ),
        argument(
            "--spread",
            metavar="NAME",
            default="se",
            help="after +/-: se, the standard error (default), ci95, half a 95 %% interval, none",
        ),
        argument(
            "--underline_second",
            action="store_true",
            help="underline the second best of each column (not in plain text)",
        ),
    )


def style_of(args: argparse.Namespace) -> Style:
    """What `add_style` and `add_filters` were given.

    Raises:
        UserError: a value is unknown.
    """

    return Style(
        *(args.decimals, args.spread, args.underline_second, args.order),
        *(args.algorithms or (), args.datasets or (), args.domains or ()),
    )


def show_progress(done: int, total: int) -> None:
    """A line on stderr that counts the run folders read, if somebody is watching."""
    if not sys.stderr.isatty() or (done % 100 and done < total):
        return
    line = f"reading runs: {done} of {total}" if done < total else ""
    print(over_progress(line), end="", file=sys.stderr, flush=True)


def printed(text: str, args: argparse.Namespace) -> None:
    """Prints a text, or writes it to --output; with --document as a document.

    Raises:
        UserError: there are documents of another format only, or the file cannot be written.
    """
    if args.document and args.format != "latex":
        raise UserError(f"--document is for --format latex, not {args.format}: leave it out")
    write_output(LATEX_DOCUMENT % text if args.document else text, args.output)


def write_output(text: str, output: str | None) -> None:
    """Prints `text`, or writes it to the file `output`.

    Raises:
        UserError: the file cannot be written.
    """
    if output is None:
        sys.stdout.write(text)
        return
    try:
        write_text(Path(output), text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write --output {output!r}: {reason}") from error


# ---- collect ----


OF_TABLES: tuple[Argument, ...] = (
    "--datasets",
    "--algorithms",
    "--selection",
    *JUDGES,
    "--format",
    "--document",
    "--output",
    "--plugins",
    add_style,
    argument(
        "--by_folder",
        action="store_true",
        help="one row per algorithm and folder, instead of all folders together",
    ),
    argument(
        "--single_source",
        action="store_true",
        help="tables of runs that train on a single domain",
    ),
    argument(
        "--explain", action="store_true", help="say which runs incomplete cells lack, and why"
    ),
)
"""What `print_tables` reads, besides the folders."""


def print_tables(args: argparse.Namespace, notes: Sequence[str] = ()) -> int:
    """Select models and print the results tables of sweeps."""
    for flag in ("by_folder", "single_source"):
        if args.explain and getattr(args, flag):
            raise UserError(f"--explain explains the usual tables: give it without --{flag}")
    render = renderer(args.format, args.output)
    style = style_of(args)
    report = styled(_report(args, load_records(args.folders, progress=show_progress)), style)
    text = render(report)
    reasons = [*notes, *(explain(report, args.folders) if args.explain else ())]
    if args.format in _AS_COMMENT:
        text += "".join(_AS_COMMENT[args.format].format(line).rstrip() + "\n" for line in reasons)
    elif reasons:  # a CSV or JSON file with more lines below would be damaged
        print("\n".join(reasons), file=sys.stderr)
    printed(text, args)
    return 0


collect = command("folders", *OF_TABLES)(print_tables)


def _report(args: argparse.Namespace, records: Records) -> Report:
    folders, gaps = args.folders, planned_gaps(args.folders)
    judges = {"metric": args.metric, "selection_metric": args.selection_metric}
    records = only(records, args.datasets, args.algorithms)
    if args.by_folder:
        records, gaps = by_folder(records, folders)
    if args.single_source:
        return single_source_report(records, args.selection, **judges)
    if count := count_single_source(records):
        tell(
            f"warning: {count} runs train on one domain alone and are in no table: --single_source "
            "makes theirs"
        )
    selection = args.selection or planned_selection(folders)
    report = build_report(records, selection, gaps=gaps, **judges)
    return replace(report, datasets=args.datasets, algorithms=args.algorithms)


_AS_COMMENT = {"text": "{}", "markdown": "    {}", "latex": "% {}"}


# ---- compare ----


@command(
    "folders",
    "--datasets",
    "--algorithms",
    "--selection",
    *JUDGES,
    "--baseline",
    argument(
        "--with",
        dest="paper",
        metavar="PAPER",
        help="put the tables beside a paper's: fishr-2022, domainbed-2020, miro-2022, …; "
        "baselines, or baseline:NAME: released runs with the same settings",
    ),
    argument(
        "--unit",
        choices=UNITS,
        help="what counts as one observation in wins and tests (default: trial; for ranks domain)",
    ),
    argument(
        "--rope",
        type=float,
        metavar="POINTS",
        help="also test whether differences are within this many points, or this much",
    ),
    "--format",
    "--document",
    "--output",
    "--plugins",
)
def compare(args: argparse.Namespace) -> int:
    """Compare algorithms with a baseline, or a sweep's tables with a paper's."""

    render = section_renderer(args.format, args.output)
    released = args.paper == _BASELINES or str(args.paper).startswith(PREFIX)
    of_baseline = {"baseline": args.baseline, "unit": args.unit, "rope": args.rope}
    for name, value in of_baseline.items():
        if args.paper and not released and value is not None:
            raise UserError(f"--{name} {value} compares algorithms, and --with a paper: give one")
    records = load_records(args.folders, progress=show_progress)
    selection = args.selection or planned_selection(args.folders)
    if released:
        name = "" if args.paper == _BASELINES else args.paper.removeprefix(PREFIX)
        first = order_algorithms(records.runs["algorithm"])[0]
        records, notes = beside_released(records, name)
        yours = f"{first} (yours)"
        args.baseline = args.baseline or (yours if yours in {*records.runs["algorithm"]} else first)
        sections = _comparisons(args, records, selection)
        sections[0].notes.extend(notes)
    elif args.paper:
        report = build_report(
            *(records, selection, args.datasets, args.algorithms),
            metric=args.metric,
            selection_metric=args.selection_metric,
        )
        sections = agreement_sections(agreement(report, args.paper), args.paper)
    else:
        sections = _comparisons(args, records, selection)
    printed(render(sections), args)
    return 0


def _comparisons(
    args: argparse.Namespace, records: Records, selection: Sequence[str] | None
) -> list[Section]:

    baseline, unit = args.baseline or BASELINE, args.unit or UNITS[0]
    algorithms = args.algorithms and list(dict.fromkeys([baseline, *args.algorithms]))
    records = only(records, args.datasets, algorithms)
    records = judged_alike(records, args.metric, args.selection_metric)
    judge = comparison.unit_of(records, comparison.chosen_values(records, selection))
    found = comparison.differences(records, selection, baseline, unit, args.rope)
    ranked = args.unit or "domain"
    ranks = comparison.critical_differences(records, selection, ranked)
    first = [
        *sections.difference_sections(found, unit, args.rope, judge),
        *sections.rank_sections(ranks, ranked),
    ]
    report = build_report(
        records, selection, metric=records.metric, selection_metric=records.selection_metric
    )
    more = (
        (sections.gap_section, comparison.selection_gap(records)),
        (sections.tuning_section, comparison.tuning_gain(records, selection)),
        (sections.expected_section, comparison.expected_best(records, selection)),
        (sections.worst_section, comparison.worst_domains(report)),
        (sections.line_section, comparison.accuracy_on_the_line(records)),
    )
    return first + [section(frame, judge) for section, frame in more if len(frame)]


# ---- errors ----


@command(
    "folders",
    "--datasets",
    "--output",
    "--plugins",
    argument("--algorithms", nargs="+", required=True, metavar="NAME", help="two or more"),
    argument(
        "--selection",
        metavar="NAME",
        help="selection method, by short name (default: the first that the sweep was planned for)",
    ),
    "--selection_metric",
    argument(
        "--top",
        type=int,
        default=_TOP,
        metavar="N",
        help=f"only the first N images of each list (default: {_TOP})",
    ),
    argument(
        "--format",
        choices=("text", "csv"),
        default="text",
        help="text (default), or csv: every image, whoever gets it wrong",
    ),
)
def errors(args: argparse.Namespace) -> int:
    """List the images of the test domains that all, or only one, of several algorithms get wrong.

    The runs are those that the selection method chooses, trained with --save_predictions.
    """
    if args.top < 1:
        raise UserError(f"--top {args.top} lists nothing: give a number from 1 on")

    records = load_records(args.folders, progress=show_progress)
    planned = planned_selection(args.folders) or list(SELECTION_METHODS)
    method = SELECTION_METHODS[args.selection or planned[0]]
    records = only(records, args.datasets, args.algorithms)
    records = judged_alike(records, selection_metric=args.selection_metric)
    found = misclassified(records, args.algorithms, method)
    if args.format == "csv":
        write_output(csv_text(found.images), args.output)
        return 0
    lines = [f"Model selection: {method.title}; images of the in-split of the test domain"]
    render = section_renderer(args.format, args.output)
    write_output(render(error_sections(found, args.top), lines), args.output)
    return 0


# ---- top-hparams ----


@command(
    argument("--input_dir", required=True, metavar="FOLDER", help="sweep or run folder"),
    argument("--dataset", required=True, metavar="NAME"),
    argument("--algorithm", required=True, metavar="NAME"),
    argument("--test_env", required=True, type=int, metavar="N", help="number of the test domain"),
    argument(
        "--selection",
        nargs="+",
        metavar="NAME",
        help="selection methods, by short name (default: the published ones)",
    ),
    *JUDGES,
    argument("--top", type=int, metavar="N", help="only the best N of each trial (default: all)"),
    argument("--format", choices=("text", "json", "csv"), default="text", help="default: text"),
    "--plugins",
)
def top_hparams(args: argparse.Namespace) -> int:
    """List the best hyper-parameters of an algorithm on a test domain.

    For each selection method and trial, the hparams seeds from best to worst.
    """

    if args.top is not None and args.top < 1:
        raise UserError(f"--top {args.top} lists nothing: give a number from 1 on")
    names = dict.fromkeys(args.selection or PUBLISHED_METHODS)
    methods = [SELECTION_METHODS[name] for name in names]
    records = load_records(args.input_dir, progress=show_progress)
    of_cell = _records_of_cell(records, args.dataset, args.algorithm, args.test_env)
    of_cell = judged_alike(of_cell, args.metric, args.selection_metric)
    choices = [
        choice for each in methods for choice in ranking(of_cell, each, args.test_env, args.top)
    ]
    if args.format == "json":
        sys.stdout.write(json_text(choices))
        return 0
    columns = ["selection", "trial_seed", "rank", *_numbers(of_cell), *_AS_JSON]
    table = pd.DataFrame(choices, columns=columns)
    table[_AS_JSON] = table[_AS_JSON].map(partial(json.dumps, sort_keys=True))
    if args.format == "csv":
        sys.stdout.write(csv_text(table))
        return 0
    sections = [_ranked(each, table[table["selection"] == each.name]) for each in methods]
    sys.stdout.write(section_renderer("text")(sections, [f"Total records: {len(records)}"]))
    return 0


def ranking(
    records: Records, method: SelectionMethod, test_env: int, top: int | None = None
) -> list[dict[str, Any]]:
    """One method's choices, trial by trial the best `top` hparams seeds from best to worst.

    Each has `selection`, `trial_seed`, `rank` (1 is best), `hparams_seed`, `step`, `val_acc`,
    `test_acc` (or after val and test another metric's name), `hparams`, and the `output_dirs` of
    the runs that it rests on.
    """
    ranked = method.rank(records)
    ranked = ranked[ranked["test_env"] == test_env]
    return [
        _choice(records, method, rank, row)
        for _, rows in ranked.groupby("trial_seed")
        for rank, row in enumerate(rows[:top].to_dict("records"), start=1)
    ]


def _choice(
    records: Records, method: SelectionMethod, rank: int, score: dict[Any, Any]
) -> dict[str, Any]:
    runs = records.runs
    runs = runs[
        (runs["trial_seed"] == score["trial_seed"])
        & (runs["hparams_seed"] == score["hparams_seed"])
        & runs["test_envs"].map(lambda envs: method.uses(envs, score["test_env"]))
    ]
    # The run on the single test domain is the one that is reported.
    single = runs[runs["test_envs"].map(len) == 1].iloc[0]
    return {
        "selection": method.name,
        "trial_seed": score["trial_seed"],
        "rank": rank,
        **dict(zip(_numbers(records), (score[name] for name in _SCORES))),
        "hparams": single["hparams"],
        "output_dirs": list(dict.fromkeys(runs["folder"])),
    }


def _records_of_cell(records: Records, dataset: str, algorithm: str, test_env: int) -> Records:
    records = only(records, [dataset], [algorithm])
    test_envs = records.runs["test_envs"]
    known_envs = sorted({env for envs in test_envs for env in envs})
    if test_env not in known_envs:
        raise UserError(f"no records with --test_env {test_env}: there are {known_envs}")
    return records.only([test_env in envs for envs in test_envs])


_SCORES = ("hparams_seed", "step", "val", "test")
_AS_JSON = ["hparams", "output_dirs"]


def _numbers(records: Records) -> list[str]:
    """What a ranking calls `_SCORES`: val_acc and test_acc of accuracy."""
    judges = key_suffix(records.selection_metric), key_suffix(records.metric)
    return ["hparams_seed", "step", f"val_{judges[0]}", f"test_{judges[1]}"]


def _ranked(method: SelectionMethod, table: pd.DataFrame) -> Section:
    """The choices of one method; their numbers have six decimals."""
    texts = table.drop(columns="selection").map(
        lambda value: f"{value:.6f}" if isinstance(value, float) else str(value)
    )
    notes = ["validations compare within a trial only"]
    if table.empty:
        notes = ["no result: `domainbed collect --explain` says which runs are missing"]
    title = f"Model selection: {method.title}"
    return Section("ranking", title, list(texts), texts.to_numpy().tolist(), notes, table)


# ---- published ----


@command(
    argument(
        "papers",
        nargs="*",
        metavar="PAPER",
        help="fishr-2022, domainbed-2020, miro-2022, … (default: all)",
    ),
    argument(
        "--datasets",
        "--dataset",
        nargs="+",
        metavar="NAME",
        help="only these datasets; Avg: the averages over all",
    ),
    argument("--selection", nargs="+", metavar="NAME", help="only these methods"),
    "--algorithms",
    "--format",
    "--plugins",
)
def published(args: argparse.Namespace) -> int:
    """Print the numbers that papers print."""

    render = section_renderer(args.format)
    values = find_values(args.papers or None, args.selection, args.datasets, args.algorithms)
    sys.stdout.write(render(published_sections(values)))
    return 0
