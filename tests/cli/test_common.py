"""What the command line makes of errors."""

import errno
import logging
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from domainbed.cli.common import guarded
from domainbed.core.files import append_text, write_text
from domainbed.errors import UserError
from domainbed.training.progress import ProgressTable


def outcome(capsys, do, debug=False):
    status = guarded(lambda: do() or 0, debug)
    return status, capsys.readouterr().err


def raises(error):
    def do():
        raise error

    return do


def deep():
    return deep()


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (
            raises(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there")),
            "/there: No space left on device",
        ),
        (raises(PermissionError(errno.EACCES, "Permission denied", "/x")), "/x: Permission denied"),
        (raises(OSError(errno.EROFS, os.strerror(errno.EROFS), "/x")), "/x: Read-only file"),
        (lambda: os.mkdir("n" * 300), "n: File name too long"),
        (deep, "nested too deeply"),
        (lambda: torch.empty(2**50), "there is not enough memory"),
        (lambda: torch.empty(2**40, 2**40), "there is not enough memory"),
        (raises(MemoryError()), "there is not enough memory"),
        (lambda: torch.randint(3, (10**20,)), "there is not enough memory"),
        (raises(torch.OutOfMemoryError("CUDA out of memory.\nmore")), "(CUDA out of memory.)"),
        (raises(UserError("a\x1b[31mb\nc")), r"error: a\x1b[31mb\nc"),
        (
            raises(ImportError("libtorch_cpu.so: failed to map segment from shared object")),
            "there is not enough memory (libtorch_cpu.so",
        ),
        (lambda: "é".encode("ascii"), "locale's encoding, ascii: set PYTHONUTF8=1"),
    ],
)
def test_what_the_machine_or_the_input_cannot_is_one_line(capsys, do, says):
    status, said = outcome(capsys, do)
    assert status == 2
    assert says in said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert "Traceback" in outcome(capsys, do, debug=True)[1]


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), FileNotFoundError(errno.ENOENT, "x"), TypeError()]
)
def test_a_programming_error_keeps_its_traceback(capsys, error):
    with pytest.raises(type(error)):
        outcome(capsys, raises(error))


def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", raises_at_call(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left") as error:
        write_text(tmp_path / "plan.json", "x")
    assert error.value.filename == str(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_under_what_is_appended_names_its_file():
    full = Path("/dev/full")
    for write in (ProgressTable(full, False, 1).line, partial(append_text, full)):
        with pytest.raises(OSError, match="No space left") as error:
            write("text")
        assert error.value.filename == "/dev/full"


def test_warnings_reach_no_terminal_with_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("logging.lastResort", logging.StreamHandler(sys.stderr))
    log = logging.getLogger("a library's")
    status, said = outcome(capsys, lambda: log.warning("a\x1b[31mb %s", "\x9bc"))
    assert (status, said) == (0, "ab c\n")


def test_a_librarys_warning_is_one_line_without_code(capsys):
    status, _ = outcome(capsys, lambda: 0)
    assert (status, warnings.formatwarning("a\nb", UserWarning, "x.py", 1)) == (0, "warning: a b\n")


def raises_at_call(error):
    def call(*arguments):
        raise error

    return call


def test_what_an_encoding_lacks_is_written_as_an_escape_sequence():
    program = (
        "from domainbed.cli.common import run_and_exit; run_and_exit(lambda: print('1 ± é'), [])"
    )
    for encoding in ("ascii", "ascii:surrogateescape"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment
        )
        assert (found.returncode, found.stdout, found.stderr) == (0, "1 \\xb1 \\xe9\n", "")
