"""Work that PyTorch, PIL and NumPy do without Python's lock, spread over a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """`function(item)` of all items, in their order, computed a little ahead.

    To be closed where it is not used up.

    Args:
        function: what it raises is raised here.
        items: any number of them; only `threads` + 1 are under way at a time.
        threads: each with one of PyTorch's; 0 computes here, when a result is asked for.
    """
    if threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
