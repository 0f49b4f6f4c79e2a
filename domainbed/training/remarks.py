"""What a new run says of its data: leaks between splits, and what is rare or lacking."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, compress
from textwrap import shorten
from typing import Any

import numpy as np
import torch

from domainbed.core.text_table import count, printable
from domainbed.datasets.domain import Domain
from domainbed.training.experiment import Experiment


def remarks(experiment: Experiment) -> list[str]:
    """One line for each thing that is worth a warning.

    Published data is as it was published: of it only equal files are named.
    """
    is_own, domains = getattr(experiment.dataset, "info", None) is None, experiment.domains
    _ = experiment.data  # which reads the files
    lines = _shared(experiment, [_contents(domain, is_own) for domain in domains], "sample")
    if is_own:
        lines += _shared(experiment, [domain.groups or () for domain in domains], "group")
        lines += _small("domain", experiment.domain_names, [len(domain) for domain in domains])
    if is_own and experiment.label_type.has_classes and all(d.labels_at_hand for d in domains):
        lines += _of_classes(experiment)
    return [f"warning: {printable(line)}" for line in lines]


def _contents(domain: Domain, is_own: bool) -> Sequence[bytes]:
    """What each sample consists of; nothing where they are not files, nor tensors of one's own."""
    rows, x = domain.contents, getattr(domain, "x", None)
    if is_own and isinstance(x, torch.Tensor) and not domain.files:
        rows = x.cpu().numpy()
    return [row.tobytes() for row in rows]


def _shared(experiment: Experiment, keys: Sequence[Sequence[Any]], what: str) -> list[str]:
    """What is said of contents, or of groups, that samples in different splits have."""
    found: dict[str, dict[Any, str]] = defaultdict(dict)
    for number, (split, own) in enumerate(zip(experiment.splits, keys)):
        uses = {"training": split.inside, "validation": split.out, "adaptation": split.unlabeled}
        if number in experiment.spec.test_envs:
            uses["test"], uses["oracle's validation"] = uses.pop("training"), uses.pop("validation")
        files, name = experiment.domains[number].files, experiment.domain_names[number]
        for use, positions in uses.items() if own else ():
            found[use] |= {own[i]: str(files[i]) if files else f"{i} of {name}" for i in positions}
    lines = []
    for one, other in combinations(found, 2):
        if both := found[one].keys() & found[other].keys():
            key = min(both)
            example = key if what == "group" else f"{found[one][key]} and {found[other][key]}"
            are = "is" if len(both) == 1 else "are"
            lines.append(
                f"{count(len(both), what)} of the {one} split {are} in the {other} split as well, "
                f"such as {example}"
            )
    return lines


def _of_classes(experiment: Experiment) -> Iterable[str]:
    """Of rare classes, and of those that a domain, or its out-split, lacks."""
    names = experiment.dataset.class_names
    labels = [domain.labels.reshape(-1).long() for domain in experiment.domains]
    counts = np.array([each.bincount(minlength=len(names)).tolist() for each in labels])
    yield from _small("class", names, counts.sum(axis=0))
    for domain, own, ys, split in zip(experiment.domain_names, counts, labels, experiment.splits):
        left = ys[split.out].bincount(minlength=len(names)).numpy()
        for lacks, where, hint in (
            (own == 0, "", "there, means over classes are of the others"),
            ((left == 0) & (own > 0) & bool(split.out), "the validation split of ", "set split to "
             "stratified"),
        ):  # fmt: skip
            if lacks.any():
                lacking = shorten(", ".join(compress(names, lacks)), 200, placeholder=" …")
                yield f"{where}domain {domain} has no {lacking}: {hint}"


def _small(what: str, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Of each that is far smaller than the others."""
    median = float(np.median(sizes))
    return [
        f"{what} {name} has {count(size, 'sample')}, and the median {what} {median:,.0f}"
        for name, size in zip(names, sizes)
        if 10 * size < median
    ]
