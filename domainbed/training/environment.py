"""Where a run ran: what a reader of its numbers may want to know about the machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import domainbed
from domainbed.errors import UserError

PROTOCOL_VERSION = 1
"""Raised whenever a change makes the same spec give other numbers."""

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn")


def choose_device(name: str | None) -> torch.device:
    """The named device, or by itself: CUDA, then MPS, then the CPU.

    Raises:
        UserError: the machine has no such device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used ({reason}): try --device cpu") from error
    return device


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and commit, as JSON values."""
    return {
        "domainbed": domainbed.__version__,
        "protocol_version": PROTOCOL_VERSION,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from, if it is one."""
    root = Path(domainbed.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
