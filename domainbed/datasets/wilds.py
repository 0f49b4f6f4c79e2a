"""Two datasets of WILDS (Koh et al., ICML 2021, arXiv 2012.07421), read from its files.

A domain is all images with one value of a metadata field, in the order of the table; the splits
of WILDS are ignored, as in DomainBed. The package `wilds` is not needed for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed.config.dataset_info import DatasetInfo
from domainbed.core.files import regular
from domainbed.core.names import DATASET_DOMAINS
from domainbed.datasets.base import DATASETS
from domainbed.datasets.image_folders import Contents, PublishedTree, absent
from domainbed.errors import UserError, one_line

_WILDS = "Koh et al., WILDS, ICML 2021"


def _table(file: Path, columns: Mapping[str, type]) -> Any:
    """Some columns of a CSV file; no text is taken for a missing value."""
    import pandas

    try:
        return pandas.read_csv(
            regular(file), usecols=list(columns), dtype=columns, keep_default_na=False
        )
    except (OSError, ValueError) as error:  # pandas' errors are ValueErrors
        raise UserError(
            f"{file} cannot be read as a table with the columns {', '.join(columns)} "
            f"({one_line(error)}): get it again"
        ) from error


def _contents(
    folder: Path,
    table: str,
    rows: Sequence[tuple[str, int, str]],
    domains: Sequence[str],
    classes: Sequence[str],
) -> Contents:
    """The images of `rows`: path below `folder`, label, name of the domain."""
    missing = absent(folder, [path for path, _, _ in rows])
    images: dict[str, list[tuple[Path, int]]] = {name: [] for name in domains}
    for path, label, domain in rows:
        if path not in missing:
            images[domain].append((folder / path, label))
    lacking = ""
    if missing:
        lacking = (
            f"{len(missing):,} of {len(rows):,} images that {table} lists are not there, "
            f"{min(missing)} among them"
        )
    return Contents(domains, classes, list(images.values()), lacking)


@DATASETS.register
class WILDSCamelyon(PublishedTree):
    """Patches of lymph nodes from five hospitals: is there tumour tissue in the middle?"""

    crop = "resized"
    layout = "metadata.csv and the folder patches"
    ENVIRONMENTS = DATASET_DOMAINS["WILDSCamelyon"]
    info = DatasetInfo(
        domains=ENVIRONMENTS,
        classes=("normal", "tumor"),
        num_classes=2,
        images=(59_436, 34_904, 85_054, 129_838, 146_722),
        source="https://worksheets.codalab.org/rest/bundles/0xe45e15f39fb54e9d9e919556af67aabe/",
        licence="CC0 1.0",
        citation=f"Bandi et al., Camelyon17, IEEE TMI 2019; {_WILDS}",
        folder="camelyon17_v1.0",
        note="WILDS itself tests on hospital 2 and validates on hospital 1",
    )

    @classmethod
    def holds(cls, folder: Path) -> bool:
        return (folder / "metadata.csv").exists() and (folder / "patches").is_dir()

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        # The numbers of patients have leading zeros, which are part of the file names.
        columns = {"patient": str, "node": int, "x_coord": int, "y_coord": int}
        columns |= {"tumor": int, "center": int}
        table = _table(folder / "metadata.csv", columns)
        if not table["tumor"].isin((0, 1)).all():
            raise UserError(f"{folder / 'metadata.csv'}: expected 0 or 1 in the column 'tumor'")
        patient, node, x, y, tumor, center = (table[name].tolist() for name in columns)
        scans = [f"patient_{p}_node_{n}" for p, n in zip(patient, node)]
        paths = [f"patches/{s}/patch_{s}_x_{i}_y_{j}.png" for s, i, j in zip(scans, x, y)]
        rows = [(path, t, f"hospital_{c}") for path, t, c in zip(paths, tumor, center)]
        domains = [f"hospital_{number}" for number in sorted(set(center))]
        return _contents(folder, "metadata.csv", rows, domains, ("normal", "tumor"))


@DATASETS.register
class WILDSFMoW(PublishedTree):
    """Satellite images of buildings and land use, from all regions of the world."""

    crop = "resized"
    layout = "rgb_metadata.csv, country_code_mapping.csv and the folder images"
    ENVIRONMENTS = DATASET_DOMAINS["WILDSFMoW"]
    info = DatasetInfo(
        domains=("Asia", "Europe", "Africa", "Americas", "Oceania", "Other"),
        classes=None,
        num_classes=62,
        images=(),
        source="https://worksheets.codalab.org/rest/bundles/0xaec91eb7c9d548ebb15e1b5e60f966ab/",
        licence="Functional Map of the World Challenge Public License",
        citation=f"Christie et al., Functional Map of the World, CVPR 2018; {_WILDS}",
        folder="fmow_v1.1",
        note="about 470,000 images (not verified); a region may lack some of the classes",
        sparse=True,
    )

    @classmethod
    def holds(cls, folder: Path) -> bool:
        return (folder / "rgb_metadata.csv").exists() and (folder / "images").is_dir()

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        table = _table(
            folder / "rgb_metadata.csv", {"split": str, "category": str, "country_code": str}
        )
        countries = _table(folder / "country_code_mapping.csv", {"alpha-3": str, "region": str})
        region_of = dict(zip(countries["alpha-3"], countries["region"]))
        regions = [region_of.get(code) or "Other" for code in table["country_code"]]
        classes = sorted(set(table["category"]))
        label = {name: number for number, name in enumerate(classes)}
        # An image is named after its row, and sequestered rows are counted, too.
        rows = [
            (f"images/rgb_img_{row}.png", label[category], region)
            for row, (split, category, region) in enumerate(
                zip(table["split"], table["category"], regions)
            )
            if split != "seq"
        ]
        kept = {region for _, _, region in rows}
        domains = [region for region in dict.fromkeys(regions) if region in kept]
        return _contents(folder, "rgb_metadata.csv", rows, domains, classes)
