"""Where matrix products are in TF32: a setting of the process, which the CPU keeps and ignores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from domainbed.algorithms.cad import similarities
from domainbed.algorithms.coral import coral_penalty
from domainbed.algorithms.mmd import mmd_penalty
from domainbed.config.run_fields import RunOptions
from domainbed.core.device import (
    convolutions_in_tf32,
    full_precision,
    products_in_tf32,
    tf32_products,
)
from domainbed.gradients import gradient_variances
from domainbed.spec import RunSpec
from domainbed.training.experiment import build

CPU = torch.device("cpu")
BATCH = {"batch_size": 8}
PRODUCTS = {"mm", "bmm", "addmm", "matmul", "linear"}


class Products(TorchDispatchMode):
    """Notes of each product of matrices whether a GPU would compute it in TF32."""

    def __init__(self) -> None:
        super().__init__()
        self.in_tf32: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") in PRODUCTS:
            self.in_tf32.append(products_in_tf32())
        return func(*args, **(kwargs or {}))


def test_as_pytorch_has_it() -> None:
    assert not products_in_tf32()
    assert convolutions_in_tf32()


def test_it_lasts_as_long_as_the_block() -> None:
    with tf32_products():
        assert products_in_tf32()
        assert torch.get_float32_matmul_precision() == "high"
        with full_precision(CPU):
            assert not products_in_tf32()
        assert products_in_tf32()
    assert not products_in_tf32()
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_error_ends_it_too() -> None:
    with pytest.raises(KeyError), tf32_products():
        raise KeyError
    assert not products_in_tf32()


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="older PyTorch"
)
def test_code_that_uses_the_newer_setting() -> None:
    """From then on PyTorch refuses to read the older one."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with full_precision(CPU):
            assert not products_in_tf32()
        assert products_in_tf32()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert torch.get_float32_matmul_precision() == "highest"


Z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
STATISTICS: dict[str, Callable[[], Any]] = {
    "covariances": lambda: coral_penalty([Z[:4], Z[4:]]),
    "kernels": lambda: mmd_penalty([Z[:4], Z[4:]]),
    "similarities": lambda: similarities(Z, 1.0),
    "gradients": lambda: gradient_variances(torch.nn.Linear(4, 3), Z, torch.arange(8) % 3, [4, 4]),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_never_in_tf32(name: str) -> None:
    with tf32_products(), Products() as seen:
        STATISTICS[name]()
    assert seen.in_tf32
    assert not any(seen.in_tf32)


def test_the_updates_of_a_run_are() -> None:
    spec = RunSpec.create("ColoredDigits", "CORAL", [0], precision="tf32", hparams=BATCH)
    experiment = build(spec, RunOptions(device="cpu"))
    (minibatches,) = experiment.minibatches(range(1))
    with Products() as seen, experiment.precision():
        experiment.algorithm.update(minibatches)
    assert seen.in_tf32[0]  # the classifier's
    assert set(seen.in_tf32) == {True, False}  # the covariances are not
    assert not products_in_tf32()
    assert spec.run_id != RunSpec.create("ColoredDigits", "CORAL", [0], hparams=BATCH).run_id
