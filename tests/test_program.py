"""How the program ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import atexit, sys
from domainbed import __main__ as program
class Torn:
    def __del__(self):
        print("taken apart")
torn = Torn()
def command():
    atexit.register(print, "a library's handler")
    {command}
program.cli.main = command
program.main()
"""


def ended(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", PROGRAM.format(command=command)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = {"stdout": subprocess.PIPE, "env": buffered, **options}
    return subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.parametrize("status", [0, 2])
def test_handlers_run_and_nothing_is_taken_apart(status):
    done = ended(f"print('said', end=' '); sys.exit({status})")
    assert (done.returncode, done.stdout, done.stderr) == (status, "said a library's handler\n", "")


def test_an_error_of_the_program_ends_as_usual():
    done = ended("1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert done.stdout == "a library's handler\ntaken apart\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_cannot_be_written_at_the_end_is_told():
    with open("/dev/full", "w") as full:
        done = ended("print('said'); sys.exit(0)", stdout=full)
    assert done.returncode == 120
    assert "No space left on device" in done.stderr
