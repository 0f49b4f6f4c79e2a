"""DomainBed's names for what a record measures: `env{domain}_{split}_{metric}`."""

from __future__ import annotations

import re
from functools import lru_cache

# Only accuracy has another name in the keys than in a table.
_SUFFIXES = {"accuracy": "acc"}
_METRICS = {suffix: metric for metric, suffix in _SUFFIXES.items()}
_KEY = re.compile(r"env(\d+)_(in|out|uda)_(\w+)", re.ASCII)


AVERAGES = {"ema": "EMA", "sma": "SMA", "swad": "SWAD", "wise": "WiSE"}
"""Averages of the weights that are measured besides the last weights, and their names in tables."""

AVERAGES_BY_TITLE = {title: name for name, title in AVERAGES.items()}

FULL_DATA = "fd_"
"""Prefix of keys in a stage that trains on all images of the training domains."""


def key_suffix(metric: str) -> str:
    """What keys call a metric: "acc" for accuracy."""
    return _SUFFIXES.get(metric, metric)


def record_key(domain: int, split: str, metric: str, full_data: bool = False) -> str:
    """The key of a metric's value over a domain's split.

    Args:
        domain: the domain's number.
        split: "in", "out", or "uda", the images that domain adaptation may train on.
        metric: "accuracy", "loss", …
        full_data: whether no domain is cut, so that "in" is all of it.

    Example:
        >>> record_key(0, "in", "accuracy")
        'env0_in_acc'
    """
    key = f"env{domain}_{split}_{key_suffix(metric)}"
    return FULL_DATA + key if full_data else key


def parse_record_key(key: str) -> tuple[int, str, str] | None:
    """Domain, split and metric of a key; None for a key that measures no split.

    Example:
        >>> parse_record_key("env2_out_loss")
        (2, 'out', 'loss')
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    domain, split, suffix = match.groups()
    return int(domain), split, _METRICS.get(suffix, suffix)


def average_key(average: str, key: str) -> str:
    """The key for an average of the weights, given the key for the last weights.

    Example:
        >>> average_key("swad", "env0_in_acc")
        'swad_env0_in_acc'
    """
    return f"{average}_{key}"


@lru_cache(maxsize=4096)  # asked of each key of each record, and there are few keys
def parse_average_key(key: str) -> tuple[str, str] | None:
    """The average that a key belongs to, and the key for the last weights; None for other keys.

    Example:
        >>> parse_average_key("swad_env0_in_acc")
        ('swad', 'env0_in_acc')
    """
    average, _, of_last = key.partition("_")
    return (average, of_last) if average in AVERAGES and parse_record_key(of_last) else None
