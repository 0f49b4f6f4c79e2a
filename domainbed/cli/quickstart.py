"""`domainbed quickstart`: the main job, in one command."""

import argparse

from domainbed.cli.common import command, execute
from domainbed.cli.report import report
from domainbed.cli.sweep import launch
from domainbed.cli.tables import collect

_FOLDER = "results/quickstart"


@command()
def quickstart(args: argparse.Namespace) -> int:
    """Sweep seven algorithms on digits that come with the package: tables, and a report.

    Everything is in results/quickstart, in the current folder. The same command again resumes what
    was interrupted.
    """
    for declare, words in (
        (launch, ["quickstart", "--output_dir", _FOLDER, "--skip_confirmation"]),
        (collect, [_FOLDER]),
        (report, [_FOLDER]),
    ):
        if status := execute(declare, words):
            return status
    return 0
