"""Where each published dataset comes from: sources in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from domainbed.core.names import SPAWRIOUS

_MB, _GB = 10**6, 10**9


@dataclass(frozen=True)
class Archive:
    """One file that a server offers.

    Attributes:
        url: a Google Drive link, or plain HTTP(S).
        name: what the file is called.
        size: bytes, for the check of disk space; rounded up where it is not published.
        md5: of the published file, or empty if unknown.
    """

    url: str
    name: str
    size: int
    md5: str = ""


@dataclass(frozen=True)
class Hub:
    """A dataset repository on the Hugging Face Hub; `size` in bytes, rounded up."""

    repo: str
    size: int


@dataclass(frozen=True)
class Source:
    """A place that offers the whole dataset, under the name that messages call it."""

    title: str
    parts: tuple[Archive, ...] | Hub

    @property
    def size(self) -> int:
        """Bytes of the files before they are unpacked."""
        return sum(a.size for a in self.parts) if isinstance(self.parts, tuple) else self.parts.size


@dataclass(frozen=True)
class Origin:
    """All that is known about getting a dataset.

    Attributes:
        sources: in the order in which they are tried.
        aliases: other names of its domains, in small letters without punctuation.
        variants: images per domain of other editions that are complete too.
    """

    sources: tuple[Source, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _drive(file_id: str, name: str, size: int, md5: str) -> Source:
    url = f"https://drive.google.com/uc?id={file_id}"
    return Source("Google Drive", (Archive(url, name, size, md5),))


def _hub(repo: str, size: int) -> Source:
    return Source(f"Hugging Face Hub {repo}", Hub(repo, size))


_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"
_VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
_DOMAIN_NET = (
    ("groundtruth/clipart.zip", 1_300 * _MB, "cd0d8f2d77a4e181449b78ed62bccf1e"),
    ("infograph.zip", 4_100 * _MB, "720380b86f9e6ab4805bb38b6bd135f8"),
    ("groundtruth/painting.zip", 3_700 * _MB, "1ae32cdb4f98fe7ab5eb0a351768abfd"),
    ("quickdraw.zip", 500 * _MB, "bdc1b6f09f277da1a263389efe0c7a66"),
    ("real.zip", 6_100 * _MB, "dcc47055e8935767784b7162e7c7cca6"),
    ("sketch.zip", 2_700 * _MB, "658d8009644040ff7ce30bb2e820850f"),
)


def _domain_net_files() -> tuple[Archive, ...]:
    archives = [
        Archive(_VISDA + path, path.rpartition("/")[2], size, md5)
        for path, size, md5 in _DOMAIN_NET
    ]
    names = [
        f"{archive.name.removesuffix('.zip')}_{part}.txt"
        for archive in archives
        for part in ("train", "test")
    ]
    lists = [Archive(f"{_VISDA}domainnet/txt/{name}", name, 10 * _MB) for name in names]
    return (*lists, *archives)


def _codalab(bundle: str, size: int) -> Origin:
    url = f"https://worksheets.codalab.org/rest/bundles/{bundle}/contents/blob/"
    archives = (Archive(url, "archive.tar.gz", size),)  # as the package `wilds` calls it
    return Origin(sources=(Source("worksheets.codalab.org", archives),))


_SVIRO = Archive(
    "https://sviro.kl.dfki.de/?wpdmdl=1731",
    "sviro_grayscale_rectangle_classification.zip",
    8 * _GB,  # not published: 56,000 images of 250×550 greys that are not compressed
)
_SPAWRIOUS = Archive(
    "https://www.dropbox.com/s/e40j553480h3f3s/spawrious224.tar.gz?dl=1",
    "spawrious224.tar.gz",
    15 * _GB,  # not published: 152,064 images of 100 KB
)

SOURCES: dict[str, Origin] = {
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
            Source(
                "storage.googleapis.com",
                (
                    Archive(
                        _LILA + "eccv_18_annotations.tar.gz",
                        *("eccv_18_annotations.tar.gz", 2_997_071),
                    ),
                    Archive(
                        _LILA + "eccv_18_all_images_sm.tar.gz",
                        *("eccv_18_all_images_sm.tar.gz", 6_492_615_601),
                    ),
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
            Source("csr.bu.edu", _domain_net_files()),
            _hub("wltjr1007/DomainNet", 19 * _GB),
        ),
    ),
    "SVIRO": Origin(sources=(Source("sviro.kl.dfki.de", (_SVIRO,)),)),
    "WILDSCamelyon": _codalab("0xe45e15f39fb54e9d9e919556af67aabe", 10_658_709_504),
    "WILDSFMoW": _codalab("0xaec91eb7c9d548ebb15e1b5e60f966ab", 53_893_324_800),
    **dict.fromkeys(SPAWRIOUS, Origin(sources=(Source("dropbox.com", (_SPAWRIOUS,)),))),
}
