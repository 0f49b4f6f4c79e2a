"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# The tensors of the tests are tiny: more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Their runs last moments: each record is followed by a checkpoint, as in runs of hours.
os.environ["DOMAINBED_CHECKPOINT_SECONDS"] = "1e-9"


# Background jobs of a shell ignore Ctrl-C, as does all that they start: a test would wait for it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path, monkeypatch):
    """No test reads what another one, or a user, has cached."""
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real MNIST and PACS; tests that need it are skipped without it."""
    named = os.environ.get("DOMAINBED_DATA_DIR")
    if not named:
        without_data("needs real data: set DOMAINBED_DATA_DIR to the folder that holds it")
    folder = Path(str(named))
    if not folder.is_dir():
        without_data(f"DOMAINBED_DATA_DIR names {named!r}, which is no folder")
    return folder


def without_data(reason: str) -> None:
    """Skips the test; where every check must run, fails it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def mnist_dir(data_dir) -> Path:
    if not (data_dir / "MNIST" / "raw").is_dir():
        without_data("DOMAINBED_DATA_DIR has no MNIST/raw")
    return data_dir


@pytest.fixture(scope="session")
def pacs_dir(data_dir) -> Path:
    if not (data_dir / "PACS" / "sketch").is_dir():
        without_data("DOMAINBED_DATA_DIR has no PACS")
    return data_dir
