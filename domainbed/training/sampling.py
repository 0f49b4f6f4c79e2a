"""Which images of each domain a run trains on and validates on, and its minibatches.

Minibatches are a pure function of seed, domain and step. Nothing is remembered between steps, so a
run that was interrupted continues with the same draws, and the number of workers changes nothing.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from domainbed.core.minibatch import Minibatch, mapped, taken
from domainbed.core.seeding import seed_hash, split_seed
from domainbed.core.text_table import count
from domainbed.datasets.domain import Domain, Draw
from domainbed.errors import UserError

# Indices are drawn for many steps at once: one seeding serves them all.
_BLOCK = 64


@dataclass(frozen=True)
class Split:
    """Indices into one domain: `out` validates, `inside` trains, `unlabeled` adapts."""

    out: list[int]
    inside: list[int]
    unlabeled: list[int]


class TrainingSplit(Dataset[Any]):
    """The samples of a domain that a run trains on, not augmented, for a `DataLoader` or a loop.

    Args:
        domain: with all its samples.
        indices: positions in the domain of those that are trained on.
        first: how many samples the training domains before have.

    Attributes:
        labels: (n, …), on the CPU.
        places: (samples of the domain,) the place of each among the samples of all training
            domains; -1 of those that are not trained on.
    """

    def __init__(self, domain: Domain, indices: list[int], first: int = 0) -> None:
        self._domain, self._indices = domain, indices
        self.places = torch.full((len(domain),), -1)
        self.places[indices] = torch.arange(first, first + len(indices))

    @property
    def labels(self) -> torch.Tensor:
        return self._domain.labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> tuple[Any, ...]:
        """One sample: (x, y), or (x, y, extras)."""
        batch = next(self.batches([self._indices[place]]))
        parts = (*batch, batch.extras) if batch.extras else (*batch,)
        return tuple(taken(each, 0) for each in parts)

    def batches(self, indices: Sequence[int] | None = None, size: int = 64) -> Iterator[Minibatch]:
        """All samples in order, `size` at a time; or those at `indices` in the domain."""
        for each in self._domain.evaluation_batches(indices or self._indices, size):
            x, y = mapped(torch.Tensor.contiguous, tuple(each))
            yield Minibatch(x, y, each.extras, index=each.index, join=each.join)


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
    stratified: bool = False,
) -> list[Split]:
    """The split of every domain, without the images that cannot be read.

    A domain's own out-split takes the place of a random one. Its images, and those that it
    leaves, come in their order in the domain, which is often by class; with `mixed` in random
    order, as those of a random split do. No split cuts a group of the domain; those that are
    `stratified` are random ones, and have each class in proportion, as far as groups allow.

    Raises:
        UserError: a domain is too small to leave two images to train on and one to validate on, or
            its own out-split cuts a group. A test domain may have none.
    """
    splits = []
    for number, domain in enumerate(domains):
        seed = split_seed(trial_seed, number)
        adapts = uda_holdout_fraction if number in test_envs else 0.0
        parted = partial(_parted, domain, seed=seed, stratified=stratified)
        if domain.out_split is None or stratified:
            split = Split(*parted(range(len(domain)), holdout_fraction), [])
        else:
            split = _own(domain, seed, mixed)
        if adapts:
            unlabeled, inside = parted(split.inside, adapts)
            split = Split(split.out, inside, unlabeled)
        if split.out or domain.out_split is None or number not in test_envs:
            _require_images(split, number, domain, holdout_fraction, adapts)
        splits.append(without_unreadable(split, number, domain.unreadable))
    return splits


def undivided(split: Split) -> Split:
    """The same images, with those of the out-split in the in-split."""
    return Split([], [*split.out, *split.inside], split.unlabeled)


def _parted(
    domain: Domain, positions: Sequence[int], fraction: float, seed: int, stratified: bool
) -> tuple[list[int], list[int]]:
    """A share of the positions in a domain, at random, and the others."""
    if domain.groups is None and not stratified:
        chosen, kept = split_indices(len(positions), fraction, seed)
        return [positions[i] for i in chosen], [positions[i] for i in kept]
    order = [positions[i] for i in shuffled(len(positions), seed)]
    groups = order if domain.groups is None else [domain.groups[i] for i in order]
    labels = (
        domain.labels[order].reshape(-1).long() if stratified else torch.tensor([0] * len(order))
    )
    counts: dict[object, np.ndarray] = {}
    for group, one_hot in zip(groups, torch.nn.functional.one_hot(labels).numpy()):
        counts[group] = counts.get(group, 0) + one_hot
    total = sum(counts.values())
    # Of each class one at least, where another is left.
    lacking = np.where(total > 1, np.maximum(fraction * total, 1), fraction * total)
    taken = set()
    for group, own in counts.items():
        if np.abs(lacking - own).sum() < np.abs(lacking).sum():
            lacking = lacking - own
            taken.add(group)
    if not taken and len(counts) > 1:  # each is more than twice as large as the share
        taken = {min(counts, key=lambda group: counts[group].sum())}
    chosen = [i for i, group in zip(order, groups) if group in taken]
    return chosen, [i for i, group in zip(order, groups) if group not in taken]


def _own(domain: Domain, seed: int, mixed: bool) -> Split:
    """The split that the data says."""
    out = list(domain.out_split or ())
    inside = sorted(set(range(len(domain))).difference(out))
    if domain.groups is not None:
        both = {domain.groups[i] for i in out}.intersection(domain.groups[i] for i in inside)
        if both:
            raise UserError(
                f"the data's own split cuts {count(len(both), 'group')}, such as {min(both)!r}: "
                "let each train or validate, or leave the columns 'split' or 'group' out",
                "dataset",
            )
    if mixed:
        out, inside = ([part[i] for i in shuffled(len(part), seed)] for part in (out, inside))
    return Split(out, inside, [])


def shuffled(n: int, seed: int) -> list[int]:
    """The whole numbers below n in random order."""
    return split_indices(n, 0.0, seed)[1]


def _require_images(
    split: Split, number: int, domain: Domain, holdout: float, adapts: float
) -> None:
    groups = "" if domain.groups is None else f" of {count(len(set(domain.groups)), 'group')}"
    lacking = {
        f"holdout_fraction of {holdout}": not split.out or len(split.inside) < 2,
        f"uda_holdout_fraction of {adapts}": adapts and not split.unlabeled,
    }
    for fraction, is_lacking in lacking.items():
        if is_lacking:
            raise UserError(
                f"domain {number} has {count(len(domain), 'image')}{groups}, too few for a "
                f"{fraction}: add images or change the fraction"
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
    if bool(kept.out) < bool(split.out) or len(kept.inside) < 2:
        raise UserError(
            f"domain {number} has {count(len(bad), 'image')} that cannot be read, and too few "
            "others: replace them"
        )
    return kept


class IndexDraws:
    """Which images of one domain each step sees, drawn with replacement.

    Args:
        indices: the domain's split, as positions in the domain.
        batch_size: B.
        seed: the run's seed.
        domain: the domain's number.
        labels: (len(indices),) labels; if given, all classes are drawn equally often.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int,
        domain: int,
        labels: torch.Tensor | None = None,
    ) -> None:
        self._indices = torch.tensor(indices)
        self._batch_size = batch_size
        self._seed, self.domain = seed, domain
        self._weights = None if labels is None else 1 / labels.bincount()[labels].double()
        self._steps = _BLOCK
        self._block_number, self._block = -1, torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """(B,) positions in the domain."""
        number, position = divmod(step, self._steps)
        if number != self._block_number:
            source = torch.Generator()
            source.manual_seed(seed_hash(self._seed, "minibatch", self.domain, number))
            self._block_number, self._block = number, self._indices[self._chosen(source)]
        return self._block[position]

    def over(self, steps: range, augment: bool) -> Iterator[Draw]:
        """One draw per step."""
        for step in steps:
            yield Draw(self.at(step), self._seed, self.domain, step, augment=augment)

    def _chosen(self, generator: torch.Generator) -> torch.Tensor:
        """(steps, B) positions in the split, for the steps that one seeding serves."""
        shape = (self._steps, self._batch_size)
        if self._weights is None:
            return torch.randint(len(self._indices), shape, generator=generator)
        return self._weights.multinomial(
            math.prod(shape), replacement=True, generator=generator
        ).view(shape)


class EpochDraws(IndexDraws):
    """Minibatches without replacement: each epoch holds the images once, in an order of its own.

    As in DomainBed, images that fill no minibatch are left out of their epoch; and where classes
    are to be drawn equally often, it is the minibatch that holds no image twice, not the epoch.
    There are at least as many images as a minibatch takes: DomainBed waits for ever where there
    are fewer, and such a split is drawn with replacement here.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        seed: int,
        domain: int,
        labels: torch.Tensor | None = None,
    ) -> None:
        super().__init__(indices, batch_size, seed, domain, labels)
        if labels is None:
            self._steps = len(indices) // batch_size  # one seeding serves an epoch

    def _chosen(self, generator: torch.Generator) -> torch.Tensor:
        if self._weights is None:
            order = torch.randperm(len(self._indices), generator=generator)
            return order[: self._steps * self._batch_size].view(self._steps, -1)
        weights = self._weights.expand(self._steps, -1)
        return weights.multinomial(self._batch_size, replacement=False, generator=generator)


class WholeDraws(IndexDraws):
    """The whole split at every step, in its order."""

    def at(self, step: int) -> torch.Tensor:
        return self._indices

    def over(self, steps: range, augment: bool) -> Iterator[Draw]:
        return super().over(steps, augment=False)


def minibatches(
    domains: Sequence[Domain],
    draws: Sequence[IndexDraws],
    steps: range,
    augmented: Collection[int] = (),
    workers: int = 0,
) -> Iterator[list[Minibatch]]:
    """One list of (x, y) per step, with one pair for each of `draws`.

    Args:
        domains: all of the dataset, on the device.
        draws: one for each domain that is wanted.
        steps: which of them.
        augmented: the numbers of the domains whose images to augment.
        workers: that read images, in all: they are shared out among the domains.

    Raises:
        UserError: an image cannot be read.
    """
    each = max(1, workers // len(draws)) if workers else 0
    sources = [
        domains[own.domain].minibatches(own.over(steps, own.domain in augmented), each)
        for own in draws
    ]
    return map(list, zip(*sources))
