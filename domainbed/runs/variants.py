"""Datasets of one name that are not one: other domains, classes or images, told apart in tables."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from domainbed.core.files import digest_of
from domainbed.core.names import DATASET_DOMAINS, variant_label
from domainbed.errors import log

_OWN = "own images"


class _Seen(NamedTuple):
    """What a run says of its data; None for what it does not say."""

    domains: tuple[str, ...] | None
    digest: str | None


def told_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Records.runs` with a label of its own for each dataset of a name.

    A user's own images in a folder called like a published dataset are "PACS [own images]". Where
    runs of one name have recorded different data, their labels end in "[data 3fa9c1]", by its
    digest; a warning says how many runs have which. A run that says less, as those of earlier
    versions and of DomainBed do, counts to the first that it may be of.
    """
    seen = [_seen(args, data) for args, data in zip(runs["args"], runs["data"])]
    labels = runs["dataset"].tolist()
    for name in dict.fromkeys(labels):
        rows = [row for row, label in enumerate(labels) if label == name]
        for row, variant in zip(rows, _variants(name, [seen[row] for row in rows])):
            labels[row] = variant_label(name, variant)
    return runs.assign(dataset=labels)


def _seen(args: dict[str, Any], data: Any) -> _Seen:
    names = args.get("environments")
    domains = tuple(map(str, names)) if isinstance(names, list) else None
    digest = data.get("digest") if isinstance(data, dict) else None
    return _Seen(domains, digest if isinstance(digest, str) else None)


def _variants(name: str, seen: Sequence[_Seen]) -> list[str]:
    """For each run the variant of its dataset; "" where there is one, as published."""
    counts = Counter(seen)
    # Runs that say more come first.
    first: dict[_Seen, _Seen] = {}
    for each in sorted(counts, key=lambda each: (each.digest is None, each.domains is None)):
        others = [
            other
            for other in first.values()
            if all(x is None or y is None or x == y for x, y in zip(each, other))
        ]
        first[each] = others[0] if others else each
    variants = dict.fromkeys(first.values())
    published = DATASET_DOMAINS.get(name)
    own = {v: published and v.domains is not None and v.domains != published for v in variants}
    if len(variants) == 1:
        return [_OWN if own[first[each]] else "" for each in seen]
    # Short, and the same for the same data.
    text = {v: f"data {(v.digest or digest_of(repr(v.domains).encode()))[:6]}" for v in variants}
    said = (
        f"[{text[v]}] in {sum(counts[s] for s in counts if first[s] == v)} runs"
        + (f" (domains {', '.join(v.domains)})" if v.domains else "")
        for v in variants
    )
    log.warning(
        "warning: %d datasets are called %s, and are told apart: %s",
        len(variants), name, ", ".join(said),
    )  # fmt: skip
    return [text[first[each]] for each in seen]
