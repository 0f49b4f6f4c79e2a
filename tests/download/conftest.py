"""Small datasets in place of the published ones, and a way to ask for them."""

from __future__ import annotations

import dataclasses

import pytest
from source_files import PACS_IMAGES, tree_files

from domainbed.datasets import DATASETS
from domainbed.download.download import download_dataset


@pytest.fixture
def shrink(monkeypatch):
    """Makes a dataset's published numbers small ones."""

    def to(name, images, **facts):
        info = dataclasses.replace(DATASETS[name].info, images=images, **facts)
        monkeypatch.setattr(DATASETS[name], "info", info)
        return info

    return to


@pytest.fixture
def pacs(shrink):
    """The files of a small PACS, by their paths below its folder."""
    return tree_files(shrink("PACS", PACS_IMAGES), PACS_IMAGES)


@pytest.fixture
def said(tmp_path):
    """Downloads into the folder `data` and returns the lines that were said."""

    def get(name, *words, **options):
        lines = []
        download_dataset(name, tmp_path / "data", *words, say=lines.append, **options)
        return "\n".join(lines)

    return get


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"
