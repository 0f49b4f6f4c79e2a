"""Predicting several batches at the same time, each on one core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import MethodType

import torch

from domainbed.datasets.domain import Minibatch
from domainbed.training import ranks

Predict = Callable[[torch.Tensor], torch.Tensor]
Sums = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def number_at_once(predict: Predict, device: torch.device) -> int:
    """How many batches are best predicted at the same time.

    On a CPU with several cores it is one for each: a core with a batch of its own waits for no
    other. It is one in all where predictions may depend on those before, as those of code from
    elsewhere may; where processes share each pass; and in bf16, which would hardly gain.
    """
    if device.type != "cpu" or ranks.count() > 1 or torch.is_autocast_enabled("cpu"):
        return 1
    function = predict.__func__ if isinstance(predict, MethodType) else None
    is_known = getattr(function, "__module__", "").startswith("domainbed.algorithms.")
    is_alone = is_known and getattr(function, "__name__", "") == "predict"
    return torch.get_num_threads() if is_alone else 1


def each(
    sums: Sums, batches: Iterable[Minibatch], at_once: int
) -> Iterator[tuple[torch.Tensor, int]]:
    """`sums(x, y)` of each batch in order, and its number of images; without gradients."""
    if at_once == 1:
        for x, y in batches:
            yield sums(x, y), len(y)
        return
    waiting: deque[tuple[Future[torch.Tensor], int]] = deque()
    in_thread = torch.no_grad()(sums)  # which a new thread does not know of
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for x, y in batches:
            waiting.append((pool.submit(in_thread, x, y), len(y)))
            if len(waiting) > at_once:  # what is read ahead takes memory
                yield _result(waiting)
        while waiting:
            yield _result(waiting)


def _result(waiting: deque[tuple[Future[torch.Tensor], int]]) -> tuple[torch.Tensor, int]:
    done, images = waiting.popleft()
    return done.result(), images
