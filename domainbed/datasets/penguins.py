"""Palmer penguins, the embedded table: 344 birds of three species on three islands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from domainbed.config.dataset_info import DatasetInfo
from domainbed.config.run_fields import DataFields
from domainbed.core.names import DATASET_DOMAINS
from domainbed.datasets.base import DATASETS
from domainbed.datasets.sample_files import read_table
from domainbed.datasets.samples import Samples, TableDataset

FILE = Path(__file__).with_name("penguins.csv")
_MEASURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm"]


def _info(
    images: tuple[int, int, int], classes: tuple[str, ...] | None, note: str = ""
) -> DatasetInfo:
    return DatasetInfo(
        domains=DATASET_DOMAINS["Penguins"],
        classes=classes,
        num_classes=len(classes or ["mass"]),
        images=images,
        source="comes with the package; github.com/allisonhorst/palmerpenguins",
        licence="CC0",
        citation="Gorman, Williams, Fraser, PLoS ONE 9(3), 2014, doi:10.1371/journal.pone.0090081",
        note=note,
    )


class _Penguins(TableDataset):
    ENVIRONMENTS = DATASET_DOMAINS["Penguins"]
    label: ClassVar[str]
    features: ClassVar[list[str]]

    @classmethod
    def read(cls) -> Samples:
        of_table: dict[str, str | list[str]] = {"domain": "island", "features": cls.features}
        return read_table(FILE, DataFields(columns={"label": cls.label, **of_table}))


@DATASETS.register
class Penguins(_Penguins):
    """The sex of a penguin, on three islands; a species may live on the test island alone."""

    label, features = "sex", ["species", *_MEASURES, "body_mass_g"]
    info = _info((163, 123, 47), ("female", "male"), "11 of the 344 birds have no known sex")


@DATASETS.register
class PenguinsMass(_Penguins):
    """The body mass of a penguin in kg, a regression."""

    labels = "regression"
    label, features = "body_mass_g", ["species", *_MEASURES, "sex"]
    info = _info((167, 124, 51), None, "2 of the 344 birds were not weighed")

    @classmethod
    def read(cls) -> Samples:
        samples = super().read()
        return replace(samples, y=samples.y / 1000, label_names=["body_mass_kg"])


@DATASETS.register
class PenguinsSpecies(_Penguins):
    """The species of a penguin: no island has all three, and one lives on a single island."""

    may_lack_classes = True
    label, features = "species", [*_MEASURES, "body_mass_g", "sex"]
    info = _info((168, 124, 52), ("Adelie", "Chinstrap", "Gentoo"))
