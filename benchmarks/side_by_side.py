"""What the benchmarks share: tasks that take turns, rows of one table, and processes' costs."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: was measured.
        ours, plain: of this package, and of the plain baseline; None where there is none.
        unit: of both.
        ratio: what the target is of; None for that of `plain` to `ours`.
        target: in words; empty for none.
    """

    what: str
    ours: float | None
    plain: float | None = None
    unit: str = "s"
    ratio: str | None = None
    target: str = ""

    def cells(self) -> list[str]:
        ours, plain = (
            "" if value is None else f"{value:.3g} {self.unit}" for value in (self.ours, self.plain)
        )
        ratio = self.ratio or (
            f"{self.plain / self.ours:.2f} times" if self.ours and self.plain else ""
        )
        return [self.what, ours, plain, ratio, self.target]


HEADER = ["what", "here", "plain", "ratio or share", "target"]


def table(rows: Iterable[Row]) -> str:
    """In Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The flag --device: by itself a GPU where there is one; refused where it is not there."""
    import torch

    from domainbed.core.device import choose_device
    from domainbed.errors import UserError

    def there(name: str) -> str:
        try:
            return str(choose_device(name))
        except UserError as error:
            raise SystemExit(f"error: {error}") from None

    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=there, default=usual, help="cpu or cuda")


def machine(device: str) -> str:
    """A sentence on what measures."""
    import torch

    processors = Path("/proc/cpuinfo")
    names = processors.read_text().splitlines() if processors.exists() else []
    found = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    name = found[0] if found else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    load = os.getloadavg()[0]
    return (
        f"{name}, {len(os.sched_getaffinity(0))} cores{gpu}; PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads; "
        f"load average {load:.1f}"
    )


def in_turns(
    tasks: Mapping[str, Callable[[], Any]],
    rounds: int,
    wait: Callable[[], Any] = lambda: None,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each task in each round.

    Args:
        tasks: by name.
        rounds: how many.
        wait: for a device that works on its own.
        warm: begin with a round that does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds + warm):
        for name, task in tasks.items():
            wait()
            began = time.perf_counter()
            task()
            wait()
            seconds[name].append(time.perf_counter() - began)
    return {name: taken[warm:] for name, taken in seconds.items()}


def ratio(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """The median over rounds of the ratio, as neighbours in time are disturbed alike."""
    return median(a / b for a, b in zip(seconds[of], seconds[to]))


class Cost(NamedTuple):
    """Of a process and its children: seconds by the clock, of the processor, and peak GB."""

    seconds: float
    cpu: float
    gigabytes: float


def process(*arguments: str, **environment: str) -> Cost:
    """The cost of `python ARGUMENTS`, which must succeed."""
    began = time.perf_counter()
    kept = {"PYTHONDONTWRITEBYTECODE": ""}  # compiled modules are, as where this was not set
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **kept, **environment},
    )
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = status
    if status:
        raise SystemExit(f"python {' '.join(arguments)} failed")
    seconds = time.perf_counter() - began
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)
