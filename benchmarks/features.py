"""Images per second and core through a backbone: a plain loop, and what `domainbed features` does.

The plain loop is a DataLoader over PIL images with torchvision's transforms, and the model as it is
made. Both work in this process, on one thread, on PACS in the folder that DOMAINBED_DATA_DIR (or
--data_dir) names, and take turns; medians of the processor's time are compared.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from domainbed.features import FeatureExtractor
from domainbed.images.decode import read_image
from domainbed.networks.pretrained import headless_model
from domainbed.run_fields import FeatureSource

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default=os.environ.get("DOMAINBED_DATA_DIR", "data"))
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="none", help="they change no time")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    files = sorted((Path(args.data_dir) / "PACS").glob("*/*/*.jpg"))
    files = files[:: max(1, len(files) // args.images)][: args.images]
    if not files:
        print(f"no PACS in {args.data_dir!r}: nothing is measured")
        return
    torch.set_num_threads(1)
    source = FeatureSource(backbone=args.backbone, weights=args.weights)
    extractor = FeatureExtractor(source)
    loops = {
        **{f"plain loop, batches of {n}": plain(source, extractor, files, n) for n in (16, 64)},
        "features": ours(extractor, files),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.rounds):
        for name, loop in loops.items():
            began = time.process_time()
            loop()
            times[name].append(time.process_time() - began)
    rates = {name: len(files) / median(seconds) for name, seconds in times.items()}
    print("| way | images/s | ratio |\n|:--|--:|--:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {rate / next(iter(rates.values())):.1f} |")


def plain(
    source: FeatureSource, extractor: FeatureExtractor, files: list[Path], batch: int
) -> Callable[[], None]:
    wanted = extractor.preprocessing
    transform = transforms.Compose(
        [
            transforms.Resize(wanted.resized, transforms.InterpolationMode(wanted.interpolation)),
            transforms.CenterCrop(wanted.size),
            transforms.ToTensor(),
            transforms.Normalize(wanted.mean, wanted.std),
        ]
    )
    network = headless_model(source.backbone, source.weights).eval()

    def loop() -> None:
        images = [lambda file=file: transform(Image.open(file).convert("RGB")) for file in files]
        loader = DataLoader(images, batch, collate_fn=lambda made: torch.stack([m() for m in made]))
        with torch.no_grad():
            for x in loader:
                network(x)

    return loop


def ours(extractor: FeatureExtractor, files: list[Path]) -> Callable[[], None]:
    def loop() -> None:
        for start in range(0, len(files), BATCH):
            images = [extractor.image(read_image(file)) for file in files[start : start + BATCH]]
            extractor.features(torch.stack(images))

    return loop


if __name__ == "__main__":
    main()
