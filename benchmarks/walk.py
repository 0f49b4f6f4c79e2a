"""How often one run's way through the package comes back to a room that it had left.

    python benchmarks/walk.py            # rooms, functions, files, returns
    python benchmarks/walk.py --list     # each function in the order of its first call

Launches one run on embedded digits in this process and makes its table. The functions of the
package, once everything is imported, are listed in the order of their first call. A room is the
first level below `domainbed/`; `core` and `errors`, which any room may use, do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import domainbed

ROOT = Path(domainbed.__file__).parent
SHARED = ("core", "errors")
CONFIG = {
    "datasets": ["ColoredDigits"],
    "algorithms": ["ERM"],
    "test_envs": [[0]],
    "selection": ["oracle"],
    "trials": 1,
    "hparams_seeds": 1,
    "steps": 5,
    "checkpoint_freq": 2,
    "launcher": "debug",
}


def functions_called(commands: Iterable[list[str]]) -> list[tuple[str, str]]:
    """The file and the name of each function of the package, in the order of its first call."""
    for module in pkgutil.walk_packages([str(ROOT)], "domainbed."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from domainbed.cli import main

    called: dict[tuple[str, str], None] = {}
    root = f"{ROOT}/"

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root) and code.co_name[0] != "<":
            called.setdefault((code.co_filename.removeprefix(root), code.co_qualname))

    threading.setprofile(note)
    for command in commands:
        sys.setprofile(note)
        try:
            with contextlib.suppress(SystemExit):
                main(command)
        finally:
            sys.setprofile(None)
    threading.setprofile(None)
    return list(called)


def room(file: str) -> str:
    """The first level below the package."""
    return Path(file).parts[0].removesuffix(".py")


def returns(rooms: Iterable[str]) -> int:
    """How often a room is entered that was left before."""
    known: set[str] = set()
    here, count = "", 0
    for each in rooms:
        if each != here:
            count += each in known
            known.add(each)
            here = each
    return count


def main() -> None:
    """Prints the figures of one walk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the functions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config, sweep = Path(folder, "one.yaml"), str(Path(folder, "sweep"))
        config.write_text(yaml.safe_dump({**CONFIG, "output_dir": sweep}))
        launch = ["sweep", "launch", str(config), "--skip_confirmation"]
        with contextlib.redirect_stdout(io.StringIO()):
            called = functions_called([launch, ["collect", sweep]])
    if arguments.list:
        before = ""
        for file, name in called:
            mark = "" if room(file) in (before, *SHARED) else f"-- {room(file)}"
            before = before if room(file) in SHARED else room(file)
            print(f"{mark:20}{file}: {name}")
    rooms = [room(file) for file, _ in called if room(file) not in SHARED]
    files = {file for file, _ in called}
    print(f"{len(called)} functions of {len(files)} files: {returns(rooms)} returns")


if __name__ == "__main__":
    main()
