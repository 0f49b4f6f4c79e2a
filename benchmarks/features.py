"""What features cost, and what they save: images per second, and runs per minute, of one core.

First images through a backbone: a plain loop, and what `domainbed data features` does. The plain
loop is a DataLoader over PIL images with torchvision's transforms, and the model as it is made.

Then runs of ERM's head for 201 updates: in a worker that stays, as sweeps do them; in a process for
each run; and in such a process without stored features, which would send the images of each
minibatch and each record through the backbone: the second way's time, and that of these images by
the plain loop above.

All is on one thread, on images of PACS in the folder that DOMAINBED_DATA_DIR (or --data_dir) names.
The ways take turns, and medians of the processor's time are compared.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from domainbed.config.run_fields import FeatureSource, RunOptions
from domainbed.datasets.features import FeatureExtractor
from domainbed.datasets.images.dataset_files import read_image
from domainbed.networks.pretrained import headless_model
from domainbed.spec import RunSpec
from domainbed.training import build, run

BATCH = 16
STEPS, CHECKPOINT_FREQ = 201, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default=os.environ.get("DOMAINBED_DATA_DIR", "data"))
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="none", help="they change no time")
    parser.add_argument("--images", type=int, default=84, help="about so many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=4, help="of each way; 0 for none")
    args = parser.parse_args()
    folders = sorted((Path(args.data_dir) / "PACS").glob("*/*/"))
    of_each = max(1, args.images // max(1, len(folders)))
    files = [file for folder in folders for file in sorted(folder.glob("*.jpg"))[:of_each]]
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
        print(f"| {name} | {rate:.1f} | {rate / next(iter(rates.values())):.1f} |", flush=True)
    if args.runs:
        per_image = 1 / max(rate for name, rate in rates.items() if name != "features")
        measure_runs(source, files, args.runs, per_image)


def measure_runs(source: FeatureSource, files: list[Path], runs: int, per_image: float) -> None:
    """Prints runs per minute of each way.

    Args:
        source: of the features.
        files: their images, as `…/DOMAIN/CLASS/NAME`.
        runs: of each way that is measured.
        per_image: seconds of one image through the backbone, without stored features.
    """
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["DOMAINBED_CACHE_DIR"] = str(root / "cache")
        for file in files:
            link = root / "images" / Path(*file.parts[-3:])
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        dataset = f"folder:{root / 'images'}"
        specs = [
            RunSpec.create(
                dataset, "ERM", [0], trial_seed=trial, features=source.model_dump(),
                steps=STEPS, checkpoint_freq=CHECKPOINT_FREQ,
            )
            for trial in range(runs + 1)
        ]  # fmt: skip
        kept = RunOptions(device="cpu", skip_model_save=True)
        run(specs[-1], root / "first", kept)  # computes the features
        times: dict[str, list[float]] = {"a worker that stays": [], "a process for each run": []}
        for number, spec in enumerate(specs[:runs]):
            began = time.process_time()
            run(spec, root / f"worker-{number}", kept)
            times["a worker that stays"].append(time.process_time() - began)
            times["a process for each run"].append(
                in_a_process(spec, source, str(root / f"process-{number}"))
            )
        seconds = {name: median(found) for name, found in times.items()}
        images = images_of_a_run(specs[0])
        seconds["the same, without stored features"] = (
            seconds["a process for each run"] + images * per_image
        )
    fastest = seconds["a worker that stays"]
    print(f"\n{images:,} images are seen by a run\n")
    print("| way | runs/minute | times the first's time |\n|:--|--:|--:|")
    for name, each in seconds.items():
        print(f"| {name} | {60 / each:.2f} | {each / fastest:.1f} |")


def in_a_process(spec: RunSpec, source: FeatureSource, folder: str) -> float:
    """The processor's time of `domainbed train`."""
    words = ["--dataset", spec.dataset, "--trial_seed", str(spec.trial_seed), "--device", "cpu"]
    words += ["--features", f"{{backbone: {source.backbone}, weights: {source.weights}}}"]
    words += ["--steps", str(STEPS), "--checkpoint_freq", str(CHECKPOINT_FREQ)]
    words += ["--skip_model_save", "--output_dir", folder]
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "domainbed", "train", *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def images_of_a_run(spec: RunSpec) -> int:
    """In minibatches, and in records: all out-splits, the test domain, at the end all splits."""
    splits = build(spec, RunOptions(device="cpu")).splits
    trained = STEPS * (len(splits) - 1) * spec.hparams["batch_size"]
    everything = sum(len(split.inside) + len(split.out) for split in splits)
    usual = sum(len(split.out) for split in splits) + len(splits[0].inside)
    return trained + (STEPS - 1) // CHECKPOINT_FREQ * usual + everything


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
