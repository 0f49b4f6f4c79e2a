"""Where each published dataset comes from: sources in the order in which they are tried."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from domainbed.core.names import SPAWRIOUS

_MB, _GB = 10**6, 10**9


@dataclass(frozen=True)
class Archive:
    """One file that a server offers.

    Attributes:
        url: a Google Drive link, or plain HTTP(S).
        name: what the file is called.
        md5: of the published file, or empty if unknown.
    """

    url: str
    name: str
    md5: str = ""


@dataclass(frozen=True)
class DataSource:
    """A place that offers the whole dataset, by one of `archives`, `hub` and `torchvision`.

    Attributes:
        title: what messages call it.
        size: bytes before they are unpacked, for the check of disk space; rounded up where they are
            not published.
        archives: the files to download.
        hub: the name of a dataset repository on the Hugging Face Hub.
        torchvision: the name of a class in `torchvision.datasets`, which downloads the files.
    """

    title: str
    size: int
    archives: tuple[Archive, ...] = ()
    hub: str = ""
    torchvision: str = ""


@dataclass(frozen=True)
class Origin:
    """All that is known about getting a dataset.

    Attributes:
        sources: in the order in which they are tried.
        aliases: other names of its domains, as `plain` writes them.
        variants: images per domain of other editions that are complete too.
    """

    sources: tuple[DataSource, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def plain(name: str) -> str:
    """Lower-case letters and digits only, equal for "Real World", "real_world" and "RealWorld"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def published_name(name: str, published: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The published name that `name` stands for, or None."""
    known = {plain(other): other for other in published}
    return known.get(plain(name)) or aliases.get(plain(name))


def _drive(file_id: str, name: str, size: int, md5: str) -> DataSource:
    archive = Archive(f"https://drive.google.com/uc?id={file_id}", name, md5)
    return DataSource("Google Drive", size, (archive,))


def _hub(repository: str, size: int) -> DataSource:
    return DataSource(f"Hugging Face Hub {repository}", size, hub=repository)


def _wilds(bundle: str, size: int, *repositories: str) -> Origin:
    """Repositories of the Hub come first: users of WILDS report that CodaLab is gone."""
    url = f"https://worksheets.codalab.org/rest/bundles/{bundle}/contents/blob/"
    archive = Archive(url, "archive.tar.gz")  # the name that the package `wilds` uses
    codalab = DataSource("worksheets.codalab.org", size, (archive,))
    return Origin(sources=(*(_hub(repository, size) for repository in repositories), codalab))


def _dropbox(path: str, size: int) -> Origin:
    """One archive; its size is not published."""
    archive = Archive(f"https://www.dropbox.com/{path}?dl=1", path.rpartition("/")[2])
    return Origin(sources=(DataSource("dropbox.com", size, (archive,)),))


_BIRDS = "waterbird_complete95_forest2water2"
_CELEBA = (
    ("list_attr_celeba.txt", "blRyaVFSWGxPY0U", "75e246fa4810816ffd6ee81facbd244c"),
    ("list_eval_partition.txt", "Y0NSMzRuSXJEVkk", "d32c9cbf5e040fd4025c592c306e6668"),
    ("img_align_celeba.zip", "ZjFTYXZWM3FlRnM", "00d2c5bc6d35e252742224ab0c1e8fcb"),
)
_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"
_VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
_DOMAIN_NET = (
    ("groundtruth/clipart.zip", "cd0d8f2d77a4e181449b78ed62bccf1e"),
    ("infograph.zip", "720380b86f9e6ab4805bb38b6bd135f8"),
    ("groundtruth/painting.zip", "1ae32cdb4f98fe7ab5eb0a351768abfd"),
    ("quickdraw.zip", "bdc1b6f09f277da1a263389efe0c7a66"),
    ("real.zip", "dcc47055e8935767784b7162e7c7cca6"),
    ("sketch.zip", "658d8009644040ff7ce30bb2e820850f"),
)


def _domain_net_files() -> tuple[Archive, ...]:
    """The lists of images, then the archives."""
    archives = [Archive(_VISDA + path, path.rpartition("/")[2], md5) for path, md5 in _DOMAIN_NET]
    lists = [
        archive.name.replace(".zip", f"_{part}.txt")
        for archive in archives
        for part in ("train", "test")
    ]
    return (*(Archive(f"{_VISDA}domainnet/txt/{name}", name) for name in lists), *archives)


_MNIST = Origin(sources=(DataSource("torchvision's mirrors", 70 * _MB, torchvision="MNIST"),))
SOURCES: dict[str, Origin] = {
    "ColoredMNIST": _MNIST,
    "RotatedMNIST": _MNIST,
    "VLCS": Origin(
        sources=(
            _drive(
                "1skwblH1_okBwxWxmRsp9_qi15hyPpxg8",
                *("VLCS.tar.gz", 3_700 * _MB, "8870171eba660927d9668f4e515928e4"),
            ),
            _hub("ai22mtech12002/DG_VLCS", 4 * _GB),
        ),
        aliases={
            "caltech": "Caltech101",
            "sun": "SUN09",
            "pascal": "VOC2007",
            "pascalvoc": "VOC2007",
            "voc": "VOC2007",
        },
    ),
    "PACS": Origin(
        sources=(
            _drive(
                "1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd",
                *("PACS.zip", 180 * _MB, "fd5db817f7cdafeef3bfd525aaf9b42e"),
            ),
            _hub("flwrlabs/pacs", 200 * _MB),
        ),
        aliases={"art": "art_painting"},
    ),
    "OfficeHome": Origin(
        sources=(
            _drive(
                "1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC",
                *("OfficeHomeDataset_10072016.zip", 1_200 * _MB),
                "b1c14819770c4448fd5b6d931031c91c",
            ),
            _hub("flwrlabs/office-home", 1_300 * _MB),
        ),
        aliases={"real": "Real World"},
    ),
    "TerraIncognita": Origin(
        sources=(
            DataSource(
                "storage.googleapis.com",
                6_495_612_672,
                tuple(
                    Archive(_LILA + name, name)
                    for name in ("eccv_18_annotations.tar.gz", "eccv_18_all_images_sm.tar.gz")
                ),
            ),
            _hub("BGLab/TerraIncognita", 7 * _GB),
        ),
        aliases={n: f"location_{n}" for n in ("38", "43", "46", "100")}
        | {f"l{n}": f"location_{n}" for n in ("38", "43", "46", "100")},
        variants={"a later copy of the source": (4_741, 9_736, 3_970, 5_883)},
    ),
    "DomainNet": Origin(
        sources=(
            DataSource("csr.bu.edu", 18_520 * _MB, _domain_net_files()),
            _hub("wltjr1007/DomainNet", 19 * _GB),
        ),
    ),
    "SVIRO": Origin(
        sources=(
            DataSource(
                "sviro.kl.dfki.de",
                8 * _GB,  # not published: 56,000 uncompressed images of 250 × 550 grey values
                (
                    Archive(
                        "https://sviro.kl.dfki.de/?wpdmdl=1731",
                        "sviro_grayscale_rectangle_classification.zip",
                    ),
                ),
            ),
        )
    ),
    "Waterbirds": Origin(
        sources=(
            DataSource(
                "nlp.stanford.edu",
                500 * _MB,  # not published
                (
                    Archive(
                        f"https://nlp.stanford.edu/data/dro/{_BIRDS}.tar.gz", f"{_BIRDS}.tar.gz"
                    ),
                ),
            ),
            *_wilds("0x505056d5cdea4e4eaa0e242cbfe2daa4", 500 * _MB).sources,
        )
    ),
    "CelebA": Origin(
        sources=(
            DataSource(
                "Google Drive",
                1_500 * _MB,
                tuple(
                    Archive(f"https://drive.google.com/uc?id=0B7EVK8r0v71p{file}", name, md5)
                    for name, file, md5 in _CELEBA
                ),
            ),
        )
    ),
    "MetaShift": _dropbox("s/a7k65rlj4ownyr2/metashift.tar.gz", 500 * _MB),
    "NICOpp": _dropbox(
        "sh/u2bq2xo8sbax4pr/AACvgYpfQHfS7u_M3yJwkK-ra/track_1/track_1.zip", 15 * _GB
    ),
    "WILDSCamelyon": _wilds(
        *("0xe45e15f39fb54e9d9e919556af67aabe", 10_658_709_504),
        *("pangwei/wilds-camelyon17", "wltjr1007/Camelyon17-WILDS"),
    ),
    "WILDSFMoW": _wilds(
        *("0xaec91eb7c9d548ebb15e1b5e60f966ab", 53_893_324_800, "pangwei/wilds-fmow")
    ),
    **dict.fromkeys(
        SPAWRIOUS,
        _dropbox("s/e40j553480h3f3s/spawrious224.tar.gz", 15 * _GB),  # 152,064 images of 100 KB
    ),
}
