"""PyTorch's device `meta` in a GPU's place.

It computes nothing, so to ask it for a number is an error; and what is sent there can be seen.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FAR = torch.device("meta")
_MAKE_AND_COPY = (torch.tensor, torch.as_tensor, torch.asarray)


class Sent(TorchDispatchMode):
    """Lists copies from the CPU that Python would wait for, each as the place in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name == "_to_copy":
            waits = _goes_far(args[0], result) and not kwargs.get("non_blocking")
        elif name == "copy_":
            waits = _goes_far(args[1], args[0]) and not (*args, *kwargs.values())[2:]
        else:
            # What CUDA itself would fetch before it picks elements.
            picked = args[1] if name in ("index", "index_put", "index_put_") else ()
            waits = any(own is not None and _goes_far(own, args[0]) for own in picked)
        if waits:
            self.note()
        return result

    def note(self) -> None:
        """The line of this package that is being run, or of what calls it."""
        frames = [f for f in traceback.extract_stack() if "far_device" not in f.filename]
        own = [f for f in frames if "/domainbed/" in f.filename] or frames
        self.waited.append(f"{own[-1].filename}:{own[-1].lineno} {own[-1].line}")


class _Made(TorchFunctionMode):
    """Notes tensors that are made of Python's numbers and then copied."""

    def __init__(self, sent: Sent) -> None:
        super().__init__()
        self._sent = sent

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKE_AND_COPY and torch.device(kwargs.get("device") or "cpu") == FAR:
            self._sent.note()
        return func(*args, **kwargs)


def _goes_far(source: torch.Tensor, target: torch.Tensor) -> bool:
    return source.device.type == "cpu" and target.device == FAR


@contextmanager
def sent_far() -> Iterator[Sent]:
    """Where copies are listed. The device knows no autocast, which is left out."""
    mode = Sent()
    with (
        patch("domainbed.core.device.torch.autocast", lambda *args, **kwargs: nullcontext()),
        _Made(mode),
        mode,
    ):
        yield mode
