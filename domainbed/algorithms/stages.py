"""The stages of a run: what each of them trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """One training of a fresh model, for the run's number of steps at most.

    Attributes:
        data: what trains of the training domains: their in-splits, or all their images. With all,
            no domain has an out-split, and test domains are measured on all their images too.
        replacement: whether minibatches are drawn with replacement, as the protocol says, or epoch
            by epoch, so that every image comes once before any comes again.
        whole: whether each minibatch is the whole of what trains of its domain, not augmented.
        validation: metrics whose mean over the out-splits of the training domains stands in every
            record; that of "loss" is called `val_loss`.
    """

    data: Literal["in-splits", "all"] = "in-splits"
    replacement: bool = True
    whole: bool = False
    validation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.data == "all" and self.validation:
            raise ValueError("a stage that trains on all images has none left for a validation")
