"""Classes written for DomainBed's forks, as algorithms of this package.

A fork's class has `update` and `predict`. What its constructor and its `update` are called with is
read from the names of their parameters, as the train scripts of the forks call them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from domainbed.algorithms.base import Algorithm, Metrics, Minibatches, Unlabeled
from domainbed.algorithms.handed import construct
from domainbed.errors import UserError


class ForeignAlgorithm(Algorithm):
    """An algorithm that a class from elsewhere computes; `adapt` makes its subclasses.

    Attributes:
        model: the object of the foreign class.
    """

    foreign: ClassVar[type]
    folder: ClassVar[Path | None] = None

    def build(self) -> None:
        shared = (self.input_shape, self.num_classes, self.num_domains, self.hparams)
        self.model = construct(self.foreign, self.folder, *shared, self.facts)

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        returned: Metrics = self.model.update(minibatches, unlabeled)
        return returned

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.model.predict(x)
        return outputs


def adapt(cls: type, folder: Path | None = None) -> type[Algorithm]:
    """An algorithm of this package that trains and predicts by a class from elsewhere.

    Args:
        cls: with `update` and `predict`. A subclass of this package's `Algorithm` stays as it is.
        folder: of the fork, whose train scripts say which further methods they call; None where
            there is no more than a file.

    Returns:
        what can be registered under the class's name.

    Raises:
        UserError: it has no `update` or no `predict`.
    """
    if lacking := [name for name in ("update", "predict") if not hasattr(cls, name)]:
        raise UserError(f"class {cls.__name__} has no {' and no '.join(map(repr, lacking))}")
    if issubclass(cls, Algorithm):
        return cls
    members: Mapping[str, Any] = {
        **{name: getattr(cls, name) for name in ("__doc__", "__module__", "__qualname__")},
        **{name: getattr(cls, name) for name in ("paper", "search_space") if hasattr(cls, name)},
        **{"foreign": cls, "folder": folder},
    }
    return type(cls.__name__, (ForeignAlgorithm,), dict(members))
