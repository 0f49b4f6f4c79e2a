"""Batches that are predicted at the same time: the same values, in the same order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from domainbed.algorithms import ERM, T3A
from domainbed.algorithms.base import predictor_of
from domainbed.datasets.tensor_domain import TensorDomain
from domainbed.networks import MNIST_CNN
from domainbed.training import ranks
from domainbed.training.evaluation import EvaluationSplit, Evaluator
from domainbed.training.parallel_batches import number_at_once, predicted

HPARAMS = {"lr": 1e-3, "weight_decay": 0.0, "batch_size": 8, "nonlinear_classifier": False}
CPU = torch.device("cpu")


class Theirs(ERM):
    """An algorithm whose predictions may depend on those before, for all that we know."""

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return super().predict(x)


def algorithm(cls: type[ERM] = ERM) -> ERM:
    torch.manual_seed(0)
    return cls((2, 28, 28), 2, 2, {**HPARAMS, "t3a_supports": 5})


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_values_do_not_depend_on_how_many_are_predicted_at_once(
    monkeypatch: pytest.MonkeyPatch, two_cores: None
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(200, 2, 28, 28, generator=generator), torch.arange(200) % 2
    splits = [EvaluationSplit(0, "in", list(range(170))), EvaluationSplit(0, "out", [3, 1, 180])]
    evaluator = Evaluator([TensorDomain(x, y)], metrics=["accuracy", "loss"])
    done: list[tuple[int, int]] = []
    at_once = evaluator.evaluate(algorithm(), splits, 0, lambda *told: done.append(told))
    assert done == [(64, 173), (128, 173), (170, 173), (173, 173)]
    assert torch.get_num_threads() == 2  # those of the others are theirs
    monkeypatch.setattr(ranks, "_count", 2)
    in_turn = evaluator.evaluate(algorithm(), splits, 0)
    assert [value[:3] for value in at_once] == [value[:3] for value in in_turn]
    numbers = [value.value for value in at_once]
    assert numbers == pytest.approx([value.value for value in in_turn], rel=1e-6)


def test_where_it_is_done(monkeypatch: pytest.MonkeyPatch, two_cores: None) -> None:
    predict = predictor_of(algorithm())
    assert number_at_once(predict, CPU, 2) == 2
    assert number_at_once(predict, torch.device("cuda"), 2) == 1
    assert number_at_once(predictor_of(algorithm(Theirs)), CPU, 2) == 1
    assert number_at_once(predictor_of(algorithm(T3A)), CPU, 2) == 1
    assert number_at_once(lambda x: x, CPU, 2) == 1
    assert number_at_once(predict, CPU, 1) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert number_at_once(predict, CPU, 2) == 1
    monkeypatch.setattr(ranks, "_count", 2)
    assert number_at_once(predict, CPU, 2) == 1
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert number_at_once(predict, CPU, 2) == 1


def test_their_network_predicts_in_turn(two_cores: None) -> None:
    class TheirNetwork(MNIST_CNN):
        pass

    erm = algorithm()
    erm.network[0] = TheirNetwork((2, 28, 28))
    assert number_at_once(predictor_of(erm), CPU, 2) == 1
    of_features = ERM((5,), 2, 2, {**HPARAMS, "mlp_width": 4, "mlp_depth": 3, "mlp_dropout": 0.0})
    assert number_at_once(predictor_of(of_features), CPU, 2) == 1


def batches(read: list[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for number in range(12):
        read.append(number)
        yield torch.tensor([number]), torch.tensor([-number])


def test_results_come_in_order_and_few_batches_wait() -> None:
    read: list[int] = []
    seen = set()

    def predict(x: torch.Tensor) -> torch.Tensor:
        seen.add((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        time.sleep(0.02 if x.item() % 2 else 0)
        return 2 * x

    torch.set_num_threads(3)
    try:
        found = predicted(predict, batches(read), 3)
        assert [next(found)[0].item(), len(read)] == [0, 4]
        rest = [(logits.item(), labels.item()) for logits, labels in found]
    finally:
        torch.set_num_threads(1)
    assert rest == [(2 * number, -number) for number in range(1, 12)]
    assert 1 < len(seen) <= 3
    assert {told[1:] for told in seen} == {(1, False)}
    assert threading.get_ident() not in {told[0] for told in seen}


def test_nothing_is_predicted_after_the_end() -> None:
    seen: list[float] = []

    def predict(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        seen.append(x.item())
        return x

    found = predicted(predict, batches([]), 2)
    next(found)
    found.close()
    ended = len(seen)
    time.sleep(0.2)
    assert len(seen) == ended < 12


def test_what_goes_wrong_in_a_batch_is_raised() -> None:
    def predict(x: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"no good: {x.item()}")

    with pytest.raises(ValueError, match="no good: 0"):
        list(predicted(predict, batches([]), 2))
