"""Computing features: every image once, on all cores or a GPU, in pieces that survive a kill."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from domainbed.config.run_fields import FeatureSource
from domainbed.core.files import file_digest, locked, write_text
from domainbed.core.seeding import view_seed
from domainbed.datasets.features.extractor import FeatureExtractor
from domainbed.datasets.features.stored import FEATURES, INDEX, StoredFeatures
from domainbed.datasets.images.decode import UnreadableImage, read_image
from domainbed.datasets.images.listing import Listing
from domainbed.datasets.images.threads import in_order
from domainbed.datasets.images.transforms import Crop
from domainbed.errors import UserError

VERSION = 1
PROGRESS = "progress.json"
# Inputs of one forward pass: fixed, since another number may round otherwise.
_BATCH_OF_A_CORE, _BATCH_OF_A_GPU = 16, 256
_SAVE_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Images:
    """What is asked for.

    Attributes:
        listing: the dataset's images.
        crops: of each image what the training augmentation cuts a part out of.
        skip_corrupt: leave images out that cannot be read, instead of raising an error.
    """

    listing: Listing
    crops: Sequence[Crop]
    skip_corrupt: bool = False


def features_folder(listing: Listing, cache: Path, source: FeatureSource) -> Path:
    """Where the features of these very files lie: its name changes with all that they depend on.

    A file of weights counts by its content.

    Raises:
        UserError: there is no such file.
    """
    made_by = {**source.model_dump(), "weights": weights_digest(source)}
    key = json.dumps([VERSION, listing.digest, made_by])
    digest = hashlib.md5(key.encode()).hexdigest()[:12]
    return cache / f"{listing.name}-features-{digest}"


def weights_digest(source: FeatureSource) -> str:
    """What stands for the weights: their name, or the SHA-256 of their file.

    Raises:
        UserError: there is no such file.
    """
    if source.weights in ("imagenet", "none"):
        return source.weights
    try:
        return f"sha256:{file_digest(Path(source.weights))}"
    except OSError as error:
        raise UserError(
            f"the weights {source.weights!r} cannot be read ({error.strerror}): give 'imagenet', "
            "'none' or the path of a state dict"
        ) from error


def open_features(
    images: Images,
    cache: Path,
    source: FeatureSource,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> StoredFeatures:
    """Opens the features of these very files, and computes them first if they are not there.

    Args:
        images: of which.
        cache: holds the folders of all datasets.
        source: the backbone, its weights, and how many augmented views.
        device: what computes.
        threads: that read images, and on a CPU compute.

    Raises:
        UserError: they cannot be computed or kept, are damaged, or lack images that may not be
            skipped.
    """
    folder = features_folder(images.listing, cache, source)
    if not folder.exists():
        _compute(images, folder, source, device, threads)
    stored = StoredFeatures(folder)
    if stored.unreadable and not images.skip_corrupt:
        first = images.listing.files[stored.unreadable[0]]
        raise UserError(
            f"image {first} cannot be read (one of {len(stored.unreadable)}): replace or remove "
            "it, or set the hyper-parameter corrupt_images to 'skip'"
        )
    return stored


def _compute(
    images: Images,
    folder: Path,
    source: FeatureSource,
    device: torch.device | str,
    threads: int,
) -> None:
    """Computes into `folder`, unless another process does so in the meantime."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(_say, f"Another process computes {folder.name}: waiting for it")
        with locked(folder.with_name(f"{folder.name}.lock"), waiting):
            if not folder.exists():
                extractor = FeatureExtractor(source, device)
                _Work(images, folder, extractor, threads).do()
    except OSError as error:
        raise UserError(
            f"features of {images.listing.name} cannot be kept in {str(folder.parent)!r} "
            f"({error.strerror}): name another folder in the variable DOMAINBED_CACHE_DIR"
        ) from error


class _Work:
    """One computation, in a folder aside that a later one goes on with."""

    def __init__(
        self, images: Images, folder: Path, extractor: FeatureExtractor, threads: int
    ) -> None:
        self.images, self.folder, self.extractor, self.threads = images, folder, extractor, threads
        self.aside = folder.with_name(f"{folder.name}.part")
        self.per_image = 1 + extractor.source.views
        on_cpu = extractor.device.type == "cpu"
        self.batch = _BATCH_OF_A_CORE if on_cpu else _BATCH_OF_A_GPU
        self.per_piece = max(1, self.batch // self.per_image)
        self.facts = self._facts()

    def _facts(self) -> dict[str, Any]:
        source, listing = self.extractor.source, self.images.listing
        return {
            "version": VERSION,
            "dataset": listing.name,
            "listing": listing.digest,
            **source.model_dump(),
            "content": self.extractor.content_digest(),
            "preprocessing": vars(self.extractor.preprocessing),
            "images": len(listing.files),
            "width": self.extractor.width,
            "made_with": {"torch": torch.__version__, "device": self.extractor.device.type},
        }

    def do(self) -> None:
        self.aside.mkdir(exist_ok=True)
        began = self._progress()
        with (self.aside / FEATURES).open("ab") as stream:
            stream.truncate(began["bytes"])
            unreadable = self._write(stream, began["pieces"], began["unreadable"])
        index = {**self.facts, "unreadable": unreadable}
        write_text(self.aside / INDEX, json.dumps(index, indent=2) + "\n")
        (self.aside / PROGRESS).unlink(missing_ok=True)
        self.aside.replace(self.folder)

    def _progress(self) -> dict[str, Any]:
        """What a killed process is known to have written; nothing of other weights or PyTorch."""
        with suppress(OSError, ValueError, KeyError):  # not there, or damaged
            kept = json.loads((self.aside / PROGRESS).read_text(encoding="utf-8"))
            of_same = json.loads(json.dumps(self.facts)) == kept["facts"]
            if of_same and (self.aside / FEATURES).stat().st_size >= kept["bytes"]:
                return kept
        return {"pieces": 0, "bytes": 0, "unreadable": []}

    def _write(self, stream: IO[bytes], done: int, unreadable: list[int]) -> list[int]:
        """The pieces that are left; returns the numbers of all images that cannot be read."""
        total, saved = len(self.images.listing.files), time.monotonic()
        starts = range(done * self.per_piece, total, self.per_piece)
        bar = tqdm(
            None, f"features of {self.images.listing.name}", total, disable=None, unit="image",
            leave=False, initial=min(total, starts.start),
        )  # fmt: skip
        for features, failed in self._computed(starts):
            stream.write(features.view(torch.uint8).numpy().tobytes())
            unreadable, done = unreadable + failed, done + 1
            bar.update(len(features))
            if time.monotonic() - saved > _SAVE_EVERY:
                self._save(stream, done, unreadable)
                saved = time.monotonic()
        bar.close()
        self._save(stream, done, unreadable)
        return unreadable

    def _save(self, stream: IO[bytes], pieces: int, unreadable: list[int]) -> None:
        stream.flush()
        os.fsync(stream.fileno())
        kept = {
            "facts": self.facts,
            "pieces": pieces,
            "bytes": stream.tell(),
            "unreadable": unreadable,
        }
        write_text(self.aside / PROGRESS, json.dumps(kept) + "\n")

    def _computed(self, starts: range) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Of each piece the features (n, 1 + views, d), and which of its images failed."""
        if self.extractor.device.type == "cpu":
            yield from in_order(self._piece, starts, self.threads)
            return
        for x, failed in in_order(self._inputs, starts, self.threads):
            yield self._features(x), failed

    def _piece(self, start: int) -> tuple[torch.Tensor, list[int]]:
        x, failed = self._inputs(start)
        return self._features(x), failed

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """(n · (1 + views), 3, size, size) to (n, 1 + views, d)."""
        features = torch.cat([self.extractor.features(part) for part in x.split(self.batch)])
        return features.view(-1, self.per_image, self.extractor.width)

    def _inputs(self, start: int) -> tuple[torch.Tensor, list[int]]:
        """All inputs of a piece, image by image, and the numbers of images that failed."""
        numbers = range(start, min(start + self.per_piece, len(self.images.listing.files)))
        inputs: list[torch.Tensor] = []
        failed: list[int] = []
        for number in numbers:
            try:
                inputs += self._inputs_of(number)
            except UnreadableImage:
                if not self.images.skip_corrupt:
                    raise
                failed.append(number)
                size = self.extractor.preprocessing.size
                inputs += [torch.zeros(3, size, size)] * self.per_image
        return torch.stack(inputs), failed

    def _inputs_of(self, number: int) -> list[torch.Tensor]:
        listing = self.images.listing
        image = read_image(listing.files[number])
        views = range(1, self.per_image)
        seeds = [view_seed(listing.relative[number], view) for view in views]
        own = self.extractor.image(image)
        return [own, *self.extractor.views(image, seeds, self.images.crops[number])]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
