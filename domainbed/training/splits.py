"""How a domain is cut into out-split, in-split and, for adaptation, an unlabeled split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from domainbed.errors import UserError
from domainbed.seeding import split_seed


@dataclass(frozen=True)
class Split:
    """Indices into one domain: `out` validates, `inside` trains, `unlabeled` adapts."""

    out: list[int]
    inside: list[int]
    unlabeled: list[int]


def split_indices(n: int, holdout_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Cuts range(n) at random: (out-split indices, in-split indices), as DomainBed does.

    Args:
        n: number of images.
        holdout_fraction: the out-split's share, rounded down to whole images.
        seed: see `seeding.split_seed`.
    """
    order = np.arange(n)
    np.random.RandomState(seed).shuffle(order)
    holdout = int(n * holdout_fraction)
    return order[:holdout].tolist(), order[holdout:].tolist()


def split_domains(
    sizes: Sequence[int],
    test_envs: Sequence[int],
    holdout_fraction: float,
    trial_seed: int,
    uda_holdout_fraction: float = 0.0,
    out_splits: Sequence[Sequence[int]] | None = None,
) -> list[Split]:
    """The split of every domain, of `sizes` images each.

    With `out_splits` these positions are the domains' out-splits, instead of random ones.

    Raises:
        UserError: a domain is too small to leave images in both parts.
    """
    splits = []
    for domain, n in enumerate(sizes):
        seed = split_seed(trial_seed, domain)
        out, inside = split_indices(n, holdout_fraction, seed)
        if out_splits is not None:
            out = list(out_splits[domain])
            inside = sorted(set(range(n)).difference(out))
        unlabeled: list[int] = []
        if uda_holdout_fraction and domain in test_envs:
            chosen, kept = split_indices(len(inside), uda_holdout_fraction, seed)
            unlabeled, inside = [inside[i] for i in chosen], [inside[i] for i in kept]
        if not out or not inside:
            raise UserError(
                f"domain {domain} has {n} images, too few for a holdout_fraction of "
                f"{holdout_fraction}: add images or change the fraction"
            )
        if uda_holdout_fraction and domain in test_envs and not unlabeled:
            raise UserError(
                f"domain {domain} has {n} images, too few for a uda_holdout_fraction of "
                f"{uda_holdout_fraction}: add images or change the fraction"
            )
        splits.append(Split(out, inside, unlabeled))
    return splits


def without_unreadable(
    splits: Sequence[Split], unreadable: Sequence[Collection[int]]
) -> list[Split]:
    """The same cut, without the images of each domain that cannot be read.

    Raises:
        UserError: nothing else is in a domain's out-split, or in its in-split.
    """
    kept = []
    for domain, (split, bad) in enumerate(zip(splits, map(set, unreadable))):
        out, inside, unlabeled = (
            [i for i in part if i not in bad] for part in (split.out, split.inside, split.unlabeled)
        )
        if not out or not inside:
            raise UserError(
                f"domain {domain} has {len(bad)} images that cannot be read, and too few others: "
                "replace them"
            )
        kept.append(Split(out, inside, unlabeled))
    return kept
