"""How tensors of the CPU reach a GPU, of which there is none here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from domainbed.core.device import sent


class Spy:
    """Lists what is asked of a tensor."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def pin_memory(self) -> Spy:
        self.asked.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool) -> Spy:
        self.asked.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("device", "asked"),
    [
        ("cuda", ["pinned", ("cuda", True)]),
        ("mps", [("mps", True)]),
        ("cpu", [("cpu", True)]),
    ],
)
def test_only_cuda_wants_memory_that_stays(device: str, asked: list[Any]) -> None:
    spy = Spy()
    assert sent(spy, torch.device(device)) is spy  # type: ignore[arg-type]
    assert spy.asked == asked


def test_nothing_is_copied_on_the_cpu() -> None:
    x = torch.ones(2)
    assert sent(x, torch.device("cpu")) is x
