"""The datasets. To add one, put its class into a file here, and its import below.

The order of the imports is the order of every list of datasets.
"""

# ruff: noqa: I001

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any


from domainbed.core import seeding
from domainbed.core.minibatch import Minibatch
from domainbed.config.dataset_info import DatasetInfo
from domainbed.datasets.base import (
    DATASETS,
    MultipleDomainDataset,
    check_domains,
    domains_of,
    network_of,
    require_contract,
)
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
    SVIRO,
    ImageFolderDataset,
    folder_dataset,
)
from domainbed.datasets.published_trees import (
    WILDSCamelyon,
    WILDSFMoW,
    SpawriousO2O_easy,
    SpawriousO2O_medium,
    SpawriousO2O_hard,
    SpawriousM2M_easy,
    SpawriousM2M_medium,
    SpawriousM2M_hard,
)
from domainbed.datasets.subpopulations import Waterbirds, CelebA, MetaShift, NICOpp
from domainbed.datasets.domain import TensorDomain
from domainbed.datasets.samples import (
    Penguins,
    PenguinsMass,
    PenguinsSpecies,
    SampleDataset,
    sample_dataset,
)
from domainbed.datasets.debug import Debug28, Debug224
from domainbed.datasets import forks
from domainbed.core.forks import on_fork
from domainbed.datasets.image_domains import apply_data_options, apply_features, data_options
from domainbed.datasets.manifest import ManifestDataset, manifest_dataset
from domainbed.config.dimensions import DatasetFacts
from domainbed.errors import UserError
from domainbed.core.files import cache_folder
from domainbed.core.names import SAMPLES, dataset_label, is_manifest
from domainbed.config.run_fields import DataFields, FeatureSource


def get_dataset_class(name: str, options: DataFields | None = None) -> Any:
    """The class registered under `name`, or that of a user's own data.

    Args:
        name: a registered name; `folder:PATH`, images in `PATH/domain/class/`; the path of a
            YAML file that describes such a folder (see `folder_dataset`); or that of a CSV or
            JSON Lines file that lists images, also as `manifest:PATH` (see `manifest_dataset`);
            `table:FILE` or `arrays:FILE` (see `sample_dataset`).
        options: how own data is to be read; those of a run, say.

    Raises:
        UserError: no such dataset; the message suggests the nearest name and lists all.
    """
    options = options or DataFields()
    if name.startswith("folder:") or name.endswith((".yaml", ".yml")):
        return folder_dataset(name, options)
    if name.startswith(SAMPLES):
        return sample_dataset(name, options)
    if is_manifest(name):
        return manifest_dataset(name, options)
    for field, usual in DataFields():
        if getattr(options, field) != usual:
            raise UserError(f"{field} is for data of your own, not for {name}: leave it out", field)
    if name not in DATASETS and ("/" in name or os.path.isdir(name)):
        raise UserError(
            f"unknown dataset {name!r}: for a folder of your own images, write 'folder:{name}'"
        )
    return DATASETS[name]


def class_for_search(name: str) -> Any:
    """The class whose search space and options a dataset has; None for a user's own images."""
    if name.startswith(SAMPLES):
        return get_dataset_class(name) if name.startswith("arrays:") else SampleDataset
    return DATASETS.get(name)


def dataset_facts(name: str, features: bool = False) -> DatasetFacts:
    """What a search space may depend on.

    Args:
        name: a dataset's. One that is not registered counts as natural images, whatever its
            folder is called.
        features: whether inputs are features of its images.

    Raises:
        UserError: the dataset has a search space that does not exist.
    """
    # A class made for DomainBed may not declare the kind of its images.
    label, cls = dataset_label(name), class_for_search(name)
    space, network = getattr(cls, "space", ""), network_of(cls)
    if space not in ("", "small", "large"):
        raise UserError(f"dataset {label} has the space {space!r}: expected small or large")
    small = space == "small" if space else bool(getattr(cls, "small_images", False))
    if name not in DATASETS and label in DATASETS:
        label = ""  # nothing follows from a name that a folder shares with a dataset
    return DatasetFacts(label, small, features, "" if features else network)


def load_dataset(
    name: str,
    root: str,
    test_envs: Sequence[int],
    hparams: Mapping[str, Any],
    trial_seed: int,
    data_seed: int | None = None,
    features: FeatureSource | None = None,
    options: DataFields | None = None,
    labels: str = "",
) -> MultipleDomainDataset:
    """Builds a dataset, or returns the one that an earlier run of this process built.

    A class whose constructor takes no `trial_seed` may draw from the global sources, as
    DomainBed's do; they are seeded, so that its domains stay the same.

    Args:
        name: see `get_dataset_class`.
        root: the data folder.
        test_envs: the test domains.
        hparams: the run's; datasets read their `options` and how image files are read.
        trial_seed: decides what the dataset itself draws: shuffle, label and colour noise.
        data_seed: replaces the trial seed there; in DomainBed it is the run's seed.
        features: replace the images by features of them, which are computed unless they exist.
        options: how own data is to be read.
        labels: their type, for constructors that take it; empty for the class's own.
    """
    cls = get_dataset_class(name, options)

    def build() -> MultipleDomainDataset:
        dataset = _construct(cls, root, list(test_envs), hparams, trial_seed, data_seed, labels)
        require_contract(dataset)
        if features is None:
            apply_data_options(dataset, dataset_label(name), root, hparams)
        else:
            apply_features(dataset, dataset_label(name), cache_folder(root), features, hparams)
        return dataset

    # Not inherited by the subclasses of plug-ins, whose constructors may read other things.
    is_own = cls.__module__.startswith(__name__)
    if not (vars(cls).get("shareable") or (is_own and cls.shareable)):
        return build()
    # The package's own draw only by a seed that their constructors take.
    draws = not is_own or "trial_seed" in inspect.signature(cls).parameters
    key = (
        name,
        root,
        (trial_seed, data_seed) if draws else (),
        features,
        str(data_options(hparams)),
        *((option, cls.option(option, hparams)) for option in cls.options),
        options and options.of_data(),
    )
    if key not in _shared:
        _shared.clear()  # one dataset at a time: they are large
        _shared[key] = build()
    return _shared[key]


_shared: dict[tuple[Any, ...], MultipleDomainDataset] = {}


def _construct(
    cls: Any,
    root: str,
    test_envs: list[int],
    hparams: Mapping[str, Any],
    trial_seed: int,
    data_seed: int | None,
    labels: str,
) -> MultipleDomainDataset:
    parameters = inspect.signature(cls).parameters
    offered = {"trial_seed": trial_seed, "data_seed": data_seed, "labels": labels}
    taken = {name: value for name, value in offered.items() if name in parameters}
    if taken:
        return cls(root, test_envs, hparams, **taken)
    with seeding.global_sources_kept():
        seeding.seed_everything(seeding.data_seed(trial_seed) if data_seed is None else data_seed)
        return cls(root, test_envs, hparams)


on_fork(forks.register)

__all__ = [
    "DATASETS",
    "PACS",
    "SVIRO",
    "VLCS",
    "CelebA",
    "ColoredDigits",
    "ColoredMNIST",
    "DatasetInfo",
    "Debug28",
    "Debug224",
    "DomainNet",
    "ImageFolderDataset",
    "ManifestDataset",
    "MetaShift",
    "Minibatch",
    "MultipleDomainDataset",
    "NICOpp",
    "OfficeHome",
    "Penguins",
    "PenguinsMass",
    "PenguinsSpecies",
    "RotatedDigits",
    "RotatedMNIST",
    "SampleDataset",
    "SpawriousM2M_easy",
    "SpawriousM2M_hard",
    "SpawriousM2M_medium",
    "SpawriousO2O_easy",
    "SpawriousO2O_hard",
    "SpawriousO2O_medium",
    "TensorDomain",
    "TerraIncognita",
    "WILDSCamelyon",
    "WILDSFMoW",
    "Waterbirds",
    "check_domains",
    "dataset_facts",
    "domains_of",
    "folder_dataset",
    "get_dataset_class",
    "load_dataset",
    "manifest_dataset",
    "sample_dataset",
]
