"""Compare datasets on disk with what was published, and read every image.

The exit status is 0 if nothing is wrong and 1 if something is.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from domainbed.cli.common import add_data_dir_flag, add_flag
from domainbed.core.text_table import text_table
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.download.verify import Verification

_MOST_COLUMNS = 12  # classes that fit beside each other


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares names and flags."""
    parser.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="datasets, "
                        "folder:PATH, manifests; or all that are there (default)")  # fmt: skip
    add_data_dir_flag(parser)
    add_flag(parser, "--format", choices=("text", "json"), default="text", help="(default: text)")


def main(args: argparse.Namespace) -> int:
    """Prints a report on each dataset.

    Raises:
        UserError: an unknown name, or no dataset is there.
    """
    from domainbed.download.verify import verify_dataset

    names = _present(args.data_dir) if "all" in args.names else list(dict.fromkeys(args.names))
    reports = []
    for name in names:
        reports.append(verify_dataset(name, args.data_dir))
        if args.format == "text":
            print("\n".join(_lines(reports[-1])), flush=True)
    ok = all(report.ok for report in reports)
    if args.format == "json":
        found = [report.to_json() for report in reports]
        print(json.dumps({"ok": ok, "datasets": found}, indent=2))
    return 0 if ok else 1


def _present(data_dir: str) -> list[str]:
    from domainbed.datasets import DATASETS
    from domainbed.download.download import downloadable

    folders = {name: os.path.join(data_dir, DATASETS[name].info.folder) for name in downloadable()}
    names = [name for name, folder in folders.items() if os.path.exists(folder)]
    if not names:
        raise UserError(f"no dataset in {data_dir!r}: get one with `domainbed download NAME`")
    return names


def _lines(report: Verification) -> list[str]:
    state = "ok" if report.ok else f"{len(report.problems)} problem(s)"
    lines = [f"{report.name} in {report.folder or 'the package'}: {state}"]
    if report.counts:
        lines += _table(report)
    lines += [f"  problem: {problem.message}" for problem in report.problems]
    return lines + [f"  note: {note}" for note in report.notes]


def _table(report: Verification) -> list[str]:
    classes = sorted({name for counts in report.counts.values() for name in counts})
    shown = classes if len(classes) <= _MOST_COLUMNS else []
    rows = [["domain", "images", "published", "classes", *shown]]
    for domain in sorted(set(report.counts) | set(report.published)):
        counts = report.counts.get(domain, {})
        published = report.published.get(domain)
        row = [domain, f"{sum(counts.values()):,}", "-" if published is None else f"{published:,}"]
        rows.append([*row, str(len(counts)), *(f"{counts.get(name, 0):,}" for name in shown)])
    return text_table(rows, right=range(1, len(rows[0])), indent="  ")
