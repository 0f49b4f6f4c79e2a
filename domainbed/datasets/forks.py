"""The datasets of forks, as datasets of this package."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import TensorDataset

from domainbed.config.run_facts import Handed, RunFacts
from domainbed.core.forks import Fork, arguments, required
from domainbed.datasets.base import DATASETS, ForeignDomain, MultipleDomainDataset
from domainbed.datasets.images.transforms import evaluation_transform, training_transform

_BASE = MultipleDomainDataset.__name__
_ROOT = ("root", "root_dir", "data_dir", "data_path", "path")
_KNOWN = {*_ROOT, "test_envs", "hparams", "args", "augment", "input_shape"}


class ForkDataset(MultipleDomainDataset):
    """A dataset of a fork; its subclasses each name the fork's class.

    Pictures are resized, augmented and normalised as this package does with image files, unless
    the fork makes tensors of them. What a sample has beside input and label is in its extras, as
    `extra0` and so on where it has no names.
    """

    foreign: ClassVar[Any]
    folder: ClassVar[Path]

    def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
        known: dict[str, Any] = {
            **dict.fromkeys(_ROOT, root),
            "test_envs": list(test_envs),
            "hparams": Handed(hparams, RunFacts()),
            "augment": hparams.get("data_augmentation", True),
        }
        known["args"] = arguments(self.folder, known)
        parameters = inspect.signature(self.foreign).parameters
        made = self.foreign(**{name: known[name] for name in parameters if name in known})
        domains = [made[number] for number in range(len(made))]
        self.datasets: Sequence[Any] = [
            each
            if type(each) is TensorDataset and len(each.tensors) == 2
            else _Samples(each, made.num_classes, getattr(made, "collate_fn", None))
            for each in domains
        ]
        self.input_shape, self.num_classes = tuple(made.input_shape), made.num_classes
        self.classes = getattr(made, "classes", getattr(domains[0], "classes", ()))


class _Samples(ForeignDomain):
    """The samples of one domain."""

    def read(self, index: int, augment: bool) -> tuple[Any, ...]:
        x, y, *others = super().read(index, augment)
        if isinstance(x, Image):
            transform = training_transform if augment else evaluation_transform
            x = transform(torch.from_numpy(np.array(x.convert("RGB"))).permute(2, 0, 1))
        if others and not isinstance(others[0], Mapping):
            others = [{f"extra{number}": value for number, value in enumerate(others)}]
        return x, y, *others


def register(fork: Fork) -> None:
    """Registers the datasets of a fork that can be made of a data folder."""
    fork.load("/datasets.py", "/datasets/__init__.py")
    fork.register(DATASETS, [_adapted(cls, fork) for cls in fork.classes() if _is_dataset(cls)])


def _is_dataset(cls: type) -> bool:
    names = getattr(cls, "ENVIRONMENTS", None)
    is_one = (
        names is not None and len(names) > 0 and _BASE in [base.__name__ for base in cls.__mro__]
    )
    return is_one and required(inspect.signature(cls).parameters.values()) <= _KNOWN


def _adapted(cls: Any, fork: Fork) -> type[MultipleDomainDataset]:
    if issubclass(cls, MultipleDomainDataset):
        return cls
    shape = getattr(cls, "INPUT_SHAPE", None) or ()
    is_small = shape[-1:] == (28,) or any("MNIST" in base.__name__ for base in cls.__mro__)
    kept = ("N_STEPS", "CHECKPOINT_FREQ", "__doc__", "__module__", "__qualname__")
    members = {name: getattr(cls, name) for name in kept if hasattr(cls, name)}
    members |= {"ENVIRONMENTS": [str(name) for name in cls.ENVIRONMENTS], "foreign": cls}
    return type(
        cls.__name__, (ForkDataset,), {**members, "folder": fork.folder, "small_images": is_small}
    )
