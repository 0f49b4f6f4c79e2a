"""Computing features once, on all cores or a GPU, in pieces that survive a kill."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from domainbed.config.run_fields import FeatureSource
from domainbed.core.files import file_digest, write_text
from domainbed.core.seeding import view_seed
from domainbed.datasets.features.extractor import FeatureExtractor
from domainbed.datasets.images.decode import UnreadableImage, read_image
from domainbed.datasets.images.listing import Listing, in_order, make_once, mapped
from domainbed.errors import UserError

VERSION = 1
INDEX, FEATURES, PROGRESS = "index.json", "features.bin", "progress.json"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Inputs of one forward pass: fixed, since another number may round differently.
_BATCH_OF_A_CORE, _BATCH_OF_A_GPU = 16, 256
_SAVE_EVERY = 5.0  # seconds


class StoredFeatures:
    """Features of all images of a dataset, in a file that every run maps into memory.

    Attributes:
        folder: where it lies.
        values: (n, 1 + views, d) of all images in the dataset's order, each one's own and those
            of its augmented views; to be read only.
        unreadable: numbers of the images that could not be read, whose features mean nothing.

    Raises:
        UserError: the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            shape = (index["images"], 1 + index["views"], index["width"])
            self.unreadable: list[int] = index["unreadable"]
            self.values = mapped(folder / FEATURES).view(DTYPES[index["precision"]]).view(shape)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{folder} is damaged: remove it, and it will be computed again"
            ) from error


def features_folder(listing: Listing, cache: Path, source: FeatureSource) -> Path:
    """Where the features of exactly these files lie: its name depends on all that they depend on.

    A file of weights counts by its content.

    Raises:
        UserError: there is no such file.
    """
    made_by = source.model_dump()
    if source.weights not in ("imagenet", "none"):
        try:
            made_by["weights"] = f"sha256:{file_digest(Path(source.weights))}"
        except OSError as error:
            raise UserError(
                f"the weights {source.weights!r} cannot be read ({error.strerror}): give "
                "'imagenet', 'none' or the path of a state dict"
            ) from error
    key = json.dumps([VERSION, listing.digest, made_by])
    digest = hashlib.md5(key.encode()).hexdigest()[:12]
    return cache / f"{listing.name}-features-{digest}"


def open_features(
    listing: Listing,
    cache: Path,
    source: FeatureSource,
    device: torch.device | str = "cpu",
    threads: int = 1,
    skip_corrupt: bool = False,
) -> StoredFeatures:
    """Opens the features of exactly these files, and computes them first if there are none.

    Args:
        listing: the images.
        cache: the folder of the features of all datasets.
        source: the backbone, its weights, and how many augmented views.
        device: what computes.
        threads: that read images, and on a CPU compute.
        skip_corrupt: leave images out that cannot be read, instead of raising an error.

    Raises:
        UserError: they cannot be computed or written, are damaged, or lack images that may not be
            skipped.
    """
    folder = features_folder(listing, cache, source)

    def make() -> None:
        extractor = FeatureExtractor(source, device)
        _Extraction(listing, extractor, folder, threads, skip_corrupt).run()

    if not folder.exists():
        make_once(folder, make)
    stored = StoredFeatures(folder)
    if not skip_corrupt:
        listing.require(stored.unreadable)
    return stored


class _Extraction:
    """One computation, in a folder beside the final one, from which a later one resumes."""

    def __init__(
        self,
        listing: Listing,
        extractor: FeatureExtractor,
        folder: Path,
        threads: int,
        skip_corrupt: bool,
    ) -> None:
        self.listing, self.extractor, self.folder = listing, extractor, folder
        self.threads, self.skip_corrupt = threads, skip_corrupt
        self.aside = folder.with_name(f"{folder.name}.part")
        self.per_image = 1 + extractor.source.views
        self.on_cpu = extractor.device.type == "cpu"
        self.batch = _BATCH_OF_A_CORE if self.on_cpu else _BATCH_OF_A_GPU
        self.per_piece = max(1, self.batch // self.per_image)
        self.facts: dict[str, Any] = {
            "version": VERSION,
            "dataset": listing.name,
            "listing": listing.digest,
            **extractor.source.model_dump(),
            "content": extractor.content_digest(),
            "preprocessing": vars(extractor.preprocessing),
            "images": len(listing.files),
            "width": extractor.width,
            "made_with": {"torch": torch.__version__, "device": extractor.device.type},
        }

    def run(self) -> None:
        """Computes what is missing, and moves the folder into place."""
        self.aside.mkdir(exist_ok=True)
        progress = self._progress()
        with (self.aside / FEATURES).open("ab") as stream:
            stream.truncate(progress["bytes"])
            self._write(stream, progress)
        index = {**self.facts, "unreadable": progress["unreadable"]}
        write_text(self.aside / INDEX, json.dumps(index, indent=2) + "\n")
        (self.aside / PROGRESS).unlink(missing_ok=True)
        self.aside.replace(self.folder)

    def _progress(self) -> dict[str, Any]:
        """What a killed process wrote; nothing if with other weights or another PyTorch."""
        facts = json.loads(json.dumps(self.facts))
        with suppress(OSError, ValueError, KeyError):  # missing, or damaged
            kept = json.loads((self.aside / PROGRESS).read_text(encoding="utf-8"))
            written = (self.aside / FEATURES).stat().st_size
            if facts == kept["facts"] and written >= kept["bytes"]:
                return kept
        return {"facts": facts, "pieces": 0, "bytes": 0, "unreadable": []}

    def _write(self, stream: IO[bytes], progress: dict[str, Any]) -> None:
        """Writes the remaining pieces, and notes them in `progress`."""
        total, saved = len(self.listing.files), time.monotonic()
        starts = range(progress["pieces"] * self.per_piece, total, self.per_piece)
        with tqdm(
            None,
            f"features of {self.listing.name}",
            total,
            disable=None,
            unit="image",
            leave=False,
            initial=min(total, starts.start),
        ) as bar:
            for features, failed in self._computed(starts):
                stream.write(features.view(torch.uint8).numpy().tobytes())
                progress["unreadable"] += failed
                progress["pieces"] += 1
                bar.update(len(features))
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save(stream, progress)
                    saved = time.monotonic()
        self._save(stream, progress)

    def _save(self, stream: IO[bytes], progress: dict[str, Any]) -> None:
        stream.flush()
        os.fsync(stream.fileno())
        progress["bytes"] = stream.tell()
        write_text(self.aside / PROGRESS, json.dumps(progress) + "\n")

    def _computed(self, starts: range) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Of each piece the features (n, 1 + views, d), and which of its images failed."""
        if self.on_cpu:
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
        inputs: list[torch.Tensor] = []
        failed: list[int] = []
        for number in range(start, min(start + self.per_piece, len(self.listing.files))):
            try:
                image = read_image(self.listing.files[number])
            except UnreadableImage:
                if not self.skip_corrupt:
                    raise
                failed.append(number)
                size = self.extractor.preprocessing.size
                inputs += [torch.zeros(3, size, size)] * self.per_image
                continue
            name = self.listing.relative[number]
            seeds = [view_seed(name, view) for view in range(1, self.per_image)]
            inputs.append(self.extractor.image(image))
            inputs += self.extractor.views(image, seeds, self.listing.crops[number])
        return torch.stack(inputs), failed
