"""How a domain is cut into out-split, in-split and, for adaptation, an unlabeled split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from domainbed.core.seeding import split_seed
from domainbed.datasets.domain import Domain
from domainbed.errors import UserError


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
    domains: Sequence[Domain],
    test_envs: Sequence[int],
    holdout_fraction: float,
    trial_seed: int,
    uda_holdout_fraction: float = 0.0,
    mixed: bool = False,
) -> list[Split]:
    """The split of every domain, without the images that cannot be read.

    A domain's own out-split takes the place of a random one. Its images, and those that it
    leaves, come in their order in the domain, which is often by class; with `mixed` in random
    order, as those of a random split do.

    Raises:
        UserError: a domain is too small to leave two images to train on and one to validate on.
    """
    splits = []
    for number, domain in enumerate(domains):
        seed = split_seed(trial_seed, number)
        adapts = uda_holdout_fraction if number in test_envs else 0.0
        split = _adapted(_cut(domain, holdout_fraction, seed, mixed), adapts, seed)
        _require_images(split, number, len(domain), holdout_fraction, adapts)
        splits.append(without_unreadable(split, number, domain.unreadable))
    return splits


def undivided(split: Split) -> Split:
    """The same images, with those of the out-split in the in-split."""
    return Split([], [*split.out, *split.inside], split.unlabeled)


def _cut(domain: Domain, holdout_fraction: float, seed: int, mixed: bool) -> Split:
    if domain.out_split is None:
        return Split(*split_indices(len(domain), holdout_fraction, seed), [])
    out = list(domain.out_split)
    inside = sorted(set(range(len(domain))).difference(out))
    if mixed:
        out, inside = ([part[i] for i in shuffled(len(part), seed)] for part in (out, inside))
    return Split(out, inside, [])


def shuffled(n: int, seed: int) -> list[int]:
    """The whole numbers below n in random order."""
    return split_indices(n, 0.0, seed)[1]


def _adapted(split: Split, fraction: float, seed: int) -> Split:
    """With a share of the in-split as unlabeled images."""
    if not fraction:
        return split
    chosen, kept = split_indices(len(split.inside), fraction, seed)
    inside = split.inside
    return Split(split.out, [inside[i] for i in kept], [inside[i] for i in chosen])


def _require_images(split: Split, number: int, n: int, holdout: float, adapts: float) -> None:
    lacking = {
        f"holdout_fraction of {holdout}": not split.out or len(split.inside) < 2,
        f"uda_holdout_fraction of {adapts}": adapts and not split.unlabeled,
    }
    for fraction, is_lacking in lacking.items():
        if is_lacking:
            raise UserError(
                f"domain {number} has {n} images, too few for a {fraction}: add images or change "
                "the fraction"
            )


def without_unreadable(split: Split, number: int, unreadable: Collection[int]) -> Split:
    """The same cut of domain `number`, without the images that cannot be read.

    Raises:
        UserError: nothing else is in the out-split, or fewer than two in the in-split.
    """
    bad = set(unreadable)
    kept = Split(
        *([i for i in part if i not in bad] for part in (split.out, split.inside, split.unlabeled))
    )
    if not kept.out or len(kept.inside) < 2:
        raise UserError(
            f"domain {number} has {len(bad)} images that cannot be read, and too few others: "
            "replace them"
        )
    return kept
