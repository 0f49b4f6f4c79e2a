"""Runs on image files: packed and not, with any number of workers, with corrupt images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_folder
from torch import nn

from domainbed.datasets import load_dataset
from domainbed.datasets.image_domains import PackedDomain
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training.evaluation import EvaluationSplit, Evaluator
from domainbed.training.sampling import IndexDraws
from domainbed.training.sampling import minibatches as minibatches_of
from domainbed.training.trainer import RunOptions, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", sizes=((40, 50), (60, 44)))


def spec_of(folder: Path, **changes: Any) -> RunSpec:
    hparams = {"batch_size": 2, "resnet18": True, "weights": "none", "data_path": "fast"}
    hparams |= changes.pop("hparams", {})
    fields = {"steps": 3, "checkpoint_freq": 1, "holdout_fraction": 0.5, **changes}
    return RunSpec.create(f"folder:{folder}", "ERM", [0], hparams=hparams, **fields)


def train(spec: RunSpec, path: Path, **options: Any) -> list[dict[str, Any]]:
    given = {name: options.pop(name) for name in ("on_step",) if name in options}
    run(spec, RunFolder(path), RunOptions(**options), **given)
    records = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    for record in records:
        del record["step_time"], record["args"]["output_dir"]
    return records


def dataset_of(folder: Path, **hparams: Any) -> Any:
    return load_dataset(f"folder:{folder}", "", [0], {"data_path": "fast", **hparams}, 0)


def minibatches(
    folder: Path, steps: range, augment: bool = True, threads: int = 0, seed: int = 5
) -> list[Any]:
    draws = [IndexDraws(range(8), size, seed, domain) for domain, size in ((0, 3), (2, 4))]
    augmented = range(3) if augment else ()
    return list(minibatches_of(dataset_of(folder).datasets, draws, steps, augmented, threads))


def assert_equal(first: Any, second: Any) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        for (x, y), (other_x, other_y) in zip(one, other, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


def test_minibatches_are_a_function_of_the_step(folder: Path) -> None:
    whole = minibatches(folder, range(4))
    assert [[tuple(x.shape) for x, _ in step] for step in whole] == [
        [(3, 3, 224, 224), (4, 3, 224, 224)]
    ] * 4
    assert_equal(minibatches(folder, range(2, 4)), whole[2:])
    assert_equal(minibatches(folder, range(4), threads=3), whole)
    other = minibatches(folder, range(1), seed=1)
    assert not torch.equal(other[0][0][0], whole[0][0][0])


def test_minibatches_hold_the_drawn_images(folder: Path) -> None:
    dataset = dataset_of(folder)
    draws = IndexDraws(range(8), 4, 5, 2)
    for step, (_, (x, y)) in enumerate(minibatches(folder, range(3), augment=False)):
        chosen = draws.at(step).tolist()
        assert y.tolist() == [dataset[2].targets[i] for i in chosen]
        assert torch.equal(x, torch.stack([dataset[2][i][0] for i in chosen]))


def test_each_image_of_a_minibatch_is_augmented_differently(folder: Path) -> None:
    draws = [IndexDraws([3], 6, 5, 0)]
    source = minibatches_of(dataset_of(folder).datasets, draws, range(2), range(3))
    images = [x for step in source for x in step[0][0]]
    assert len({x.numpy().tobytes() for x in images}) == 12


class Brightness(nn.Module):
    """Predicts class 1 for images that are brighter than the middle; notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, mean], dim=1)


def test_evaluation_sees_the_images_of_the_split(folder: Path) -> None:
    dataset, network = dataset_of(folder), Brightness()
    domains = dataset.datasets
    split = EvaluationSplit(1, "out", [5, 0, 7])
    ((number, name, metric, accuracy),) = Evaluator(domains).evaluate(network, [split], 0)
    assert (number, name, metric) == (1, "out", "accuracy")
    expected = torch.stack([dataset[1][i][0] for i in split.indices])
    assert torch.equal(torch.cat(network.seen), expected)
    right = [(float(dataset[1][i][0].mean()) > 0) == dataset[1][i][1] for i in split.indices]
    assert accuracy == pytest.approx(sum(right) / 3)


def test_augmented_evaluation_depends_on_seed_and_step_alone(folder: Path) -> None:
    def seen(step: int, augmented: tuple[int, ...], threads: int = 0, seed: int = 0) -> Any:
        network = Brightness()
        split = EvaluationSplit(1, "out", [0, 1, 2, 3])
        evaluator = Evaluator(dataset_of(folder).datasets, threads, augmented, seed)
        evaluator.evaluate(network, [split], step)
        return torch.cat(network.seen)

    assert torch.equal(seen(0, (1,)), seen(0, (1,), threads=2))
    for other in (seen(1, (1,)), seen(0, ()), seen(0, (1,), seed=1)):
        assert not torch.equal(seen(0, (1,)), other)
    assert torch.equal(seen(0, ()), seen(9, (0, 2)))


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_an_interrupted_run_goes_on_exactly(form: str, folder: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == 2:
            raise Killed

    spec = spec_of(folder, augment_validation=True, hparams={"packed_format": form})
    whole = train(spec, tmp_path / "whole", num_workers=0)
    with pytest.raises(Killed):
        train(spec, tmp_path / "pieces", num_workers=2, on_step=kill)
    assert train(spec, tmp_path / "pieces", num_workers=1) == whole
    assert [record["step"] for record in whole] == [0, 1, 2]


def test_both_paths_are_different_runs(folder: Path) -> None:
    fast = spec_of(folder)
    exact = spec_of(folder, hparams={"data_path": "exact"})
    assert fast.run_id != exact.run_id
    with pytest.raises(UserError, match="'data_path' of ERM cannot be 'quick'"):
        spec_of(folder, hparams={"data_path": "quick"})


def test_unlabeled_images_and_class_balance(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(
        folder, steps=1, task="domain_adaptation", uda_holdout_fraction=0.5,
        hparams={"class_balanced": True},
    )  # fmt: skip
    assert "env0_uda_acc" in train(spec, tmp_path / "run")[0]


def corrupted(folder: Path) -> Path:
    bad = folder / "b" / "dog" / "1.png"
    bad.write_bytes(b"no image")
    return bad


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_image_is_named(folder: Path, tmp_path: Path, num_workers: int) -> None:
    corrupted(folder)
    spec = spec_of(folder, hparams={"data_path": "exact", "batch_size": 8})
    with pytest.raises(UserError) as error:
        train(spec, tmp_path / "run", num_workers=num_workers)
    assert "b/dog/1.png cannot be read" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["exact", "fast"])
def test_corrupt_images_are_skipped_by_choice(path: str, folder: Path, tmp_path: Path) -> None:
    hparams = {"data_path": path, "corrupt_images": "skip"}
    corrupted(folder)
    first = train(spec_of(folder, hparams=hparams, steps=1), tmp_path / "first", num_workers=0)
    again = train(spec_of(folder, hparams=hparams, steps=1), tmp_path / "again", num_workers=2)
    assert first == again
    out = (tmp_path / "first" / "out.txt").read_text()
    assert "Images skipped, because they cannot be read: 1" in out


def test_too_few_readable_images(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "b").rglob("*.png"):
        file.write_bytes(b"")
    spec = spec_of(folder, hparams={"corrupt_images": "skip"})
    with pytest.raises(UserError, match=r"domain 1 of .*: no image of class 'cat' can be read"):
        train(spec, tmp_path / "run")


def test_others_may_read_packed_images_one_by_one(folder: Path) -> None:
    domain = dataset_of(folder)[0]
    assert isinstance(domain, PackedDomain)
    x, y = next(iter(torch.utils.data.DataLoader(domain, batch_size=3, num_workers=1)))
    assert torch.equal(x, torch.stack([domain[i][0] for i in range(3)]))
    assert y.tolist() == domain.targets[:3]
