"""The numbers that papers print, and how they were made. One CSV file a table, in `tables/`.

`results/published` in the repository is a link to that folder. A value is called what `domainbed
collect --format csv` calls it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from domainbed.core.suggest import did_you_mean
from domainbed.errors import UserError

TABLES = Path(__file__).parent / "tables"


class PublishedValue(NamedTuple):
    """One number of a paper, in percent (of the domain "Mean rank": a rank).

    Attributes:
        source: a name in `SOURCES`.
        selection: short name of a selection method.
        table: "dataset" or "averages".
        dataset: its name, or "Avg" for the mean over the paper's datasets.
        algorithm: its name.
        domain: name of the test domain, "Avg", or "Mean rank".
        mean: as printed.
        std_err: as printed; None where the paper prints none.
    """

    source: str
    selection: str
    table: str
    dataset: str
    algorithm: str
    domain: str
    mean: float
    std_err: float | None


class IRMValue(NamedTuple):
    """A row of Ramé et al. 2022, table 2: mean and standard deviation over restarts, in percent."""

    algorithm: str
    label_flip: float
    train_acc: float
    train_acc_std: float
    test_acc: float
    test_acc_std: float
    gray_test_acc: float
    gray_test_acc_std: float


@dataclass(frozen=True)
class Source:
    """A paper with tables, and the conditions under which its numbers were made.

    Attributes:
        name: for the command line.
        title: authors and title.
        url: where it can be read.
        files: in `TABLES`; of each the values of columns that are the same in all its rows.
        protocol: the named protocol that does as its authors did.
        foremost: the baseline, and the algorithm that does best in it.
        trials, draws, steps: how many trials, hparams seeds, and updates in each run.
        backbone: of datasets of photographs.
    """

    name: str
    title: str
    url: str
    files: Mapping[str, Mapping[str, str]]
    protocol: str
    foremost: tuple[str, ...]
    trials: int = 3
    draws: int = 20
    steps: int = 5001
    backbone: str = "ResNet-50"


_DOMAINS = {"table": "dataset"}
_AVERAGES = {"table": "averages", "domain": "Avg"}
_RANKS = {"selection": "oracle", "table": "averages", "dataset": "Avg", "domain": "Mean rank"}

SOURCES = {
    source.name: source
    for source in (
        Source(
            "domainbed-2020",
            'Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization"',
            "https://arxiv.org/abs/2007.01434",
            {"domainbed_2020_per_domain.csv": _DOMAINS, "domainbed_2020_averages.csv": _AVERAGES},
            protocol="domainbed-2020",
            foremost=("ERM", "CORAL"),
        ),
        Source(
            "fishr-2022",
            'Ramé, Dancette and Cord, "Fishr", ICML 2022',
            "https://arxiv.org/abs/2109.02934",
            {"fishr_2022_averages.csv": _AVERAGES, "fishr_2022_oracle_ranks.csv": _RANKS},
            protocol="fishr-2022",
            foremost=("ERM", "Fishr"),
        ),
    )
}


def get_source(name: str) -> Source:
    """The source called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in SOURCES:
        raise UserError(
            f"unknown paper {name!r}.{did_you_mean(name, SOURCES)} Known: {', '.join(SOURCES)}"
        )
    return SOURCES[name]


@cache
def published_values(source: str) -> tuple[PublishedValue, ...]:
    """All numbers of a source, in the order of its files.

    Raises:
        UserError: there is no such source.
    """
    return tuple(
        PublishedValue(
            source=source,
            mean=float(row.pop("mean")),
            std_err=float(error) if (error := row.pop("std_err", "")) else None,
            **row,
        )
        for file, constants in get_source(source).files.items()
        for row in _rows(file, constants)
    )


def find_values(
    sources: Iterable[str] | None = None,
    selection: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
) -> list[PublishedValue]:
    """The numbers that are asked for; None asks for all.

    Raises:
        UserError: a name that no source has, or no number is of all that is asked for.
    """
    found = [value for name in sources or SOURCES for value in published_values(name)]
    for column, names in (
        ("selection", selection),
        ("dataset", datasets),
        ("algorithm", algorithms),
    ):
        known = list(dict.fromkeys(getattr(value, column) for value in found))
        for name in names or ():
            if name not in known:
                raise UserError(
                    f"no published number of {column} {name!r} beside the rest that is asked for."
                    f"{did_you_mean(name, known)} Known: {', '.join(known)}"
                )
        found = [value for value in found if names is None or getattr(value, column) in names]
    return found


def irm_colored_mnist_values() -> list[IRMValue]:
    """Colored MNIST in the setup of IRM (Ramé et al. 2022, table 2)."""
    return [
        IRMValue(row.pop("algorithm"), **{name: float(value) for name, value in row.items()})
        for row in _rows("fishr_2022_irm_colored_mnist.csv", {})
    ]


def _rows(file: str, constants: Mapping[str, str]) -> list[dict[str, str]]:
    with (TABLES / file).open(encoding="utf-8", newline="") as lines:
        return [{**constants, **row} for row in csv.DictReader(lines)]
