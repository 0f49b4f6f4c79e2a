"""Checks that a finished sweep's tables hold a number in every cell: `check_tables.py FOLDER`."""

import sys

from domainbed.names import ALGORITHM_ORDER
from domainbed.reporting import build_report, load_records, to_frame
from domainbed.selection import SELECTION_METHODS


def main(folder: str) -> None:
    cells = to_frame(build_report(load_records(folder)))
    seen = set(cells["selection"]), set(cells["algorithm"])
    expected = set(SELECTION_METHODS), set(ALGORITHM_ORDER)
    if seen != expected:
        sys.exit(f"the tables have {seen}, expected {expected}")
    empty = cells[cells["mean"].isna()]
    if len(empty):
        sys.exit(f"{len(empty)} of {len(cells)} cells have no number:\n{empty.to_string()}")
    print(f"all {len(cells)} cells of the tables in {folder} hold a number")


main(sys.argv[1])
