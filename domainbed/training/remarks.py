"""What a new run says of its data: leaks between splits, and what is rare or lacking."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from domainbed.core.text_table import printable
from domainbed.datasets.domain import Domain, TensorDomain
from domainbed.training.experiment import Experiment

_FAR_SMALLER = 10  # times, than the median
_SHOWN = 5

Place = tuple[int, int]
"""The number of a domain, and a position in it."""


def remarks(experiment: Experiment) -> list[str]:
    """One line for each thing that is worth a warning.

    Published data is as it was published: of it only equal files are named.
    """
    is_own, domains = getattr(experiment.dataset, "info", None) is None, experiment.domains
    _ = experiment.data  # which reads the files
    contents = [_contents(domain, is_own) for domain in domains]

    def pair(_: Hashable, places: Sequence[Place]) -> str:
        return " and ".join(_named(experiment, *place) for place in places)

    lines = _shared(experiment, contents, "samples of equal content", pair)
    if is_own:
        groups = [domain.groups or () for domain in domains]
        lines += _shared(experiment, groups, "groups", lambda group, _: repr(group))
        lines += _small("domain", experiment.domain_names, [len(domain) for domain in domains])
    if is_own and experiment.label_type.has_classes and all(d.labels_at_hand for d in domains):
        lines += _of_classes(experiment)
    return [f"warning: {printable(line)}" for line in lines]


def _contents(domain: Domain, is_own: bool) -> Sequence[bytes]:
    """A digest of each sample; none where they are not files, nor tensors of one's own."""
    if len(domain.contents):
        return [row.tobytes() if row.any() else b"" for row in domain.contents]
    if not (is_own and isinstance(domain, TensorDomain) and isinstance(domain.x, torch.Tensor)):
        return ()
    rows = domain.x.cpu().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _shared(
    experiment: Experiment,
    keys: Sequence[Sequence[Hashable]],
    what: str,
    shown: Callable[[Hashable, Sequence[Place]], str],
) -> list[str]:
    """What is said of keys that samples in different splits have."""
    found: dict[str, dict[Any, Place]] = defaultdict(dict)
    for domain, (split, own) in enumerate(zip(experiment.splits, keys)):
        is_test = domain in experiment.spec.test_envs
        uses = {
            "test" if is_test else "training": split.inside,
            "oracle's validation" if is_test else "validation": split.out,
            "adaptation": split.unlabeled,
        }
        for use, positions in uses.items():
            for position in positions if own else ():
                found[use].setdefault(own[position], (domain, position))
    lines = []
    for one, other in combinations(found, 2):
        both = [key for key in found[one] if key and key in found[other]]
        if both:
            example = shown(both[0], [found[one][both[0]], found[other][both[0]]])
            lines.append(
                f"{len(both):,} {what} are in the {one} split and in the {other} split, such as "
                f"{example}"
            )
    return lines


def _named(experiment: Experiment, domain: int, position: int) -> str:
    files = experiment.domains[domain].files
    return str(files[position]) if files else f"{position} of {experiment.domain_names[domain]}"


def _of_classes(experiment: Experiment) -> list[str]:
    """Of rare classes, and of those that a domain, or its out-split, lacks."""
    names = experiment.dataset.class_names
    labels = [domain.labels.reshape(-1).long() for domain in experiment.domains]
    counts = np.array([each.bincount(minlength=len(names)).tolist() for each in labels])
    lines = _small("class", names, counts.sum(axis=0))
    for domain, own in enumerate(counts):
        place, out = f"domain {experiment.domain_names[domain]}", experiment.splits[domain].out
        if not own.all():
            lines.append(
                f"{place} has no {_listed(names, own == 0)}: there, means over classes are of the "
                "others"
            )
        left = labels[domain][out].bincount(minlength=len(names)).numpy()
        if out and (lacks := (left == 0) & (own > 0)).any():
            lines.append(
                f"the validation split of {place} has no {_listed(names, lacks)}: split "
                "'stratified' has each class in proportion"
            )
    return lines


def _listed(names: Sequence[str], chosen: np.ndarray) -> str:
    own = [name for name, is_chosen in zip(names, chosen) if is_chosen]
    more = [f"and {len(own) - _SHOWN} more"] * (len(own) > _SHOWN)
    return ", ".join([*own[:_SHOWN], *more])


def _small(what: str, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Of each that is far smaller than the others."""
    median = float(np.median(sizes))
    return [
        f"{what} {name} has {size:,} samples, and the median {what} {median:,.0f}"
        for name, size in zip(names, sizes)
        if size * _FAR_SMALLER < median
    ]
