"""Checks that a finished sweep's tables hold a number in every cell: `check_tables.py FOLDER`."""

import sys
from pathlib import Path

import yaml

from domainbed.reporting import build_report, load_records, to_frame


def main(folder: str) -> None:
    planned = yaml.safe_load((Path(folder) / "sweep.yaml").read_text())
    cells = to_frame(build_report(load_records(folder), planned["selection"]))
    seen = set(cells["selection"]), set(cells["algorithm"])
    expected = set(planned["selection"]), set(planned["algorithms"])
    if seen != expected:
        sys.exit(f"the tables have {seen}, expected {expected}")
    empty = cells[cells["mean"].isna()]
    if len(empty):
        sys.exit(f"{len(empty)} of {len(cells)} cells have no number:\n{empty.to_string()}")
    print(f"all {len(cells)} cells of the tables in {folder} hold a number")


main(sys.argv[1])
