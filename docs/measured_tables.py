"""Puts the tables of sweeps into pages, as they were measured.

    python docs/measured_tables.py docs/laptop.md docs/averaging.md

In a page, what stands between these two lines is replaced by the first table that
`domainbed collect` makes of the folder with the flags, below a line on the runs that are in it:

    <!-- table of results/laptop --selection training-domain -->
    <!-- end of table -->

A folder that is not there leaves its place as it is.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from itertools import dropwhile, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from domainbed.cli import main as domainbed

PLACE = re.compile(r"(<!-- table of (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> None:
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(PLACE.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(place: re.Match[str]) -> str:
    begin, words, end = place.groups()
    folder, *flags = shlex.split(words)
    if not Path(folder).is_dir():
        print(f"{folder} is not there: its table stays as it is")
        return place.group()
    return f"{begin}\n{runs_of(Path(folder))}\n\n{table_of(folder, flags)}\n\n{end}"


def table_of(folder: str, flags: list[str]) -> str:
    """The lines of the first table."""
    with TemporaryDirectory() as place:
        file = Path(place, "tables.md")
        try:
            domainbed(["collect", folder, *flags, "--format", "markdown", "--output", str(file)])
        except SystemExit as exit_:
            if exit_.code:
                raise
        lines = file.read_text(encoding="utf-8").splitlines()
    from_first = dropwhile(lambda line: not line.startswith("|"), lines)
    return "\n".join(takewhile(lambda line: line.startswith("|"), from_first))


def runs_of(folder: Path) -> str:
    """How many runs there are, of what, and how long they took."""
    done = [file.parent for file in folder.glob("*/environment.json")]
    specs = [json.loads((run / "run.json").read_text(encoding="utf-8")) for run in done]
    facts = [json.loads((run / "environment.json").read_text(encoding="utf-8")) for run in done]
    counts = [
        (len({spec[name] for spec in specs}), what)
        for name, what in [("trial_seed", "trial"), ("hparams_seed", "choice")]
    ]
    trials, choices = (f"{n} {what}{'s' * (n > 1)}" for n, what in counts)
    minutes = sum(each["seconds"] for each in facts) / 60
    threads = max(each["threads"] for each in facts)
    return (
        f"From {len(done)} runs ({trials}, {choices} of hyper-parameters), {minutes:.0f} minutes "
        f"of training in all, each on {threads} thread{'s' * (threads > 1)}."
    )


if __name__ == "__main__":
    main()
