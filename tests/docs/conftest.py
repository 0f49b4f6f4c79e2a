"""The small files and results that the pages speak of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from page_files import REPOSITORY, link_data, run_shell, shorten, write_pets


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Path:
    """A folder with `configs/quickstart.yaml`, shortened, and the `results/quickstart` it gives.

    Processes that test in parallel share one.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "quickstart"
    with FileLock(f"{folder}.lock"):
        if not (folder / "results").is_dir():
            shutil.copytree(REPOSITORY / "configs", folder / "configs", dirs_exist_ok=True)
            shorten(folder / "configs" / "quickstart.yaml")
            run_shell("domainbed sweep launch configs/quickstart.yaml", folder)
    return folder


@pytest.fixture
def workspace(quickstart, tmp_path, monkeypatch) -> Path:
    """The folder that a page's snippets run in; Python's are there as well."""
    folder = tmp_path / "page"
    shutil.copytree(quickstart, folder)
    for name in ("scripts", "benchmarks"):
        (folder / name).symlink_to(REPOSITORY / name)
    link_data(folder / "data")
    write_pets(folder)
    monkeypatch.chdir(folder)
    return folder
