"""What a dataset is: a list of domains, and the facts about them.

Datasets written for PyTorch or DomainBed are wrapped and checked here.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils.data import Dataset, TensorDataset, default_collate

from domainbed.config.dataset_info import DatasetInfo, published_info
from domainbed.config.dimensions import Option
from domainbed.core.minibatch import Join, tensors_of
from domainbed.core.names import DATASET_DOMAINS
from domainbed.core.registry import Registry, require_subclass
from domainbed.core.seeding import global_sources_kept
from domainbed.datasets.domain import Batch, Domain, LoadedDomain, TensorDomain
from domainbed.errors import UserError, one_line
from domainbed.metrics.labels import CLASSES, LabelType, label_type
from domainbed.networks import NETWORKS, is_shape


class MultipleDomainDataset:
    """A dataset with several domains. The contract is DomainBed's.

    A subclass is called with `(root, test_envs, hparams)` — and `trial_seed` and `data_seed`, if
    its constructor takes them, see `load_dataset` — and sets `datasets`, `input_shape` and
    `num_classes`.

    Attributes:
        datasets: one `torch.utils.data.Dataset` of (x, y) or (x, y, extras) per domain. A
            `TensorDataset` is kept on the device, a `Domain` defines how it is read, and any other
            dataset is read by worker processes.
        input_shape: shape of x. Where x has no one shape, whatever plain values tell the network
            what it needs (a vocabulary's size, say), or None.
        collate: from a list of what `datasets` return to a batch (x, y) or (x, y, extras), as a
            `DataLoader` takes it; None for PyTorch's own.
        join: from a list of the domains' x to one x; None for zeros where lengths differ.
        num_classes: C, the number of classes or of properties, or the numbers per sample that are
            regressed.
        labels: what labels are, by the name of a label type (`domainbed.metrics.labels`).
        group: the key of a sample's group in its extras, for metrics by group.
        attribute_names: the values of an attribute of the samples beside their label, such as the
            background of an image, in order; empty for none.
        attributes: for each domain the number of each sample's value; its extras have it as
            `attribute`, and as `group` the number of its group of label and attribute.
        groups: for each domain what each sample belongs to, such as a patient: no split cuts it. It
            is the `group` in the extras of samples without an attribute.
        classes: their names, where the data has them.
        out_splits: for each domain the positions of the images that validate, where the dataset
            decides that; None where the trial does.
        features_folder: of the features that are the inputs; None where these are images.
        digests: what `listing.content_digests` found of the files; None before it looked.
        notes: what a new run says of the data at its start, in lines.
        fingerprint: a digest of what the samples are made of, where these are no image files.
        encoding: what was learned of the samples that train, of how values become inputs: plain
            values, which a run keeps. A dataset that has a method `encode(trained, encoding)` is
            called with their positions, by domain, and what was kept by an earlier session or None.
        network: what turns x into features: a name in `NETWORKS`, or a class or function, which
            is registered by its own name; empty where the shape of x decides.
        space: "small" for the search spaces of networks that start from random weights (the
            protocol's for the MNIST datasets), "large" for those of pretrained ones; where it is
            empty, `small_images` decides, true for "small".
        search_space: dimensions of its own, also in place of those that all algorithms share, as
            an algorithm declares them.
        shareable: whether the object depends on root and trial seed alone, so that runs may
            share it.
        test_domains: the domains that it is evaluated on, which sweeps plan; None for all of them.
        augmented_domains: the domains whose images are always augmented; None for the training
            domains.
        metrics: what is recorded where a run names none; empty for those of the label type.
        options: what hyper-parameters may change about the data; see `option`.
        reads_images: whether inputs are files of natural images, with their published
            preprocessing.
    """

    ENVIRONMENTS: ClassVar[Sequence[str]] = ()
    N_STEPS: ClassVar[int] = 5001
    CHECKPOINT_FREQ: ClassVar[int] = 100
    network: ClassVar[Any] = ""
    space: ClassVar[str] = ""
    search_space: ClassVar[Any] = {}
    small_images: ClassVar[bool] = False
    shareable: ClassVar[bool] = False
    info: ClassVar[DatasetInfo | None] = None
    test_domains: ClassVar[Sequence[int] | None] = None
    augmented_domains: ClassVar[Sequence[int] | None] = None
    options: ClassVar[Mapping[str, Option]] = {}
    reads_images: ClassVar[bool] = False
    labels: ClassVar[str] = "classes"
    metrics: ClassVar[Sequence[str]] = ()
    group: ClassVar[str] = "group"

    datasets: Sequence[Dataset[Any]]
    input_shape: Any
    num_classes: int
    collate: Callable[[list[Any]], Batch] | None = None
    join: Join | None = None
    classes: Sequence[str] = ()
    attribute_names: Sequence[str] = ()
    attributes: Sequence[Sequence[int]] | None = None
    groups: Sequence[Sequence[str]] | None = None
    out_splits: Sequence[Sequence[int]] | None = None
    features_folder: Path | None = None
    digests: Any = None
    notes: Sequence[str] = ()
    fingerprint: str = ""
    encoding: Any = None

    @property
    def class_names(self) -> list[str]:
        """As in the data, or as published, or else numbers: of classes, of the two values of
        binary labels, or of the columns of labels."""
        published = self.info.classes if self.info else None
        count = 2 if label_type(self.labels).kind == "binary" else self.num_classes
        return list(self.classes or published or map(str, range(count)))

    @property
    def group_names(self) -> list[str]:
        """Of the groups of label and attribute, in order; of numbers, those of the attribute."""
        if not label_type(self.labels).has_classes:
            return list(self.attribute_names)
        return [f"{name}, {value}" for name in self.class_names for value in self.attribute_names]

    @classmethod
    def option(cls, name: str, hparams: Mapping[str, Any]) -> Any:
        """The value of one of the class's `options`: the user's, or the default."""
        return hparams.get(name, cls.options[name].default)

    def __getitem__(self, index: int) -> Dataset[Any]:
        return self.datasets[index]

    def __iter__(self) -> Iterator[Dataset[Any]]:
        return iter(self.datasets)

    def __len__(self) -> int:
        return len(self.datasets)


def network_of(cls: Any) -> str:
    """The name of the network that a dataset's class has; empty where inputs' shape decides.

    Raises:
        ValueError: it is a class or function whose name another network has.
    """
    network = getattr(cls, "network", "")
    return network if isinstance(network, str) else NETWORKS.register(network).__name__


def _check_class(entry: Any) -> None:
    """Raises `ValueError` where a class is no dataset; registers the network that it brings."""
    require_subclass(entry, MultipleDomainDataset, "dataset")
    network_of(entry)


AnyDataset = TypeVar("AnyDataset", bound=type[MultipleDomainDataset])

DATASETS: Registry[Any] = Registry(
    "dataset", entry_point_group="domainbed.datasets", check=_check_class
)


def published(cls: AnyDataset) -> AnyDataset:
    """Registers a dataset of the package, with its domains and what was published about it."""
    cls.ENVIRONMENTS, cls.info = DATASET_DOMAINS[cls.__name__], published_info(cls.__name__)
    return DATASETS.register(cls)


class ForeignDomain(LoadedDomain):
    """A `torch.utils.data.Dataset` of (x, y) or (x, y, extras).

    Args:
        dataset: with a length. What else it has is used: `augmented(index)`, an augmented one;
            `targets`, the labels; `unreadable`, positions of images to leave out.
        num_classes: of the labels, which are checked as they are read; None if it is not known.
        collate: see `LoadedDomain`.
        labels: their type.
    """

    def __init__(
        self,
        dataset: Any,
        num_classes: int | None = None,
        collate: Callable[[list[Any]], Batch] | None = None,
        labels: LabelType = CLASSES,
    ) -> None:
        self._dataset, self._num_classes, self.collate = dataset, num_classes, collate
        self._label_type = labels
        self._can_augment = hasattr(dataset, "augmented")
        self.labels_at_hand = hasattr(dataset, "targets")
        self.unreadable = list(getattr(dataset, "unreadable", ()))

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def labels(self) -> torch.Tensor:
        targets = getattr(self._dataset, "targets", None)
        if targets is None:
            with global_sources_kept(gpus=False):
                targets = [self._dataset[index][1] for index in range(len(self))]
        found = default_collate(list(targets))
        return found if found.is_floating_point() else found.long()

    def read(self, index: int, augment: bool) -> tuple[Any, ...]:
        augmented = augment and self._can_augment
        sample = self._dataset.augmented(index) if augmented else self._dataset[index]
        _, y, *_ = sample
        if self._num_classes is not None:
            self._label_type.check(torch.as_tensor(y)[None], self._num_classes, index)
        return sample


def domains_of(dataset: Any, labels: LabelType = CLASSES) -> list[Domain]:
    """The domains of any dataset that keeps DomainBed's contract, on the CPU.

    Args:
        dataset: its elements are a `Domain` each, a `TensorDataset`, or any other dataset of
            (x, y) or (x, y, extras). Where it has `out_splits`, these positions validate.
        labels: their type.

    Raises:
        UserError: a `TensorDataset` of other than two tensors.
    """
    num_classes, collate = (getattr(dataset, name, None) for name in ("num_classes", "collate"))
    domains: list[Domain] = []
    for each in dataset:
        if isinstance(each, Domain):
            domains.append(each)
        elif isinstance(each, TensorDataset):
            if len(each.tensors) != 2:
                raise UserError(
                    f"a TensorDataset has {len(each.tensors)} tensors, expected inputs and labels: "
                    "give more as domainbed.datasets.TensorDomain(x, y, extras)",
                    "dataset",
                )
            domains.append(TensorDomain(*each.tensors))
        else:
            domains.append(ForeignDomain(each, num_classes, collate, labels))
    domains = list(map(copy.copy, domains))
    join, out_splits, groups, attributes = (
        getattr(dataset, name, None) for name in ("join", "out_splits", "groups", "attributes")
    )
    for number, domain in enumerate(domains):
        domain.join = join or domain.join
        if out_splits is not None:
            domain.out_split = out_splits[number]
        if groups is not None:
            domain.groups = groups[number]
            domain.noted = {**domain.noted, "group": groups[number]}
        if attributes is not None:
            group = attribute = torch.as_tensor(attributes[number])
            if labels.has_classes:
                group = attribute + len(dataset.attribute_names) * domain.labels.reshape(-1).long()
            domain.noted = {**domain.noted, "attribute": attribute, "group": group}
    return domains


def require_contract(dataset: Any) -> None:
    """Raises a UserError where `dataset` lacks an attribute that every dataset sets."""
    for name in ("datasets", "input_shape", "num_classes"):
        if not hasattr(dataset, name):
            raise UserError(
                f"dataset {type(dataset).__name__} has no {name!r}: set it in the constructor",
                "dataset",
            )


def check_domains(
    dataset: Any, domains: Sequence[Domain], network: str = "", labels: LabelType = CLASSES
) -> None:
    """Checks the domains' number, all labels that are at hand, and each domain's first sample.

    Args:
        dataset: see `domains_of`.
        domains: of it.
        network: what turns inputs into features; empty where their shape decides, so that they
            must be float32 tensors of `input_shape`.
        labels: their type.

    Raises:
        UserError: the number of domains is not that of their names, a label is none of its type,
            or an input is not as announced.
    """
    names = getattr(dataset, "ENVIRONMENTS", ())
    if names and len(names) != len(domains):
        raise UserError(
            f"dataset {type(dataset).__name__} has {len(domains)} domains, but ENVIRONMENTS has "
            f"{len(names)} names: name each domain once",
            "dataset",
        )
    for number, domain in enumerate(domains):
        try:
            _check_domain(dataset, domain, bool(network), labels)
        except UserError as error:
            place = f"domain {number} of dataset {type(dataset).__name__}"
            raise UserError(f"{place}: {error}", *error.where) from error


def _check_domain(dataset: Any, domain: Domain, has_network: bool, labels: LabelType) -> None:
    try:
        sample = domain.first_sample()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"its first sample makes no batch ({one_line(error)}): return (x, y) or "
            "(x, y, extras), and what 'collate' makes of a list of them",
            "dataset",
        ) from error
    if sample:
        x, y = sample
        _check_inputs(x, dataset.input_shape, has_network)
        if not isinstance(y, torch.Tensor):
            raise UserError(f"its labels are a {type(y).__name__}, expected a tensor", "dataset")
        assert sample.index is not None
        labels.check(y, dataset.num_classes, int(sample.index))
    if domain.labels_at_hand:
        if len(domain.labels) != len(domain):
            raise UserError(f"{len(domain)} images, but {len(domain.labels)} labels", "dataset")
        labels.check(domain.labels, dataset.num_classes)
        if labels.kind == "classes":
            _check_classes_left(domain, dataset)


def _check_classes_left(domain: Domain, dataset: Any) -> None:
    """Raises where no image of a class can be read."""
    is_readable = torch.ones(len(domain), dtype=torch.bool)
    is_readable[list(domain.unreadable)] = False
    labels = domain.labels
    for label in sorted({*labels[~is_readable].tolist()} - {*labels[is_readable].tolist()}):
        raise UserError(
            f"no image of class {dataset.class_names[label]!r} can be read: replace them, or "
            "remove the class from all domains",
            *("hparams", "corrupt_images"),
        )


def _check_inputs(x: Any, shape: Any, has_network: bool) -> None:
    """Checks the inputs of one sample."""
    tensors, by_shape = tensors_of(x), is_shape(shape) and not has_network
    remedy = "; for a network of its own, the dataset names it as 'network'" if by_shape else ""
    if not is_shape(shape):
        try:
            json.dumps(shape)  # as it is kept with the model
        except TypeError as error:
            raise UserError(
                f"the dataset's input_shape is {shape!r} ({error}): set a shape, or plain values",
                "dataset",
            ) from error
    if not tensors or (by_shape and not isinstance(x, torch.Tensor)):
        nest = "" if by_shape else ", or a dict, list or tuple of tensors"
        raise UserError(
            f"its inputs are a {type(x).__name__}, expected a tensor{nest}{remedy}",
            "dataset",
        )
    for each in tensors:
        checks: list[tuple[str, Any, Any]] = [
            ("number of its inputs for 1 label", tuple(each.shape[:1]), (1,))
        ]
        if by_shape or each.is_floating_point():
            checks.append(("dtype of its inputs", each.dtype, torch.float32))
        if each is x and is_shape(shape):
            checks.append(("shape of its inputs", tuple(each.shape[1:]), tuple(shape)))
        for what, here, expected in checks:
            if here != expected:
                raise UserError(f"the {what} is {here}, expected {expected}{remedy}", "dataset")
