"""Puts the tables of sweeps into pages, as they were measured.

    python docs/measured_tables.py README.md docs/laptop.md docs/averaging.md

In a page, what stands between these two lines is replaced by the first table that
`domainbed collect` makes of the sweep with the flags, below a line on the runs that are in it:

    <!-- table of baseline:pacs-features --selection training-domain -->
    <!-- end of table -->

A sweep that is not there leaves its place as it is.
"""

from __future__ import annotations

import re
import shlex
import sys
from itertools import dropwhile, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from domainbed.cli import main as domainbed
from domainbed.core.names import average_in
from domainbed.core.text_table import count
from domainbed.errors import UserError
from domainbed.runs.load import load_records

PLACE = re.compile(r"(<!-- table of (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> None:
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(PLACE.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(place: re.Match[str]) -> str:
    begin, words, end = place.groups()
    sweep, *flags = shlex.split(words)
    try:
        runs = load_records(sweep).runs
    except UserError as error:
        print(f"{error}: the table of {sweep} stays as it is")
        return place.group()
    if "--algorithms" in flags:
        runs = runs[runs["algorithm"].isin(flags)]
    if "leave-one-domain-out" not in flags:  # the only selection that reads pairs of test domains
        runs = runs[runs["test_envs"].map(len) < 2]
    return f"{begin}\n{count_of(runs)}\n\n{table_of(sweep, flags)}\n\n{end}"


def table_of(sweep: str, flags: list[str]) -> str:
    """The lines of the first table."""
    with TemporaryDirectory() as place:
        file = Path(place, "tables.md")
        try:
            domainbed(["collect", sweep, *flags, "--format", "markdown", "--output", str(file)])
        except SystemExit as exit_:
            if exit_.code:
                raise
        lines = file.read_text(encoding="utf-8").splitlines()
    from_first = dropwhile(lambda line: not line.startswith("|"), lines)
    return "\n".join(takewhile(lambda line: line.startswith("|"), from_first))


def count_of(runs: pd.DataFrame) -> str:
    """How many runs there are, of what; averages are no runs of their own."""
    runs = runs[[not average_in(name) for name in runs["algorithm"]]]
    trials, choices = (
        count(runs[name].nunique(), what)
        for name, what in [("trial_seed", "trial"), ("hparams_seed", "choice")]
    )
    return f"From {count(len(runs), 'run')} ({trials}, {choices} of hyper-parameters)."


if __name__ == "__main__":
    main()
