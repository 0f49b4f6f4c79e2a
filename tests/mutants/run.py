"""Breaks the package in one line at a time, and asks the tests whether they notice.

    python tests/mutants/run.py                     # all: a table, and status 1 for survivors
    python tests/mutants/run.py --only selection    # those whose file or name contains this

Each mutant replaces a piece of text in one file of a copy of the checkout, and runs the tests that
should notice. It is an error if the text is not found exactly once: the code has changed since.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from catalogue import MUTANTS, Mutant

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 600
"""After which tests count as stuck, and the mutant as noticed."""


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant.

    Attributes:
        noticed: whether a test failed.
        by: the first test that did, or why none could.
        seconds: how long they took.
    """

    mutant: Mutant
    noticed: bool
    by: str
    seconds: float


def copied(folder: Path) -> Path:
    """A copy of what the tests need, without git, environments and results."""
    unneeded = shutil.ignore_patterns(".*", "__pycache__", "results", "site", "*.egg-info")
    return Path(shutil.copytree(CHECKOUT, folder, ignore=unneeded))


def outcome(mutant: Mutant, copy: Path) -> Outcome:
    """Applies a mutant to a copy, runs its tests and takes it back."""
    file = copy / "domainbed" / mutant.file
    original = file.read_text(encoding="utf-8")
    if (count := original.count(mutant.before)) != 1:
        raise SystemExit(f"{mutant.file}: {mutant.before!r} is there {count} times")
    began = time.monotonic()
    file.write_text(original.replace(mutant.before, mutant.after), encoding="utf-8")
    try:
        failed, by = failing_test(mutant, copy)
    finally:
        file.write_text(original, encoding="utf-8")
    return Outcome(mutant, failed, by, time.monotonic() - began)


def failing_test(mutant: Mutant, copy: Path) -> tuple[bool, str]:
    """Whether a test of a mutant fails, and which."""
    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *options, *mutant.tests.split()]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return True, f"stuck for {SECONDS} s"
    if done.returncode not in (0, 1, 2):
        raise SystemExit(f"{mutant.name}: {done.stdout}{done.stderr}")
    told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode > 0, told[0].split()[1] if told else ""


def main() -> None:
    """Prints a row for each mutant, and how many were noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose file or name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    arguments = parser.parse_args()
    chosen = [each for each in MUTANTS if arguments.only in f"{each.file} {each.name}"]
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(arguments.jobs):
            copies.put(copied(Path(folder, str(number))))

        def tried(mutant: Mutant) -> Outcome:
            copy = copies.get()
            try:
                return outcome(mutant, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            outcomes = []
            for each in pool.map(tried, chosen):
                outcomes.append(each)
                word = "noticed" if each.noticed else "SURVIVES"
                print(
                    f"{word:8} {each.mutant.file}: {each.mutant.name} ({each.by}, "
                    f"{each.seconds:.0f} s)",
                    flush=True,
                )
    noticed = sum(each.noticed for each in outcomes)
    print(f"{noticed} of {len(outcomes)} mutants noticed")
    sys.exit(noticed < len(outcomes))


if __name__ == "__main__":
    main()
