"""Features of a dataset's images, computed once by a frozen backbone.

They are computed on all cores or a GPU, in pieces that survive a kill, with the preprocessing that
the backbone was published with. A backbone with a text encoder also gives a zero-shot classifier.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from domainbed.config.run_fields import FeatureSource
from domainbed.core.files import (
    CHANGED,
    differs_from_digest,
    digest_of,
    file_digest,
    locked,
    read_sealed_json,
    sealed_json,
    write_digest,
    write_text,
    written_aside,
)
from domainbed.core.seeding import global_sources_kept, seed_hash
from domainbed.datasets.images.dataset_files import (
    Listing,
    UnreadableImage,
    in_order,
    make_once,
    mapped,
    read_image,
)
from domainbed.datasets.images.transforms import Augmentation, Crop, resize
from domainbed.errors import UserError, one_line
from domainbed.networks.open_clip_models import PREFIX, prompt_templates, text_classifier
from domainbed.networks.pretrained import (
    Preprocessing,
    headless_model,
    load_plain,
    preprocessing_of,
)

VERSION = 1
INDEX, FEATURES, PROGRESS = "index.json", "features.bin", "progress.json"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
# Inputs of one forward pass: fixed, since another number may round differently.
_BATCH_OF_A_CORE, _BATCH_OF_A_GPU = 16, 256
_SAVE_EVERY = 16  # pieces, which make a block


class FeatureExtractor:
    """A backbone in eval mode, and the preprocessing of its images.

    Attributes:
        source: names the backbone, its weights and the precision.
        preprocessing: of its images.
        width: d, of the features.

    Args:
        source: the backbone, its weights and the precision.
        device: what computes.
        size: height and width of its inputs; None for those that it was published with.

    Raises:
        UserError: no such backbone, its weights are not available, or it gives no vectors.
    """

    def __init__(
        self,
        source: FeatureSource,
        device: torch.device | str = "cpu",
        size: int | None = None,
    ) -> None:
        self.source, self.device = source, torch.device(device)
        with global_sources_kept():  # random weights, where there are no others, are the same
            torch.manual_seed(0)
            network = headless_model(source.backbone, source.weights)
        usual: Preprocessing = preprocessing_of(source.backbone)
        size = size or usual.size
        self.preprocessing = replace(
            usual, size=size, resized=round(usual.resized * size / usual.size)
        )
        # PyTorch's stubs know no overload with both a device and a memory format.
        self._network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        try:
            _, self.width = self.features(torch.zeros(1, 3, size, size)).shape
        except Exception as error:  # models raise different exceptions
            raise UserError(
                f"backbone {source.backbone!r} does not turn images of {size}×{size} into one "
                f"vector of features each ({one_line(error)}): choose another"
            ) from error

    def content_digest(self) -> str:
        """The SHA-256 of the weights themselves, by name."""
        digest = hashlib.sha256()
        for name, value in self._network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 to (3, size, size) float32: resized, centre-cropped, normalised."""
        wanted = self.preprocessing
        height, width = image.shape[1:]
        shorter = (height, width) if wanted.squash else [min(height, width)] * 2
        # Truncated and rounded as in torchvision.
        height, width = (wanted.resized * s // by for s, by in zip((height, width), shorter))
        resized = resize(image, height, width, wanted.interpolation)
        top, left = (round((side - wanted.size) / 2) for side in (height, width))
        return self._normalised(resized[:, top : top + wanted.size, left : left + wanted.size])

    def views(
        self, image: torch.Tensor, seeds: Sequence[int], crop: Crop = "image"
    ) -> list[torch.Tensor]:
        """As `image`, with the published training augmentation, once for each seed."""
        _, height, width = image.shape
        drawn = [
            Augmentation.draw(
                torch.tensor([[height, width]]),
                (height, width),
                torch.Generator().manual_seed(seed),
                crop,
            )
            for seed in seeds
        ]
        return [self._normalised(one.applied(image, 0, self.preprocessing.size)) for one in drawn]

    @torch.inference_mode()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, size, size) to (B, d), on the CPU, float32 or bfloat16."""
        x = x.to(self.device, memory_format=torch.channels_last)
        kept = DTYPES[self.source.precision]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=kept == torch.bfloat16):
            found = self._network(x)
        return found.to(kept).cpu()

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = (
            torch.tensor([255 * v for v in values])[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return x.float().sub_(mean).div_(std)


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
            index = read_sealed_json(folder / INDEX)
            shape = (index["images"], 1 + index["views"], index["width"])
            self.unreadable: list[int] = index["unreadable"]
            content = mapped(folder / FEATURES)
            self.values = content.view(DTYPES[index["precision"]]).view(shape)
            _compare(content, index["blocks"])
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{folder} is damaged, or of an earlier version: remove it, and it will be "
                "computed again"
            ) from error


def _compare(content: torch.Tensor, blocks: Sequence[tuple[int, str]]) -> None:
    """Compares bytes with the digests of blocks, each given with its end.

    Raises:
        ValueError: a block has another digest, or they do not end with the bytes.
    """
    ends = [0, *(end for end, _ in blocks)]
    parts = [content[start:end].numpy().data for start, end in pairwise(ends)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = list(pool.map(digest_of, parts))
    if ends[-1] != len(content) or digests != [digest for _, digest in blocks]:
        raise ValueError(CHANGED)


def features_folder(listing: Listing, cache: Path, source: FeatureSource) -> Path:
    """The folder of the features of exactly these files; its name changes with anything they use.

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
    made_by |= {} if listing.size is None else {"image_size": listing.size}
    digest = hashlib.md5(json.dumps([VERSION, listing.digest, made_by]).encode()).hexdigest()[:12]
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

    def fill(aside: Path) -> None:
        extractor = FeatureExtractor(source, device, listing.size)
        _Extraction(listing, extractor, aside, threads, skip_corrupt).run()

    make_once(folder, fill)
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
        """Computes what is missing."""
        progress = self._progress()
        blocks = progress["blocks"]
        starts = range(0, len(self.listing.files), self.per_piece)
        remaining = starts[len(blocks) * _SAVE_EVERY :]
        pieces = tqdm(
            in_order(self._piece, remaining, self.threads),
            f"features of {self.listing.name}",
            len(starts),
            disable=None,
            unit="image",
            unit_scale=self.per_piece,
            leave=False,
            initial=len(starts) - len(remaining),
        )
        computed = ((x if self.on_cpu else self._features(x), failed) for x, failed in pieces)
        with (self.folder / FEATURES).open("ab") as stream:
            stream.truncate(blocks[-1][0] if blocks else 0)
            while block := list(islice(computed, _SAVE_EVERY)):
                found, failed = zip(*block)
                content = torch.cat(found).view(torch.uint8).numpy().tobytes()
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
                blocks.append((stream.tell(), digest_of(content)))
                progress["unreadable"] += chain(*failed)
                write_text(self.folder / PROGRESS, sealed_json(progress))
        index = {**self.facts, "unreadable": progress["unreadable"], "blocks": blocks}
        write_text(self.folder / INDEX, sealed_json(index, indent=2))
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _progress(self) -> dict[str, Any]:
        """What a killed process wrote; nothing if it had other weights or another PyTorch."""
        facts = json.loads(json.dumps(self.facts))
        with suppress(OSError, ValueError, LookupError):  # missing, or damaged
            kept = read_sealed_json(self.folder / PROGRESS)
            written = (self.folder / FEATURES).stat().st_size
            if facts == kept["facts"] and written >= kept["blocks"][-1][0]:
                return kept
        return {"facts": facts, "blocks": [], "unreadable": []}

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """(n · (1 + views), 3, size, size) to (n, 1 + views, d)."""
        features = torch.cat([self.extractor.features(part) for part in x.split(self.batch)])
        return features.view(-1, self.per_image, self.extractor.width)

    def _piece(self, start: int) -> tuple[torch.Tensor, list[int]]:
        """What a thread does for the images from `start` on.

        Returns:
            On a CPU their features, for a GPU their inputs; and the numbers of unreadable images.
        """
        inputs: list[torch.Tensor] = []
        failed: list[int] = []
        for number in range(start, min(start + self.per_piece, len(self.listing.files))):
            try:
                image = read_image(self.listing.files[number], self.listing.decoding)
            except UnreadableImage:
                if not self.skip_corrupt:
                    raise
                failed.append(number)
                size = self.extractor.preprocessing.size
                inputs += [torch.zeros(3, size, size)] * self.per_image
                continue
            name = self.listing.relative[number]
            seeds = [seed_hash("view", name, view) for view in range(1, self.per_image)]
            inputs.append(self.extractor.image(image))
            inputs += self.extractor.views(image, seeds, self.listing.crops[number])
        x = torch.stack(inputs)
        return self._features(x) if self.on_cpu else x, failed


def reads_text(source: FeatureSource) -> bool:
    """Whether the backbone also has a text encoder."""
    return source.backbone.startswith(PREFIX)


def open_text_head(
    folder: Path, source: FeatureSource, class_names: Sequence[str], prompts: str
) -> tuple[torch.Tensor, float]:
    """The classifier of some classes, computed unless it already lies beside the features.

    Args:
        folder: of the images' features.
        source: what computed them; see `reads_text`.
        class_names: underscores in them are read as spaces.
        prompts: see `prompt_templates`.

    Returns:
        Of a classifier of features of length 1: the weights (C, d), of length 1, and the factor of
        their products with the features.

    Raises:
        UserError: the backbone has no text encoder, its weights are not available, or there
            are no such prompts.
    """
    if not reads_text(source):
        raise UserError(
            f"the backbone {source.backbone!r} has no text encoder: name one of open_clip "
            "('open_clip:ViT-B-16')",
            "features",
        )
    classes = [name.replace("_", " ") for name in class_names]
    templates = prompt_templates(prompts)
    key = hashlib.md5(json.dumps([classes, templates]).encode()).hexdigest()[:12]
    file = folder / f"text-{key}.pt"
    if file.exists() and differs_from_digest(file):
        raise UserError(f"{file} is damaged ({CHANGED}): remove it, and it will be computed again")
    with locked(file.with_suffix(".lock"), lambda: None):
        if not file.exists():
            weight, scale = text_classifier(source.backbone, source.weights, classes, templates)
            with written_aside(file) as aside:
                kept = {"classes": classes, "templates": list(templates)}
                torch.save({**kept, "weight": weight, "scale": scale}, aside)
                write_digest(file, aside)
    found = load_plain(file)
    return found["weight"], found["scale"]
