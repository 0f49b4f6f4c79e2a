"""The datasets. A new one: its class in a file here, and its import below.

The order of the imports is the order of every list of datasets.
"""

# ruff: noqa: I001

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from domainbed.datasets.base import DATASETS, DatasetInfo, MultipleDomainDataset
from domainbed.datasets.small_images import (
    ColoredDigits,
    ColoredMNIST,
    RotatedDigits,
    RotatedMNIST,
)
from domainbed.datasets.image_folders import (
    VLCS,
    PACS,
    OfficeHome,
    TerraIncognita,
    DomainNet,
    ImageFolderDataset,
    folder_dataset,
)
from domainbed.datasets.foreign import domains_of
from domainbed.datasets.image_access import apply_data_options, data_options
from domainbed.datasets.manifest import ManifestDataset, manifest_dataset
from domainbed.names import MANIFESTS, dataset_label
from domainbed.seeding import data_seed, seed_everything


def get_dataset_class(name: str) -> Any:
    """The class registered under `name`, or that of a user's own images.

    Args:
        name: a registered name; `folder:PATH`, images in `PATH/domain/class/`; the path of a
            YAML file that describes such a folder (see `folder_dataset`); or that of a CSV or
            JSON Lines file that lists images, also as `manifest:PATH` (see `manifest_dataset`).

    Raises:
        UserError: no such dataset; the message suggests the nearest name and lists all.
    """
    if name.startswith("folder:") or name.endswith((".yaml", ".yml")):
        return folder_dataset(name)
    if name.startswith("manifest:") or name.endswith(MANIFESTS):
        return manifest_dataset(name)
    return DATASETS[name]


def load_dataset(
    name: str,
    root: str,
    test_envs: Sequence[int],
    hparams: Mapping[str, Any],
    trial_seed: int,
) -> MultipleDomainDataset:
    """Builds a dataset, or hands out the one that an earlier run of this process built.

    A class whose constructor takes no `trial_seed` may draw from the global sources, as
    DomainBed's do; they are seeded from the trial, so that its domains stay the same.
    """
    cls = get_dataset_class(name)
    # Not inherited by others' subclasses, whose constructors may read what ours do not.
    if vars(cls).get("shareable") or (cls.__module__.startswith(__name__) and cls.shareable):
        key = (name, root, trial_seed, *data_options(hparams).items())
        if key not in _shared:
            _shared.clear()  # one dataset at a time: they are large
            _shared[key] = _construct(cls, name, root, test_envs, hparams, trial_seed)
        return _shared[key]
    return _construct(cls, name, root, test_envs, hparams, trial_seed)


_shared: dict[tuple[Any, ...], MultipleDomainDataset] = {}


def _construct(
    cls: Any,
    name: str,
    root: str,
    test_envs: Sequence[int],
    hparams: Mapping[str, Any],
    trial_seed: int,
) -> MultipleDomainDataset:
    if "trial_seed" in inspect.signature(cls).parameters:
        dataset = cls(root, list(test_envs), hparams, trial_seed=trial_seed)
    else:
        with torch.random.fork_rng():
            seed_everything(data_seed(trial_seed))
            dataset = cls(root, list(test_envs), hparams)
    apply_data_options(dataset, dataset_label(name), root, hparams)
    return dataset


__all__ = [
    "DATASETS",
    "PACS",
    "VLCS",
    "ColoredDigits",
    "ColoredMNIST",
    "DatasetInfo",
    "DomainNet",
    "ImageFolderDataset",
    "ManifestDataset",
    "MultipleDomainDataset",
    "OfficeHome",
    "RotatedDigits",
    "RotatedMNIST",
    "TerraIncognita",
    "domains_of",
    "folder_dataset",
    "get_dataset_class",
    "load_dataset",
    "manifest_dataset",
]
