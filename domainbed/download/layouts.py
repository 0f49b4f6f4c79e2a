"""Finding a dataset's images in whatever a source, or a user, hands over.

Known are: image folders at any depth and under any of the names in use, with or without split
folders; TerraIncognita's camera-trap images with their annotations; DomainNet's raw archives with
the official lists; Parquet files of the Hugging Face Hub; and, at any depth, the folder of a
dataset that is kept as it was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from domainbed.core.image_files import folders, images, is_image
from domainbed.download import domain_net, hub_rows, terra
from domainbed.download.catalogue import Origin
from domainbed.download.found import Found, Unusable
from domainbed.download.tree import published_name

if TYPE_CHECKING:
    from domainbed.config.dataset_info import DatasetInfo

_SPLITS = {"full", "train", "val", "validation", "crossval", "test"}
_DEPTH = 5  # of folders around the domains; PACS is known as pacs_data/PACS/kfold


@dataclass
class Layout:
    """The images that were found, in a form that can be gone through once, and remarks on them."""

    found: Iterable[Found]
    complete: bool = True
    """Whether every published domain is there."""
    notes: list[str] = field(default_factory=list)
    tree: Path | None = None
    """The folder to keep as it is, in place of the single images."""


def find_tree(holds: Callable[[Path], bool], roots: Iterable[Path]) -> Layout | None:
    """The folder at or below `roots` that holds a dataset; nearer to the root wins.

    Raises:
        Unusable: several do.
    """
    level = [root for root in roots if root.is_dir()]
    for _ in range(_DEPTH):
        if held := [folder for folder in level if holds(folder)]:
            _refuse_several(held)
            return Layout((), tree=held[0])
        level = [inside for folder in level for inside in folders(folder)]
    return None


def _refuse_several(places: list[Path]) -> None:
    if len(places) > 1:
        first, second = map(str, places[:2])
        raise Unusable(f"the dataset lies in {first!r} and in {second!r}: name one")


def find_layout(
    name: str, info: DatasetInfo, origin: Origin, roots: Iterable[Path]
) -> Layout | None:
    """The images of dataset `name` below `roots`, or None where there are none.

    Raises:
        Unusable: several folders hold it, or Parquet files lack domain or label.
    """
    roots = list(roots)
    notes: list[str] = []
    if name == "TerraIncognita" and (annotations := terra.find_annotations(roots)):
        trapped = terra.subset(annotations, roots, info, notes)
        return Layout(trapped, notes=notes) if trapped else None
    if (layout := _image_folders(info, origin, roots)) is not None:
        if name == "DomainNet" and (listed := domain_net.read_lists(roots, info.domains)):
            layout.found = domain_net.keep_listed(layout.found, listed, layout.notes)
        return layout
    parquet = (file for root in roots for file in root.rglob("*.parquet"))
    if files := sorted(file for file in parquet if file.is_file()):
        return Layout(hub_rows.read(files, info, origin.aliases, notes), notes=notes)
    return None


def _image_folders(info: DatasetInfo, origin: Origin, roots: list[Path]) -> Layout | None:
    """The folder with the most of the published domains; nearer to the root wins."""
    candidates = [
        (len(names), -depth, folder)
        for root in roots
        for depth, folder, names in _with_domains(root, info, origin)
    ]
    if not candidates:
        return None
    number, depth, folder = max(candidates, key=lambda c: c[:2])
    others = [c[2] for c in candidates if c[:2] == (number, depth) and c[2] != folder]
    _refuse_several([folder, *others])
    return Layout(_in_folder(folder, info, origin), complete=number == len(info.domains))


def _with_domains(
    root: Path, info: DatasetInfo, origin: Origin
) -> Iterator[tuple[int, Path, set[str]]]:
    """Depth, path and published domains of every folder at or below `root` that has some."""
    level = [root]
    for depth in range(_DEPTH):
        below: list[Path] = []
        for folder in level:
            inside = folders(folder)
            named = [(published_name(p.name, info.domains, origin.aliases), p) for p in inside]
            names = {name for name, path in named if name and _has_images(path)}
            if names:
                yield depth, folder, names
            else:
                below += inside
        level = below


def _has_images(domain: Path) -> bool:
    return any(is_image(file.name) for name in _class_folders(domain) for file in name.rglob("*"))


def _class_folders(domain: Path) -> list[Path]:
    """Its folders, or those of its splits; `full` holds the images of all the others."""
    inside = folders(domain)
    splits = {path.name.lower(): path for path in inside}
    if not inside or not set(splits) <= _SPLITS:
        return inside
    parts = [splits["full"]] if "full" in splits else list(splits.values())
    return [name for part in parts for name in folders(part)]


def _in_folder(root: Path, info: DatasetInfo, origin: Origin) -> Iterator[Found]:
    for folder in folders(root):
        domain = published_name(folder.name, info.domains, origin.aliases) or folder.name
        for inside in _class_folders(folder):
            label = published_name(inside.name, info.classes or (), {}) or inside.name
            for file in images(inside):
                yield Found(domain, label, file.relative_to(inside).as_posix(), file)
