"""Checks what others submitted: `check_submissions.py [FOLDER]`.

In FOLDER, results/submissions, each submission has a folder with exports and the plug-ins that they
need. Runs on data that comes with the package are done again, some of each file.
"""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

EMBEDDED = {"ColoredDigits", "RotatedDigits", "Penguins", "PenguinsMass", "PenguinsSpecies"}
AGAIN = 3


def main(folder: str = "results/submissions") -> None:
    files = sorted(Path(folder).glob("**/*.parquet"))
    failed = [str(file) for file in files if "cache" not in file.parts and not stands(file)]
    sys.exit(f"do not stand: {', '.join(failed)}" if failed else 0)


def stands(file: Path) -> bool:
    print(f"== {file}", flush=True)
    command = ["check", str(file), "--rerun", str(AGAIN if is_embedded(file) else 0)]
    if plugins := sorted(map(str, file.parent.glob("*.py"))):
        command += ["--plugins", *plugins]
    return subprocess.run([sys.executable, "-m", "domainbed", "submit", *command]).returncode == 0


def is_embedded(file: Path) -> bool:
    """Whether its datasets come with the package; what is no export is refused by the check."""
    try:
        return {*pq.read_table(file, columns=["dataset"])["dataset"].to_pylist()} <= EMBEDDED
    except (pa.ArrowException, OSError, LookupError):
        return False


main(*sys.argv[1:])
