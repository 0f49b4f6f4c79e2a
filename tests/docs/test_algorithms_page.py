"""The table of docs/algorithms.md says what the classes say."""

from __future__ import annotations

import re

import pytest
from page_files import REPOSITORY

from domainbed.algorithms import ALGORITHMS, KINDS, declared_options, get_algorithm_class
from domainbed.cli import run
from domainbed.core.names import is_provisional
from domainbed.errors import UserError

PAGE = (REPOSITORY / "docs" / "algorithms.md").read_text()


def rows():
    """Name to the cells after the year, of the first table."""
    found = {}
    for line in re.findall(r"^\| \[(.*)\|$", PAGE, re.MULTILINE):
        name, _, *cells = (cell.strip() for cell in line.split("|"))
        found[name.partition("]")[0]] = cells
    return found


def takes_fishr(name):
    try:
        get_algorithm_class(f"Fishr+{name}")
    except UserError:
        return ""
    return "yes"


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_row(name):
    cls = ALGORITHMS[name]
    option = declared_options(cls).get("fidelity")
    values = sorted(option.values, key=lambda v: v != option.default) if option else []
    assert rows()[name] == [
        ", ".join(values),
        str(cls.least_domains),
        str(cls.least_samples),
        "one domain" if cls.predicts_batches else "",
        "classes" if cls.needs_classes else "all",
        takes_fishr(name),
        "yes" if is_provisional(name) else "",
    ]


def test_lists_are_by_kind_with_the_years_of_the_page(capsys):
    run(["list", "algorithms"])
    lines = [re.split(r"  +", line)[:3] for line in capsys.readouterr().out.splitlines()]
    listed = [row for row in lines[1:] if row[0]]
    kinds = [(kind, name) for kind, names in KINDS.items() for name in names]
    assert [(kind, name) for kind, name, _ in listed] == kinds
    assert sorted(name for _, name in kinds) == sorted(ALGORITHMS)
    years = dict(re.findall(r"^\| \[(\w+)\]\([^)]*\) \| (\d+) \|", PAGE, re.MULTILINE))
    assert {name: year for _, name, year in listed} == years


def test_every_algorithm_has_a_section():
    titles = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    assert [name for title in titles for name in title.split(", ")] == list(ALGORITHMS)
