"""Damages every kind of file that a number is read from, and counts what becomes of the numbers.

A small sweep is made with all that it may leave: finished and unfinished runs, an average, weights,
predictions, an export, its unpacked copy, packed runs, the cache of records; and features, packs,
lists of unreadable images, classifiers of texts and results of the IRM experiment. Each file is
damaged in many ways (a bit, some bits, a byte, a zeroed or repeated stretch, a cut, something
appended), and what reads it must give the same, or say something: a line that names a file of that
folder, or an error. Whatever else it gives is silent. The last line counts.

    python tests/faults/damage.py --times 300
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from image_files import write_folder

from domainbed import datasets
from domainbed.config.run_fields import FeatureSource, RunOptions
from domainbed.core.files import sealed_json
from domainbed.datasets import features
from domainbed.datasets.image_domains import listing_of
from domainbed.datasets.images.dataset_files import unreadable_images
from domainbed.datasets.images.packs import PackOptions, open_pack
from domainbed.errors import UserError
from domainbed.experiments.irm_colored_mnist import results as irm
from domainbed.experiments.irm_colored_mnist.settings import Config
from domainbed.reporting import load_records, planned_gaps, planned_selection
from domainbed.reporting.explain import survey
from domainbed.runs import load, packed
from domainbed.runs.exported import unpacked, write_export
from domainbed.runs.folder import RunFolder
from domainbed.runs.packing import pack
from domainbed.runs.predictions import read_predictions
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.sweeps.finished import average_runs
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.store import Store
from domainbed.training import checkpoint, run
from domainbed.training.artifacts import read_model
from domainbed.training.trained import read_spec

NOTICED, SAME, SILENT, TRACEBACK = "noticed", "same", "SILENT", "TRACEBACK"

# Said of a mark that is cut just where those of earlier versions ended: its numbers still count.
NO_DIGEST = "damage to their records may not be noticed"

Read = Callable[[], Any]


@dataclass(frozen=True)
class Kind:
    """Files that are read together.

    Attributes:
        name: of the kind.
        files: to damage, one at a time.
        read: gives all numbers, names and settings that are read from them.
    """

    name: str
    files: list[Path]
    read: Read


# ---- damages ----


def damages(content: bytes, rng: random.Random) -> Iterator[bytes]:
    """Without end, other bytes than `content`."""
    ways = (_bit, _bit, _bit, _bits, _byte, _zeros, _repeated, _cut, _longer)
    while True:
        changed = rng.choice(ways)(bytearray(content), rng)
        if changed != content:
            yield bytes(changed)


def _bit(content: bytearray, rng: random.Random) -> bytearray:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _bits(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(2, 8)):
        _bit(content, rng)
    return content


def _byte(content: bytearray, rng: random.Random) -> bytearray:
    content[rng.randrange(len(content))] = rng.randrange(256)
    return content


def _zeros(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice((1, 16, 512, 4096)))
    content[start:stop] = bytes(stop - start)
    return content


def _repeated(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    block = content[start : start + rng.choice((1, 16, 512, 4096))]
    to = rng.randrange(len(content))
    return content[:to] + block + content[to + len(block) * rng.randint(0, 1) :]


def _cut(content: bytearray, rng: random.Random) -> bytearray:
    return content[: rng.randrange(len(content))]


def _longer(content: bytearray, rng: random.Random) -> bytearray:
    return content + rng.randbytes(rng.choice((1, 16, 4096)))


# ---- what is read ----


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in each part, NaN to NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def outcome(kind: Kind, expected: Any, say: Callable[[str], None] = lambda line: None) -> str:
    """What becomes of a kind's numbers after some damage."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logging.getLogger().addHandler(handler)
    try:
        with redirect_stderr(told), redirect_stdout(told):
            found = kind.read()
    except UserError:
        return NOTICED
    except Exception as error:
        say(f"{kind.name}: {type(error).__name__}: {error}")
        return TRACEBACK
    finally:
        logging.getLogger().removeHandler(handler)
    if same(found, expected):
        return SAME
    says = [*(file.parent.name for file in kind.files), NO_DIGEST]
    return NOTICED if any(words in told.getvalue() for words in says) else SILENT


def campaign(
    kind: Kind, times: int, rng: random.Random, say: Callable[[str], None] = print
) -> Counter[str]:
    """Damages each file of a kind `times` times; it is whole afterwards."""
    expected, counts = kind.read(), Counter[str]()
    assert outcome(kind, object()) == SILENT  # nothing is said while all is whole
    for file in kind.files:
        whole = file.read_bytes()
        for number, changed in zip(range(times), damages(whole, rng)):
            _replace(file, changed)
            found = outcome(kind, expected, say)
            if found == SILENT:
                say(f"SILENT: {kind.name}, {file.name}, damage {number}")
            counts[found] += 1
        _replace(file, whole)
    assert same(kind.read(), expected)
    return counts


def _replace(file: Path, content: bytes) -> None:
    """By another file: what is mapped into memory is not cut under it."""
    aside = file.with_name("aside")
    aside.write_bytes(content)
    aside.replace(file)


# ---- the world ----


def world(root: Path) -> list[Kind]:
    """Makes all files in a folder, and says what reads them."""
    sweep, cache = root / "sweep", root / "cache"
    os.environ |= {"DOMAINBED_CACHE_DIR": str(cache), "DOMAINBED_CHECKPOINT_SECONDS": "1e-9"}
    file = root / "config.yaml"
    file.write_text(
        f"datasets: ColoredDigits\nalgorithms: [ERM, MLDG]\ntest_envs: [[0], [0, 1]]\n"
        f"trials: 1\nhparams_seeds: 2\nselection: [training-domain]\nsteps: 4\n"
        f"checkpoint_freq: 2\naverages: [ema]\nsave_predictions: true\noutput_dir: {sweep}\n"
        "initial_weights: shared\nhparams: {batch_size: 8}\n"
        "launcher: {name: debug}\n"
    )
    prepare(load_config(file, {})).execute()
    list(average_runs(sweep, "ensemble", ["ERM"]))
    finished = [f for f in Store(sweep).run_folders() if f.is_done()]
    unfinished = _unfinished(root / "unfinished")
    return [
        *_of_sweep(sweep, finished[0]),
        *_of_unfinished(unfinished),
        *_of_export(root, sweep, finished),
        _of_packed(root, sweep),
        *_of_images(root, cache),
        _of_irm(root),
    ]


def _of_sweep(sweep: Path, folder: RunFolder) -> list[Kind]:
    store, spec = Store(sweep), read_spec(folder)
    average = next(sweep.glob("average-*"))

    def plan() -> Any:
        found = survey(load_records(sweep).runs, sweep)
        return store.planned(), found.runs, planned_gaps(sweep)

    def config() -> Any:
        return load_config(store.config, {}).as_yaml_value(), planned_selection(sweep)

    def cached() -> Any:
        with mock.patch.object(load, "LEAST_FILES", 1), mock.patch.object(load, "_SETTLED", -1e12):
            return _records(sweep)

    cached()
    arrow = list((Path(os.environ["DOMAINBED_CACHE_DIR"]) / "records").glob("*.arrow"))
    return [
        Kind("records", [folder.results], lambda: _records(sweep)),
        Kind("mark of the end", [folder.done], lambda: _records(sweep)),
        Kind(
            "records of an average",
            [average / "results.jsonl", average / "done"],
            lambda: _records(sweep),
        ),
        Kind("cache of records", arrow, cached),
        Kind("run.json", [folder.spec], lambda: (read_spec(folder).as_json(), _records(sweep))),
        Kind(
            "environment.json", [folder.environment], lambda: folder.read_json(folder.environment)
        ),
        Kind(
            "predictions",
            [folder.predictions, folder.path / "predictions.parquet.sha256"],
            lambda: [read_predictions(folder.predictions, d, "in") for d in range(3)],
        ),
        Kind(
            "weights",
            [folder.model, folder.path / "model.pkl.sha256"],
            lambda: read_model(folder.model, spec.run_id),
        ),
        Kind("plan.json", [store.plan], plan),
        Kind("sweep.yaml", [store.config], config),
    ]


def _records(folder: Path) -> Any:
    found = load_records(folder)
    return found.runs, found.values


class _Killed(BaseException):
    pass


SPEC = {"steps": 6, "checkpoint_freq": 2, "hparams": {"batch_size": 8}}


def _unfinished(path: Path) -> RunFolder:
    def on_step(taken: int) -> None:
        if taken == 4:
            raise _Killed

    spec = RunSpec.create("ColoredDigits", "ERM", [0], **SPEC)
    try:
        run(spec, path, RunOptions(), on_step=on_step)
    except _Killed:
        return RunFolder(path)
    raise AssertionError("it was not killed")


def _of_unfinished(folder: RunFolder) -> list[Kind]:
    spec = RunSpec.create("ColoredDigits", "ERM", [0], **SPEC)
    said: list[str] = []

    def resumed() -> Any:
        state: list[Any] = []
        with mock.patch.object(checkpoint, "restore", lambda _, state_: state.append(state_)):
            progress = checkpoint.load(
                folder, spec.run_id, lambda stage: torch.nn.Module(), say=said.append
            )
        for line in said:
            logging.warning(line)
        said.clear()
        return asdict(progress), state

    return [
        Kind("records of an unfinished run", [folder.results], lambda: _records(folder.path)),
        Kind("checkpoint", [folder.checkpoint], resumed),
        Kind(
            "environment.json of an unfinished run",
            [folder.environment],
            lambda: folder.read_json(folder.environment),
        ),
    ]


def _of_packed(root: Path, sweep: Path) -> Kind:
    """A copy of the sweep whose runs are packed."""
    copy = root / "of_packs"
    shutil.copytree(sweep, copy)
    pack(copy)

    def read() -> Any:
        for kept in (packed.title_of, packed.read_pack, packed.recently):
            kept.cache_clear()
        folders = Store(copy).run_folders()
        return _records(copy), [read_spec(folder).as_json() for folder in folders[:1]]

    return Kind("packed runs", packed.packs_in(copy), read)


def _of_export(root: Path, sweep: Path, finished: list[RunFolder]) -> list[Kind]:
    export = root / "export.parquet"
    write_export(sweep, [folder.path for folder in finished], export)

    def files() -> Any:
        folder = unpacked(export)
        packs = [packed.read_pack(file) for file in packed.packs_in(folder)]
        return (folder / "plan.json").read_bytes(), packs

    def read() -> Any:
        for kept in (packed.title_of, packed.read_pack, packed.recently):
            kept.cache_clear()
        return _records(export), planned_gaps(export)

    copy = unpacked(export)
    return [
        Kind("export", [export], files),
        Kind("unpacked export", [*packed.packs_in(copy), copy / "plan.json"], read),
    ]


def _of_images(root: Path, cache: Path) -> list[Kind]:
    folder = write_folder(root / "images", sizes=((40, 50), (60, 60)), per_class=2)
    (folder / "b" / "dog" / "1.png").write_bytes(b"no image")
    dataset = datasets.get_dataset_class(f"folder:{folder}")("", [0], {})
    listing = listing_of(dataset, "images", {}, cache)
    source = FeatureSource(backbone="squeezenet1_1", weights="none")
    options = PackOptions(size=224, skip_corrupt=True)

    def stored() -> Any:
        found = features.open_features(listing, cache, source, skip_corrupt=True)
        return found.values.clone(), found.unreadable

    def packed() -> Any:
        pack = open_pack(listing, cache, options)
        whole = [number for number in range(len(pack)) if number not in pack.unreadable]
        return pack.sizes, pack.unreadable, [pack.image(number).clone() for number in whole]

    def text() -> Any:
        source = FeatureSource(backbone="open_clip:ViT-B-16", weights="none")
        head = (torch.arange(6.0).view(2, 3), 100.0)
        with mock.patch.object(features, "text_classifier", return_value=head):
            return features.open_text_head(cache, source, ["cat", "dog"], "photo")

    stored(), packed(), text(), unreadable_images(listing, cache, 0)
    (of_features,) = (path.parent for path in cache.glob("images-*/features.bin"))
    (of_pack,) = (path.parent for path in cache.glob("images-*/images.bin"))
    return [
        Kind("features", [of_features / "features.bin", of_features / "index.json"], stored),
        Kind("pack", [of_pack / n for n in ("images.bin", "images.csv", "index.json")], packed),
        Kind(
            "list of unreadable images",
            list(cache.glob("images-unreadable-*.json")),
            lambda: unreadable_images(listing, cache, 0),
        ),
        Kind("classifier of texts", [*cache.glob("text-*.pt"), *cache.glob("text-*.sha256")], text),
    ]


def _of_irm(root: Path) -> Kind:
    config = Config(output_dir=str(root / "irm"), restarts=1, algorithms=("ERM",))
    file = irm.result_file(config, irm.planned(config)[0])
    file.parent.mkdir(parents=True)
    accuracies = {"train_acc": 0.75, "test_acc": 0.625, "gray_test_acc": 0.5}
    names = {"algorithm": "ERM", "restart": 0, "settings": {}, "seeds": {}, "seconds": 1.5}
    file.write_text(sealed_json({**names, **accuracies}, indent=2))
    return Kind("result of the IRM experiment", [file], lambda: irm.read_results(config))


@contextmanager
def temporary_world() -> Iterator[list[Kind]]:
    """`world` in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as root, mock.patch.dict(os.environ):
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            kinds = world(Path(root))
        yield kinds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=300, help="damages of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="only these")
    args = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    columns = (NOTICED, SAME, SILENT, TRACEBACK)
    total: Counter[str] = Counter()
    with temporary_world() as kinds:
        print(f"{'kind':40}{'damages':>10}" + "".join(f"{name:>12}" for name in columns))
        for kind in kinds:
            if args.kinds and kind.name not in args.kinds:
                continue
            counts = campaign(kind, args.times, random.Random(args.seed))
            total += counts
            cells = "".join(f"{counts[name]:12}" for name in columns)
            print(f"{kind.name:40}{counts.total():10}{cells}", flush=True)
    cells = ", ".join(f"{total[name]} {name}" for name in columns)
    print(f"damage campaign: {total.total()} damages, {cells}")
    return 1 if total[SILENT] or total[TRACEBACK] else 0


if __name__ == "__main__":
    sys.exit(main())
