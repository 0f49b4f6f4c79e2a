"""Image files that the processes of a run read together: each its own part of every batch."""

from __future__ import annotations

import torch

from domainbed.datasets.domain import AnyDomain
from domainbed.datasets.loaded_domain import LoadedDomain
from domainbed.training.ranks import add_up, count, own_rows


def share_reading(domain: AnyDomain) -> AnyDomain:
    """The domain, whose images are read by all processes of the run if they are read one by one."""
    if count() > 1 and isinstance(domain, LoadedDomain):
        domain.sharing = _AmongRanks()
    return domain


class _AmongRanks:
    def own_rows(self, n: int) -> slice:
        return own_rows(n) if n >= count() else slice(None)

    def all_rows(self, own: torch.Tensor, n: int) -> torch.Tensor:
        if n < count():
            return own
        # As bytes, which add up to what was read, whatever its type.
        part = own.reshape(len(own), -1).contiguous().view(torch.uint8)
        rows = part.new_zeros(n, part.shape[1])
        rows[own_rows(n)] = part
        return add_up(rows).view(own.dtype).view(n, *own.shape[1:])
