"""Datasets of natural images in the folders in which they were published: WILDS and Spawrious.

WILDS (Koh et al., ICML 2021, arXiv 2012.07421): two datasets, read from its files. A domain is all
images with one value of a metadata field, in the order of the table; the splits of WILDS are
ignored, as in DomainBed. The package `wilds` is not needed for that.

Spawrious (Lynch et al. 2023, arXiv 2303.05470): dogs whose background gives them away. The
image folders are `<0 or 1>/<location>/<breed>`. In the two training groups a breed goes with
a location; in the test domain it goes with one of the others. In the one-to-one sets (O2O) both
groups show a breed in the same place, with a share of images in a place that all breeds have in
common; in the many-to-many sets (M2M) two breeds change places between the groups.

Where a part of a folder is used, it is the first images in name order. DomainBed takes the first
that the file system happens to list, which differs from disk to disk.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from domainbed.core.files import regular
from domainbed.core.image_files import entries, images
from domainbed.core.names import TEST_DOMAINS
from domainbed.datasets.base import published
from domainbed.datasets.image_folders import Contents, ImageDataset
from domainbed.errors import UserError, one_line

# In the order of the locations below, which is that of the images in a domain.
BREEDS = ("bulldog", "dachshund", "labrador", "corgi")

CLASSES = ("bulldog", "corgi", "dachshund", "labrador")
LOCATIONS = ("beach", "desert", "dirt", "jungle", "mountain", "snow")
# Images of a breed at a location in one of the folders 0 and 1.
IN_FOLDER = 3168


# A breed's folder, the breed, and how many of its first images; None for all of them.
Part = tuple[str, str, int | None]


class PublishedTree(ImageDataset):
    """Images in the folders in which they were published; a subclass knows this structure.

    Attributes:
        layout: what its folder holds, in words.
        files: paths, also of folders, by which its folder is known.

    Raises:
        UserError: the dataset or some of its images are missing, or it has more or fewer
            domains or classes than were published.
    """

    layout: ClassVar[str]
    files: ClassVar[Sequence[str]]

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        folder = self.locate(root)
        if not self.holds(folder):
            raise self._absent(folder, "it holds other files", self.layout)
        self._take(folder, self.contents(folder), self._remedy(folder))

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether `folder` looks like the dataset, complete or not."""
        return all((folder / name).exists() for name in cls.files)

    @classmethod
    @abstractmethod
    def contents(cls, folder: Path) -> Contents:
        """What lies in `folder`.

        Raises:
            UserError: it cannot be read, or a file that describes the images is damaged.
        """


def absent(folder: Path, paths: Collection[str]) -> set[str]:
    """The paths below `folder` where there is no file; lists folders, as files may be many."""
    parents = {path.rpartition("/")[0] for path in paths}
    names = {each: entries(folder / each)[1] for each in parents if (folder / each).is_dir()}
    return set(paths).difference(f"{each}/{name}" for each in names for name in names[each])


def read_columns(file: Path, columns: Mapping[Any, type], **options: Any) -> Any:
    """Some columns of a table; no text is taken for a missing value; `options` are of pandas."""
    import pandas

    try:
        return pandas.read_csv(
            regular(file), usecols=[*columns], dtype=columns, keep_default_na=False, **options
        )
    except (OSError, ValueError) as error:  # pandas' errors are ValueErrors
        raise UserError(
            f"{file} cannot be read as a table with the columns {', '.join(map(str, columns))} "
            f"({one_line(error)}): get it again"
        ) from error


def listed_contents(
    folder: Path,
    table: str,
    rows: Sequence[tuple[str, int, str]],
    domains: Sequence[str],
    classes: Sequence[str],
) -> Contents:
    """The images of `rows`: path below `folder`, label, name of the domain."""
    missing = absent(folder, [path for path, _, _ in rows])
    listed: dict[str, list[tuple[Path, int]]] = {name: [] for name in domains}
    for path, label, domain in rows:
        if path not in missing:
            listed[domain].append((folder / path, label))
    lacking = ""
    if missing:
        lacking = (
            f"{len(missing):,} of {len(rows):,} images that {table} lists are not there, "
            f"{min(missing)} among them"
        )
    return Contents(domains, classes, list(listed.values()), lacking)


@published
class WILDSCamelyon(PublishedTree):
    """Patches of lymph nodes from five hospitals: is there tumour tissue in the middle?"""

    crop = "resized"
    layout, files = "metadata.csv and the folder patches", ("metadata.csv", "patches")

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        # The numbers of patients have leading zeros, which are part of the file names.
        columns = {"patient": str, "node": int, "x_coord": int, "y_coord": int}
        columns |= {"tumor": int, "center": int}
        table = read_columns(folder / "metadata.csv", columns)
        if not table["tumor"].isin((0, 1)).all():
            raise UserError(f"{folder / 'metadata.csv'}: expected 0 or 1 in the column 'tumor'")
        patient, node, x, y, tumor, center = (table[name].tolist() for name in columns)
        scans = [f"patient_{p}_node_{n}" for p, n in zip(patient, node)]
        paths = [f"patches/{s}/patch_{s}_x_{i}_y_{j}.png" for s, i, j in zip(scans, x, y)]
        rows = [(path, t, f"hospital_{c}") for path, t, c in zip(paths, tumor, center)]
        domains = [f"hospital_{number}" for number in sorted(set(center))]
        return listed_contents(folder, "metadata.csv", rows, domains, ("normal", "tumor"))


@published
class WILDSFMoW(PublishedTree):
    """Satellite images of buildings and land use, from all regions of the world."""

    crop = "resized"
    layout = "rgb_metadata.csv, country_code_mapping.csv and the folder images"
    files = ("rgb_metadata.csv", "images")

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        table = read_columns(
            folder / "rgb_metadata.csv", {"split": str, "category": str, "country_code": str}
        )
        countries = read_columns(
            folder / "country_code_mapping.csv", {"alpha-3": str, "region": str}
        )
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
        return listed_contents(folder, "rgb_metadata.csv", rows, domains, classes)


class _Spawrious(PublishedTree):
    """What the six sets share.

    Attributes:
        training: the location of each breed in the training groups.
        testing: the location of each breed in the test domain.
        common: of the one-to-one sets the location of all other images.
        correlated: of the one-to-one sets the images of a breed at its own location, in either
            group.
    """

    crop = "none"
    layout = "the folders 0 and 1 with <location>/<breed>/<image>"
    augmented_domains = (1, 2)
    test_domains = TEST_DOMAINS["SpawriousO2O_easy"]
    training: ClassVar[Sequence[str]]
    testing: ClassVar[Sequence[str]]
    common: ClassVar[str | None]
    correlated: ClassVar[tuple[int, int]] = (3072, 2756)

    @classmethod
    def parts(cls) -> Sequence[Sequence[Part]]:
        """What each domain is made of, in order."""
        test: list[Part] = []
        groups: list[list[Part]] = []
        for k, own in enumerate(cls.correlated):
            if cls.common is None:  # the second time, neighbours change places
                order = [number ^ k for number in range(len(BREEDS))]
                test += _parts(0, [cls.testing[i] for i in order], None)
                groups.append(_parts(0, [cls.training[i] for i in order], IN_FOLDER))
            else:
                rest = _parts(k, [cls.common] * len(BREEDS), IN_FOLDER - own)
                test += _parts(k, cls.testing, None)
                groups.append(_parts(k, cls.training, own) + rest)
        return [test, *groups]

    @classmethod
    def holds(cls, folder: Path) -> bool:
        return any((folder / "0" / location).is_dir() for location in LOCATIONS)

    @classmethod
    def contents(cls, folder: Path) -> Contents:
        found, missing = [], []
        for parts in cls.parts():
            domain: list[tuple[Path, int]] = []
            for place, breed, number in parts:
                files, least = images(folder / place), number or 1
                if len(files) < least:
                    missing.append(f"{place} has {len(files):,} images, expected {least:,}")
                domain += [(file, CLASSES.index(breed)) for file in files[:number]]
            found.append(domain)
        more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
        return Contents(cls.ENVIRONMENTS, CLASSES, found, "; ".join(missing[:3]) + more)


def _parts(folder: int, locations: Sequence[str], number: int | None) -> list[Part]:
    """Each breed at its location."""
    return [
        (f"{folder}/{location}/{breed}", breed, number)
        for location, breed in zip(locations, BREEDS)
    ]


def _spawrious(
    name: str, training: str, testing: str, common: str | None = None
) -> type[_Spawrious]:
    """Registers one of the sets; locations are separated by spaces, in the order of the breeds."""
    kind = "many to many" if common is None else "one to one"
    attributes = {
        "__doc__": f"Spawrious, {kind}, {name.rpartition('_')[2]}.",
        "__module__": __name__,
        "training": training.split(),
        "testing": testing.split(),
        "common": common,
    }
    return published(type(name, (_Spawrious,), attributes))


SpawriousO2O_easy = _spawrious(
    "SpawriousO2O_easy", "desert jungle dirt snow", "dirt snow desert jungle", "beach"
)
SpawriousO2O_medium = _spawrious(
    "SpawriousO2O_medium", "mountain beach dirt jungle", "jungle dirt beach snow", "desert"
)
SpawriousO2O_hard = _spawrious(
    "SpawriousO2O_hard", "jungle mountain snow desert", "mountain snow desert jungle", "beach"
)
SpawriousM2M_easy = _spawrious(
    "SpawriousM2M_easy", "desert mountain dirt jungle", "dirt jungle mountain desert"
)
SpawriousM2M_medium = _spawrious(
    "SpawriousM2M_medium", "beach snow mountain desert", "desert mountain beach snow"
)
SpawriousM2M_hard = _spawrious(
    "SpawriousM2M_hard", "dirt jungle snow beach", "snow beach dirt jungle"
)
