"""Wrong input of any kind: an error in one line that names it, soon, and nothing is changed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from misuse_cases import CASES, CONFIGS, DATASETS, Case
from misuse_world import build_world

from domainbed.algorithms import ALGORITHMS
from domainbed.cli import main
from domainbed.datasets import DATASETS as REGISTERED
from domainbed.runs.ownership import is_owners

SECONDS = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The user's folder, the same for all cases: none of them may change it."""
    folder, before = tmp_path_factory.mktemp("world"), Path.cwd()
    os.chdir(folder)
    try:
        build_world()
        for name, (text, *_) in CONFIGS.items():
            written(Path("configs") / f"{name}.yaml", text)
        for name, text in DATASETS.items():
            written(Path("lists") / name, text)
        yield folder
    finally:
        os.chdir(before)


def written(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


@pytest.fixture(autouse=True)
def nothing_registered():
    """What a plug-in registered is forgotten."""
    kept = [(registry, dict(registry._entries)) for registry in (ALGORITHMS, REGISTERED)]
    yield
    for registry, entries in kept:
        registry._entries.clear()
        registry._entries.update(entries)
    for name in [name for name in sys.modules if name.startswith("domainbed_plugin_")]:
        del sys.modules[name]


def digest(folder: Path) -> dict[str, object]:
    """What lies in a folder, but for the folder `out`, bytecode, locks, and who was at work."""
    found = {}
    left_out = (folder / "out", folder / "__pycache__")
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root, name) not in left_out]
        for path in (Path(root, name) for name in [*folders, *files]):
            facts = path.lstat()
            if path.suffix != ".lock" and not is_owners(path.name):
                changed = facts.st_mtime_ns if path.is_file() else 0
                found[str(path)] = (facts.st_mode, changed, path.is_file() and facts.st_size)
    return found


def check(case: Case, status: object, err: str) -> None:
    assert status in (1, 2), err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert 1 <= len(lines) <= 2, err
    assert [word for word in case.says if word.lower() not in err.lower()] == [], err
    assert max(map(len, lines)) < 1000, err


def told(case: Case, status: object, out: str, err: str) -> str:
    """What says what is wrong: the error, or with status 1 a part of the result."""
    if case.argv[:2] == ("data", "verify") and status == 1:
        return next(line for line in out.splitlines() if "problem:" in line)
    if case.argv[:1] == ("sweep",) and status == 1:
        return out.partition("Failed:\n")[2].partition("`domainbed sweep retry")[0]
    return err


# `make test-misuse` runs all; of each kind some are tried with all other tests.
SOME = [
    each if number % 8 == 0 else pytest.param(each, marks=pytest.mark.slow)
    for number, each in enumerate(CASES)
]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_wrong_input(case, world, capsys):
    before = digest(world)
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(SECONDS)
    shutil.rmtree(world / "out", ignore_errors=True)
    try:
        with pytest.raises(SystemExit) as exit:
            main(list(case.argv))
    finally:
        signal.alarm(0)
    out, err = capsys.readouterr()
    check(case, exit.value.code, told(case, exit.value.code, out, err))
    assert digest(world) == before


def too_late(*_: object) -> None:
    pytest.fail(f"no end within {SECONDS} seconds")  # no `Exception`, which would be caught


def test_the_table_is_long():
    assert len(CASES) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[::150], ids=str)
def test_in_a_process_of_its_own(case, world):
    shutil.rmtree(world / "out", ignore_errors=True)
    command = [sys.executable, "-m", "domainbed", *case.argv]
    done = subprocess.run(command, cwd=world, capture_output=True, text=True, timeout=60)
    check(case, done.returncode, told(case, done.returncode, done.stdout, done.stderr))
