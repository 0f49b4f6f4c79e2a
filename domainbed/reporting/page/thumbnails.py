"""Small pictures of images that algorithms get wrong, inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd
from PIL import Image

from domainbed.reporting.misclassified import ALL, Misclassified

SIDE = 96
"""Pixels of the longer side of a picture."""

PER_LIST = 6
"""Pictures in a list: images of one test domain that the same algorithms get wrong."""

MAX_BYTES = 2_000_000
"""Of all pictures of a page, as text."""

_TRIED = 3 * PER_LIST  # images that cannot be read are left out of a list

ReadImages = Callable[[str, int, Sequence[str]], "list[Image.Image | None]"]
"""From a run's folder, a domain and the names of images in its predictions to the images.

None stands for each that cannot be read.
"""


class Thumbnail(NamedTuple):
    """A picture: its data URI, what stands for it, and the lines below it."""

    source: str
    alternative: str
    lines: list[str]


class Gallery(NamedTuple):
    """Pictures under a title."""

    title: str
    thumbnails: list[Thumbnail]


@dataclass
class Album:
    """The pictures of a page, within a budget.

    Attributes:
        read: gives the images.
        left: how many characters more there may be.
        notes: where nothing is shown, and why.
    """

    read: ReadImages
    left: int = MAX_BYTES
    notes: list[str] = field(default_factory=list)

    def galleries(self, found: Misclassified) -> Iterator[Gallery]:
        """For each test domain the images that all algorithms, or only one, get wrong."""
        for (dataset, env), images in found.images.groupby(["dataset", "test_env"], sort=False):
            place, of_trial = f"{dataset}, {images['domain'].iloc[0]}", ""
            if images["image"].str.isdigit().all():  # positions, of other images in other trials
                first = images["trial_seed"].min()
                images, of_trial = images[images["trial_seed"] == first], f" of trial {first}"
            for kind in (ALL, *found.algorithms):
                listed = _listed(images, kind)
                if listed.empty:
                    continue
                folder = found.folders[dataset, env, listed["trial_seed"].iloc[0]]
                thumbnails = self._thumbnails(listed, folder, int(env), found.algorithms)
                if thumbnails is None:
                    break
                who = f"{' and '.join(found.algorithms)} are" if kind == ALL else f"only {kind} is"
                many = f"{len(listed):,} image{'s' * (len(listed) > 1)}"
                yield Gallery(f"{place}: {who} wrong ({many}{of_trial})", thumbnails)

    def _thumbnails(
        self, listed: pd.DataFrame, folder: str, env: int, algorithms: Sequence[str]
    ) -> list[Thumbnail] | None:
        """The first that can be read; None if there is none, which a note says."""
        place = f"{listed['dataset'].iloc[0]}, {listed['domain'].iloc[0]}"
        if self.left <= 0:
            self.notes.append(f"{place}: no pictures, for the page has enough")
            return None
        tried = listed.head(_TRIED)
        found: list[Thumbnail] = []
        images = self.read(folder, env, tried["image"].tolist())
        for image, row in zip(images, tried.to_dict("records"), strict=True):
            if image is None or len(found) == PER_LIST or self.left <= 0:
                continue
            source = data_uri(image)
            self.left -= len(source)
            said = [f"{name}: {row[f'predicted_{name}']}" for name in algorithms]
            trials = f"in {row['times']} of {row['trials']} trials"
            alternative = f"{row['image']}, of class {row['label']}; {', '.join(said)}; {trials}"
            found.append(Thumbnail(source, alternative, [f"is {row['label']}", *said]))
        if not found:
            self.notes.append(f"{place}: no pictures, for its images cannot be read")
        return found or None


def _listed(images: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The images of a domain that these get wrong: in most trials first, the classes by turns.

    One row per image: the last trial in which it is so, in how many it is (`times`), and of how
    many (`trials`).
    """
    keys = ["image", "label"]
    trials = images.groupby(keys, sort=False).size().rename("trials")
    wrong = images[images["wrong"] == kind]
    times = wrong.groupby(keys, sort=False).size().rename("times")
    last = wrong.drop_duplicates(keys, keep="last")
    counted = last.join(times, on=keys).join(trials, on=keys)
    ordered = counted.sort_values(["times", "image"], ascending=[False, True])
    ordered["turn"] = ordered.groupby(["times", "label"], sort=False).cumcount()
    return ordered.sort_values(["times", "turn", "label"], ascending=[False, True, True])


def data_uri(image: Image.Image) -> str:
    """A picture of at most `SIDE` pixels a side; small images are enlarged, their pixels seen."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    if (factor := SIDE // max(small.size)) > 1:
        small = small.resize(
            (factor * small.width, factor * small.height), Image.Resampling.NEAREST
        )
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


@dataclass(frozen=True)
class FilesBelow:
    """Reads images that are files below a data folder, and no other file.

    The names are from a file of predictions, which may be anybody's.
    """

    data_dir: Path

    def __call__(self, folder: str, env: int, names: Sequence[str]) -> list[Image.Image | None]:
        return [self._image(PurePosixPath(name)) for name in names]

    def _image(self, name: PurePosixPath) -> Image.Image | None:
        file = Path(self.data_dir, name)
        if ".." in name.parts or not file.is_relative_to(self.data_dir):
            return None
        try:
            with Image.open(file) as image:
                image.draft("RGB", (SIDE, SIDE))  # a large JPEG is decoded small
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
