"""Evaluation: metrics against naive ones, and batches of one domain and one split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import build
from image_files import write_folder
from sklearn.metrics import cohen_kappa_score
from torch import nn

from domainbed.datasets import load_dataset
from domainbed.datasets.domain import Domain, LoadedDomain, TensorDomain
from domainbed.datasets.image_domains import PackedDomain
from domainbed.errors import UserError
from domainbed.metrics import METRICS, get_metric, label_type
from domainbed.training.evaluation import EvaluationSplit, Evaluator, splits_to_evaluate
from domainbed.training.sampling import Split

LOGITS = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.5, -1.0], [0.0, 0.0, 4.0]])
LABELS = torch.tensor([1, 1, 0, 2])


def of_samples(metric: str, labels: str, *data: torch.Tensor) -> torch.Tensor:
    per_sample = get_metric(metric).per_sample
    assert per_sample is not None
    return per_sample(label_type(labels))(*data)


def test_accuracy() -> None:
    assert of_samples("accuracy", "classes", LOGITS, LABELS).tolist() == [True, False, False, True]
    single = torch.tensor([[0.5], [-0.5], [0.5], [0.0]])
    binary = torch.tensor([1, 1, 0, 0])
    assert of_samples("accuracy", "binary", single, binary).tolist() == [True, False, False, True]
    several = torch.tensor([[2.0, -1.0, 3.0], [math.inf, -1.0, 1.0]])
    shares = of_samples("accuracy", "multilabel", several, torch.tensor([[1, 0, 0], [1, 0, 1]]))
    assert shares.tolist() == pytest.approx([2 / 3, 0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("label", [0, 1])
def test_a_prediction_that_is_no_number_is_wrong(bad: float, classes: int, label: int) -> None:
    logits = torch.full((2, classes), bad)
    labels = "binary" if classes == 1 else "classes"
    assert not of_samples("accuracy", labels, logits, torch.tensor([label] * 2)).any()


def test_loss() -> None:
    expected = [
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(LOGITS.tolist(), LABELS.tolist())
    ]
    assert of_samples("loss", "classes", LOGITS, LABELS).tolist() == pytest.approx(
        expected, rel=1e-5
    )
    single = of_samples("loss", "binary", torch.tensor([[2.0], [2.0]]), torch.tensor([1, 0]))
    assert single.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log1p(math.exp(2))])


def test_unknown_metric() -> None:
    with pytest.raises(UserError, match=r"unknown metric 'acuracy'.*accuracy"):
        Evaluator([], metrics=["acuracy"])


def test_which_splits() -> None:
    splits = [Split([1], [2], []), Split([3], [4], [5])]
    named = [(s.domain, s.name, s.indices) for s in splits_to_evaluate(splits, [1], False)]
    assert named == [(0, "out", [1]), (1, "in", [4]), (1, "out", [3]), (1, "uda", [5])]
    assert len(splits_to_evaluate(splits, [1], True)) == 5


class Spy(nn.Module):
    """Predicts class 1 for odd numbers, and notes its batches and mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.seen.append(x.flatten().tolist())
        odd = x % 2
        return torch.cat([1 - odd, odd], dim=1)


def numbers(offset: int, n: int = 300) -> TensorDomain:
    x = torch.arange(offset, offset + n)
    return TensorDomain(x[:, None].float(), (x // 2) % 2)


SPLITS = [
    EvaluationSplit(0, "in", list(range(100))),
    EvaluationSplit(0, "out", list(range(100, 231))),
    EvaluationSplit(1, "out", [5, 0, 7]),
]


def evaluated(**options: Any) -> tuple[Spy, list[Any]]:
    spy = Spy()
    evaluator = Evaluator([numbers(0), numbers(1000)], metrics=("accuracy", "loss"))
    return spy, evaluator.evaluate(spy, SPLITS, 0, **options)


def test_batches_are_of_one_domain_and_one_split() -> None:
    spy, _ = evaluated()
    assert [len(batch) for batch in spy.seen] == [64, 36, 64, 64, 3, 3]
    per_split = [spy.seen[:2], spy.seen[2:5], spy.seen[5:]]
    own = [[1000.0 * split.domain + i for i in split.indices] for split in SPLITS]
    assert [[x for batch in batches for x in batch] for batches in per_split] == own
    assert spy.training


def test_values_are_means_over_the_split() -> None:
    _, values = evaluated()
    naive = []
    for split in SPLITS:
        pairs = [(1000 * split.domain + i) for i in split.indices]
        right = [x % 2 == (x // 2) % 2 for x in pairs]
        losses = [math.log1p(math.exp(-1 if hit else 1)) for hit in right]
        naive.append((split.domain, split.name, "accuracy", sum(right) / len(right)))
        naive.append((split.domain, split.name, "loss", sum(losses) / len(losses)))
    assert [tuple(v)[:3] for v in values] == [n[:3] for n in naive]
    assert [v.value for v in values] == pytest.approx([n[3] for n in naive])
    exact = [v.value for v in values if v.metric == "accuracy"]
    assert exact == [n[3] for n in naive if n[2] == "accuracy"]


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    evaluated(on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 234) for done in (64, 100, 164, 228, 231, 234)]


def test_metrics_of_whole_splits() -> None:
    """They see all outputs, labels and groups of a split, and stand between those of samples."""
    x = torch.arange(300)
    groups = [str(number % 3) for number in range(300)]
    domain = TensorDomain(x[:, None].float(), (x // 2) % 2, {"site": groups})
    names = ("loss", "torchmetrics:CohenKappa", "accuracy_by_group", "accuracy")
    evaluator = Evaluator([domain], metrics=names, group="site")
    split = EvaluationSplit(0, "out", list(range(5, 290)))
    found = {v.metric: v.value for v in evaluator.evaluate(Spy(), [split], 0)}
    keys = ["accuracy_worst_group", "accuracy_mean_group", "accuracy_group_gap", "accuracy"]
    assert list(found) == ["loss", "torchmetrics_CohenKappa", *keys]
    right = [i % 2 == (i // 2) % 2 for i in split.indices]
    assert found["accuracy"] == pytest.approx(sum(right) / 285)
    assert found["torchmetrics_CohenKappa"] == pytest.approx(
        cohen_kappa_score([(i // 2) % 2 for i in split.indices], [i % 2 for i in split.indices]),
        abs=1e-6,
    )
    means = [
        sum(hit for hit, i in zip(right, split.indices) if i % 3 == group) / 95
        for group in range(3)
    ]
    assert found["accuracy_worst_group"] == pytest.approx(min(means))
    assert found["accuracy_mean_group"] == pytest.approx(sum(means) / 3)


def test_a_metric_that_is_not_defined(caplog: pytest.LogCaptureFixture) -> None:
    """NaN, and one warning however often it is evaluated."""
    domain = TensorDomain(torch.arange(20.0)[:, None], torch.zeros(20, dtype=torch.long))
    evaluator = Evaluator([domain], metrics=("auroc", "accuracy"))
    split = EvaluationSplit(0, "in", list(range(20)))
    for _ in range(2):
        undefined, accuracy = evaluator.evaluate(Spy(), [split], 0)
        assert math.isnan(undefined.value)
        assert accuracy.value == 0.5
    lines = [record.getMessage() for record in caplog.records]
    said = "warning: auroc is not defined on the in-split of domain 0: recorded without a value"
    assert lines == [said]


def test_one_value_for_a_batch_is_refused_at_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_score(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(dim=1)[:, 1].mean()

    for function, said in (
        (mean_score, r"a tensor of shape \(\)"),
        (lambda outputs, targets: 0.5, "0.5"),
        (lambda outputs, targets: outputs, r"a tensor of shape \(64, 2\)"),
    ):
        monkeypatch.setitem(METRICS._entries, "mean_score", function)
        spy = Spy()
        evaluator = Evaluator([numbers(0)], metrics=["mean_score"])
        expected = rf"'mean_score' returned {said} for a batch of 64: .* shape \(64,\)"
        with pytest.raises(UserError, match=expected):
            evaluator.evaluate(spy, SPLITS[:1], 0)
        assert len(spy.seen) == 1


def test_a_failing_prediction_leaves_the_algorithm_in_training_mode() -> None:
    spy = Spy()
    evaluator = Evaluator([numbers(0)])
    spy.predict = lambda x: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        evaluator.evaluate(spy, SPLITS[:1], 0)
    assert spy.training


BATCH_METHODS = [("ARM", "domainbed"), ("ARM", "paper"), ("MTL", "domainbed"), ("MTL", "paper")]


@pytest.mark.parametrize(("name", "fidelity"), BATCH_METHODS)
def test_methods_that_look_at_a_batch_see_one_split_of_one_domain(name: str, fidelity: str) -> None:
    """Other splits, and their order, change nothing; other images of the batch do."""
    algorithm = build(name, 2, shape=(1, 4, 4), fidelity=fidelity)
    images = torch.randn(2, 130, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    domains = [TensorDomain(x, torch.arange(130) % 3) for x in images]
    splits = [
        EvaluationSplit(0, "in", list(range(30, 130))),
        EvaluationSplit(0, "out", list(range(30))),
        EvaluationSplit(1, "out", list(range(70))),
    ]

    def losses(chosen: list[EvaluationSplit], of: list[TensorDomain]) -> dict[Any, float]:
        evaluated = Evaluator(of, metrics=["loss"]).evaluate(algorithm, chosen, 0)
        return {(v.domain, v.split): v.value for v in evaluated}

    together = losses(splits, domains)
    assert losses(splits[::-1], domains) == together
    assert [losses([split], domains) for split in splits] == [
        {key: value} for key, value in together.items()
    ]
    moved = [domains[0], TensorDomain(images[1] + 9, torch.arange(130) % 3)]
    other = losses(splits, moved)
    assert (other[0, "in"], other[0, "out"]) == (together[0, "in"], together[0, "out"])
    assert other[1, "out"] != together[1, "out"]


class Stored(LoadedDomain):
    """Images that are read one at a time, as files are."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> torch.Tensor:
        return self.y

    def read(self, index: int, augment: bool) -> tuple[torch.Tensor, int]:
        return self.x[index], int(self.y[index])


class BatchMeans(Spy):
    """Predicts from the mean of its batch, and notes it and the batch's size."""

    predicts_batches = True

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()  # sums round by the order of the memory
        mean = x.mean()
        self.seen.append([len(x), mean.item()])
        return torch.stack([x.mean(dim=(1, 2, 3)) - mean, x.mean(dim=(1, 2, 3)) + mean], dim=1)


def test_batches_do_not_depend_on_how_images_are_stored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", sizes=((8, 8),), domains="ab", per_class=35)
    loaded: Any = load_dataset(f"folder:{folder}", "", [0], {"data_path": "fast"}, 0)
    packed = loaded.datasets[0]
    assert isinstance(packed, PackedDomain)
    x, y = (torch.cat(part) for part in zip(*packed.evaluation_batches(range(70))))
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    storages: list[Domain] = [packed, TensorDomain(x, y), Stored(x, y)]
    for domain in storages:
        spy = BatchMeans()
        evaluator = Evaluator([domain], metrics=["loss"])
        values = evaluator.evaluate(spy, [EvaluationSplit(0, "in", order)], 0)
        found.append((spy.seen, [v.value for v in values]))
    assert [size for size, _ in found[0][0]] == [64, 6]
    assert found[1] == found[0]
    assert found[2] == found[0]
