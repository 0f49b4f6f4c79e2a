"""What a machine can do, and what a process's settings are as a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from domainbed.config.run_fields import RunOptions
from domainbed.core.device import convolutions_in_tf32, products_in_tf32, require_precision
from domainbed.errors import UserError
from domainbed.networks import MNIST_CNN
from domainbed.spec import RunSpec
from domainbed.training.machine import process_set_up, to_device
from domainbed.training.trainer import run

GPU = torch.device("cuda")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_tf32_takes_a_gpu_that_has_it(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    require_precision("float32", GPU)
    require_precision("bf16", GPU)
    if capability >= (8, 0):
        require_precision("tf32", GPU)
        return
    with pytest.raises(UserError, match=r"from Ampere on, and the device is Tesla T4: choose"):
        require_precision("tf32", GPU)


def test_a_cpu_has_no_tf32(tmp_path: Path) -> None:
    spec = RunSpec.create("ColoredDigits", "ERM", [0], precision="tf32", steps=1)
    with pytest.raises(UserError, match="the device is cpu: choose float32 or bf16") as caught:
        run(spec, tmp_path, RunOptions(device="cpu"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.jsonl").exists()


def test_a_run_finds_tf32_as_pytorch_has_it_by_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = True
    with process_set_up():
        assert convolutions_in_tf32()
        assert not products_in_tf32()
        torch.backends.cuda.matmul.allow_tf32 = True
    assert "code of this run changed TF32 in matrix products" in caplog.text
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("used", [False, True])
def test_a_run_begins_with_the_memory_of_gpus_that_others_held(
    used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("emptied"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    with process_set_up():
        assert asked == (["emptied", 0, 1] if used else [])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_order_in_memory_of_weights_and_of_what_they_give(precision):
    network, layouts = MNIST_CNN((2, 28, 28)), []
    network.bn0.register_forward_hook(lambda _, inputs, given: layouts.append(given.stride()))
    to_device(network, "cpu", precision)
    x = torch.rand(3, 2, 28, 28).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
        network(x)
    is_contiguous = precision == "bf16"
    assert network.conv2.weight.is_contiguous() == is_contiguous
    assert layouts == [(64 * 28 * 28, 28 * 28, 28, 1) if is_contiguous else (50176, 1, 1792, 64)]
