"""The published numbers: typed, complete, and consistent in themselves."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from domainbed.config.protocols import get_protocol
from domainbed.core.names import DATASET_DOMAINS
from domainbed.errors import UserError
from domainbed.reporting.published import (
    SOURCES,
    TABLES,
    find_values,
    irm_colored_mnist_values,
    published_values,
)
from domainbed.selection import SELECTION_METHODS

REPOSITORY = Path(__file__).parents[2]

# Printed averages that are not the rounded mean of the printed cells, but 0.1 beside it.
ROUNDED_OTHERWISE = {
    ("domainbed-2020", "training-domain", "CDANN", "OfficeHome"): 65.8,
    ("domainbed-2020", "leave-one-domain-out", "MMD", "ColoredMNIST"): 36.8,
    ("domainbed-2020", "leave-one-domain-out", "CDANN", "ColoredMNIST"): 39.1,
    ("domainbed-2020", "leave-one-domain-out", "ERM", "RotatedMNIST"): 97.7,
    ("domainbed-2020", "oracle", "Mixup", "ColoredMNIST"): 58.4,
    ("domainbed-2020", "oracle", "CORAL", "ColoredMNIST"): 58.6,
    ("domainbed-2020", "oracle", "DANN", "ColoredMNIST"): 57.0,
    ("domainbed-2020", "oracle", "VREx", "PACS"): 87.2,
    ("domainbed-2020", "oracle", "RSC", "TerraIncognita"): 52.1,
    ("domainbed-2020", "oracle", "Mixup", "DomainNet"): 39.6,
    ("domainbed-2020", "training-domain", "Mixup", "Avg"): 66.7,
    ("domainbed-2020", "training-domain", "CDANN", "Avg"): 65.6,
    ("domainbed-2020", "training-domain", "SagNet", "Avg"): 67.2,
    ("domainbed-2020", "oracle", "MLDG", "Avg"): 68.7,
}
EXACTLY, ROUNDED = 0.05 + 1e-9, 0.1 + 1e-9  # of the average; of the average and of its cells


def rows(source):
    return list(published_values(source).itertuples(index=False))


def averages_and_cells():
    """For each printed average its key, its value, and the printed numbers that it is over."""
    cells, averages = defaultdict(dict), {}
    for value in (value for source in SOURCES for value in rows(source)):
        key = (value.source, value.selection, value.algorithm)
        if value.domain == "Mean rank":
            continue
        if value.table == "dataset" and value.domain != "Avg":
            cells[(*key, value.dataset)][value.domain] = value.mean
        elif value.table == "averages" and value.dataset != "Avg":
            cells[(*key, "Avg")][value.dataset] = value.mean
        if value.domain == "Avg":
            # A mean over domains is printed in two tables.
            assert averages.setdefault((*key, value.dataset), value.mean) == value.mean, key
    return [(key, averages[key], list(of.values())) for key, of in cells.items() if key in averages]


def test_averages_follow_from_the_printed_cells():
    found = averages_and_cells()
    assert len(found) == 14 * 3 * 8 + 9 + 4  # Fishr's paper and MIRO's print averages alone
    off = {key: a for key, a, cells in found if abs(a - sum(cells) / len(cells)) > EXACTLY}
    assert off == ROUNDED_OTHERWISE
    assert [key for key, a, cells in found if abs(a - sum(cells) / len(cells)) > ROUNDED] == []


def test_the_baselines_of_fishr_are_those_of_domainbed():
    ours = {value[1:6]: value.mean for value in rows("domainbed-2020")}
    theirs = {value[1:6]: value.mean for value in rows("fishr-2022")}
    both = [key for key in theirs if key in ours]
    assert len(both) == 6 * 8  # ERM, CORAL, IRM, VREx, DANN; ERM under both methods
    assert [key for key in both if theirs[key] != ours[key]] == []


def test_tables_are_complete():
    values = rows("domainbed-2020")
    assert len(values) == 1596 + 336
    assert len({value[:6] for value in values}) == len(values)
    domains = defaultdict(list)
    for value in values:
        assert value.selection in SELECTION_METHODS
        assert 0 < value.mean < 100
        assert math.isnan(value.std_err) or 0 <= value.std_err < 25
        if (value.table, value.selection, value.algorithm) == ("dataset", "oracle", "ERM"):
            domains[value.dataset].append(value.domain)
    published = list(DATASET_DOMAINS)[:7]
    assert domains == {name: [*DATASET_DOMAINS[name], "Avg"] for name in published}
    assert Counter(value.domain for value in rows("fishr-2022")) == {
        "Avg": 72,
        "Mean rank": 7,
    }


def test_some_values_as_printed():
    value = find_values(["domainbed-2020"], ["oracle"], ["PACS"], ["CORAL"]).iloc[2]
    assert tuple(value) == ("domainbed-2020", "oracle", "dataset", "PACS", "CORAL", "P", 97.1, 0.5)
    fishr = find_values(["fishr-2022"], ["oracle"], ["ColoredMNIST"], ["Fishr"])
    assert fishr[["mean", "std_err"]].to_numpy().tolist() == [[68.8, 1.4]]
    miro = find_values(["miro-2022"], datasets=["DomainNet"])
    assert miro["mean"].tolist() == [44.3]
    for name, averages in {
        "miro-2022-swad": [52.9, 47.0, 68.1],
        "miro-2022-swag": [65.5, 60.8, 77.9],
    }.items():
        assert find_values([name])["mean"].tolist()[3:] == averages
    clip = find_values(["miro-2022-clip"], datasets=["TerraIncognita"], algorithms=["MIRO"])
    assert clip["mean"].tolist() == [54.3]
    fishr = irm_colored_mnist_values().iloc[3]
    assert (fishr["algorithm"], fishr["label_flip"], fishr["test_acc"]) == ("Fishr", 0.25, 69.5)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"sources": ["fishr"]}, "unknown paper 'fishr'. Did you mean 'fishr-2022'"),
        ({"datasets": ["PASC"]}, "dataset 'PASC' .*Did you mean 'PACS'"),
        ({"selection": ["Oracle"]}, "selection 'Oracle'"),
        ({"sources": ["fishr-2022"], "algorithms": ["MLDG"]}, "algorithm 'MLDG'"),
        (
            {"sources": ["fishr-2022"], "selection": ["training-domain"], "algorithms": ["IRM"]},
            "'IRM' with the rest",
        ),
    ],
)
def test_unknown_names(asked, says):
    with pytest.raises(UserError, match=says):
        find_values(**asked)


def test_each_source_has_a_protocol():
    for source in SOURCES.values():
        assert get_protocol(source.protocol).fields["data_seed"] == "run"


def test_the_repository_links_to_the_files():
    link = REPOSITORY / "results" / "published"
    assert link.resolve() == TABLES.resolve()
    assert len(list(csv.reader((link / "domainbed_2020_per_domain.csv").open()))) == 1597


@pytest.mark.slow
def test_an_installed_package_has_the_files(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", tmp_path, REPOSITORY], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {f"domainbed/reporting/published/tables/{file.name}" for file in TABLES.iterdir()}
    assert files <= names
