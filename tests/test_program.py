"""How the program ends, and what it does where its output cannot go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import atexit, logging, logging.handlers, sys
from domainbed.cli.common import run_and_exit
file = open("file", "w")
log = logging.getLogger("log")
log.addHandler(logging.handlers.MemoryHandler(1000, target=logging.FileHandler("log")))
def command():
    atexit.register(open("handled", "w").write, "by a library")
    file.write("left open")
    log.warning("kept back")
    {command}
run_and_exit(command, [])
"""


def ended(command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return shown([sys.executable, "-c", PROGRAM.format(command=command)], **options)


def shown(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(words, text=True, check=False, **{**pipes, "env": buffered, **options})


@pytest.mark.parametrize("status", [0, 2])
def test_all_is_written_and_closed(status, tmp_path):
    done = ended(f"print('said'); return {status}", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, "said\n", "")
    assert (tmp_path / "handled").read_text() == "by a library"
    assert (tmp_path / "file").read_text() == "left open"
    assert (tmp_path / "log").read_text() == "kept back\n"


def test_an_error_of_the_program_shows_its_traceback(tmp_path):
    done = ended("1 / 0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ZeroDivisionError" in done.stderr


def test_ctrl_c_while_a_command_is_imported(tmp_path):
    done = ended("raise KeyboardInterrupt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [4, 6000, 20000])  # below a buffer, above, and above two
def test_output_that_a_full_disk_loses_is_told(size, tmp_path):
    with open("/dev/full", "w") as full:
        done = ended(f"print('x' * {size}); return 0", stdout=full, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device\n"


@pytest.mark.parametrize("words", ["list algorithms", "--help", "list nothing"])
def test_a_reader_that_is_gone_is_no_error(words, tmp_path):
    script = f"{sys.executable} -m domainbed {words} 2>err | true; echo ${{PIPESTATUS[0]}}"
    done = shown(["bash", "-c", script], cwd=tmp_path)
    is_wrong = words == "list nothing"
    assert done.stdout == f"{2 if is_wrong else 0}\n"
    assert (tmp_path / "err").read_text().startswith("error: " if is_wrong else "")
    assert len((tmp_path / "err").read_text().splitlines()) == is_wrong


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_work_goes_on_with_closed_streams(closed, tmp_path):
    words = "train --algorithm ERM --dataset ColoredDigits --steps 1 --device cpu --keep none"
    script = f"{sys.executable} -m domainbed {words} --output_dir run {closed}"
    done = shown(["bash", "-c", script], cwd=tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert (tmp_path / "run" / "done").exists()
