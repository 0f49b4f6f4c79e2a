"""Whether a dataset keeps its contract, asked once, before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from domainbed.datasets.domain import Domain, Minibatch
from domainbed.errors import UserError


def require_contract(dataset: Any) -> None:
    """Raises a UserError where `dataset` lacks what every dataset sets."""
    for name in ("datasets", "input_shape", "num_classes"):
        if not hasattr(dataset, name):
            raise UserError(
                f"dataset {type(dataset).__name__} has no {name!r}: set it in the constructor",
                "dataset",
            )


def check_domains(dataset: Any, domains: Sequence[Domain]) -> None:
    """Checks the domains' number, all labels that are at hand, and each domain's first image.

    Raises:
        UserError: there are not as many domains as names of them, a label is not one of the
            classes' numbers, or an input not as announced.
    """
    names = getattr(dataset, "ENVIRONMENTS", ())
    if names and len(names) != len(domains):
        raise UserError(
            f"dataset {type(dataset).__name__} has {len(domains)} domains, but ENVIRONMENTS has "
            f"{len(names)} names: name each domain once",
            "dataset",
        )
    for number, domain in enumerate(domains):
        place = f"domain {number} of dataset {type(dataset).__name__}"
        unreadable = set(domain.unreadable)
        first = next((i for i in range(len(domain)) if i not in unreadable), None)
        if first is not None:
            _check_input(_first(domain, first, place), tuple(dataset.input_shape), place)
        if domain.labels_at_hand:
            _check_labels(domain.labels, len(domain), dataset.num_classes, place)


def _first(domain: Domain, index: int, place: str) -> Minibatch:
    try:
        return next(iter(domain.evaluation_batches([index])))
    except TypeError as error:  # of what cannot be put together in a batch: images of PIL, say
        raise UserError(
            f"{place}: its first element makes no batch ({error}): return pairs of a tensor and a "
            "whole number",
            "dataset",
        ) from error


def _check_input(batch: Minibatch, shape: tuple[int, ...], place: str) -> None:
    x, y = batch
    found = {
        "dtype of its inputs": (x.dtype, torch.float32),
        "shape of its inputs": (tuple(x.shape[1:]), shape),
        "dtype of its labels": (y.dtype, torch.int64),
    }
    for what, (here, expected) in found.items():
        if here != expected:
            raise UserError(f"{place}: the {what} is {here}, expected {expected}", "dataset")


def _check_labels(labels: torch.Tensor, images: int, classes: int, place: str) -> None:
    if labels.shape != (images,):
        raise UserError(
            f"{place}: {images} images, but labels of the shape {tuple(labels.shape)}", "dataset"
        )
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{place}: image {first} has the label {int(labels[first])}, expected 0 to "
            f"{classes - 1} (num_classes is {classes})",
            "dataset",
        )
