"""The settings of a run's own process, and the layout of networks on its device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from domainbed.core.device import convolutions_in_tf32, products_in_tf32
from domainbed.errors import log
from domainbed.networks import MNIST_CNN


def to_device(network: nn.Module, device: torch.device | str, precision: str) -> None:
    """Moves a network, with its weights in the memory layout that is fastest, or its own."""
    # PyTorch's stubs know no overload with both a device and a memory format.
    network.to(  # type: ignore[call-overload]
        device, memory_format=getattr(network, "memory_format", torch.channels_last)
    )
    if precision != "bf16" or torch.device(device).type != "cpu":
        return
    # There GroupNorm takes several times as long channels-last, more than convolutions win.
    for part in network.modules():
        if isinstance(part, MNIST_CNN):
            part.to(memory_format=torch.contiguous_format)


@contextmanager
def process_set_up(threads: int | None = None) -> Iterator[None]:
    """Sets PyTorch's settings of the whole process as every run finds them.

    Code of an earlier run in the same worker may have changed them.

    Args:
        threads: of PyTorch, during the run; None leaves them.
    """
    usual = torch.get_num_threads()
    torch.set_flush_denormal(False)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.backends.mkldnn.enabled = True  # type: ignore[assignment]  # a property of the module
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = True  # both as PyTorch has them by default
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(threads or usual)
    if torch.cuda.is_initialized():  # by earlier runs of the worker, which give back their memory
        torch.cuda.empty_cache()
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
    before = _process_settings()
    try:
        yield
    finally:
        if changed := [name for name, now in _process_settings().items() if now != before[name]]:
            log.warning(
                "warning: code of this run changed %s for the whole process: the run may not be "
                "repeatable; the next one finds them as usual", ", ".join(changed),
            )  # fmt: skip
        torch.set_num_threads(usual)


def _process_settings() -> dict[str, Any]:
    """Those that can be read, or tried."""
    tiny = torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float32)
    return {
        "the number of threads": torch.get_num_threads(),
        "the flushing of denormal numbers": bool(tiny / 4 == 0),
        "the default dtype": torch.get_default_dtype(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn's determinism": torch.backends.cudnn.deterministic,
        "cudnn's benchmark": torch.backends.cudnn.benchmark,
        "TF32 in convolutions": convolutions_in_tf32(),
        "TF32 in matrix products": products_in_tf32(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def peak_memory(device: torch.device) -> float:
    """The peak of GPU memory since the run began, in GiB; 0 without a GPU, as in DomainBed."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
