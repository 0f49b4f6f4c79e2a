"""What a dataset is: a list of domains, and the facts about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import Dataset

from domainbed.config.dataset_info import DatasetInfo
from domainbed.config.dimensions import Option, refusal
from domainbed.core.registry import Registry
from domainbed.errors import UserError


class MultipleDomainDataset:
    """A dataset with several domains. The contract is DomainBed's.

    A subclass is called with `(root, test_envs, hparams)` — and `trial_seed` and `data_seed`, if
    its constructor takes them, see `load_dataset` — and sets `datasets`, `input_shape` and
    `num_classes`.

    Attributes:
        datasets: one `torch.utils.data.Dataset` of (x, y) pairs per domain. A `TensorDataset`
            is kept on the device as it is, a `Domain` says itself how it is read, and anything
            else is read by worker processes.
        input_shape: shape of x.
        num_classes: C.
        classes: their names, where the data has them.
        out_splits: for each domain the positions of the images that validate, where the dataset
            decides that; None where the trial does.
        features_folder: where the features lie that are the inputs; None where those are images.
    """

    ENVIRONMENTS: ClassVar[Sequence[str]] = ()
    N_STEPS: ClassVar[int] = 5001
    CHECKPOINT_FREQ: ClassVar[int] = 100
    small_images: ClassVar[bool] = False
    """Whether the search spaces of small images apply (protocol of the MNIST datasets)."""
    shareable: ClassVar[bool] = False
    """Whether the object depends on root and trial seed alone, so that runs may share it."""
    info: ClassVar[DatasetInfo | None] = None
    test_domains: ClassVar[Sequence[int] | None] = None
    """The domains that it is evaluated on, which is what sweeps plan; None for each of them."""
    augmented_domains: ClassVar[Sequence[int] | None] = None
    """The domains whose images are augmented, whatever is tested; None for the training domains."""
    options: ClassVar[Mapping[str, Option]] = {}
    """What hyper-parameters may change of the data; see `option`."""

    reads_images: ClassVar[bool] = False
    """Whether inputs are files of natural images, with their published preprocessing."""

    datasets: Sequence[Dataset[Any]]
    input_shape: Sequence[int]
    num_classes: int
    classes: Sequence[str] = ()
    out_splits: Sequence[Sequence[int]] | None = None
    features_folder: Path | None = None

    @property
    def class_names(self) -> list[str]:
        """Of the data, or as published, or else the classes' numbers."""
        published = self.info.classes if self.info else None
        return list(self.classes or published or map(str, range(self.num_classes)))

    @classmethod
    def option(cls, name: str, hparams: Mapping[str, Any]) -> Any:
        """The value of one of the class's `options`: the user's, or the default.

        Raises:
            UserError: the option cannot have the user's value.
        """
        declared = cls.options[name]
        value = hparams.get(name, declared.default)
        if not declared.accepts(value):
            raise UserError(
                f"hyper-parameter {name!r} of {cls.__name__} cannot be {value!r}: "
                f"{refusal(value, declared)}",
                "hparams",
                name,
            )
        return value

    def __getitem__(self, index: int) -> Dataset[Any]:
        return self.datasets[index]

    def __iter__(self) -> Iterator[Dataset[Any]]:
        return iter(self.datasets)

    def __len__(self) -> int:
        return len(self.datasets)


def _check_class(entry: Any) -> None:
    """Raises `ValueError` where a class is no dataset."""
    if not (isinstance(entry, type) and issubclass(entry, MultipleDomainDataset)):
        name = getattr(entry, "__name__", repr(entry))
        raise ValueError(
            f"{name} is no dataset: inherit from domainbed.datasets.MultipleDomainDataset"
        )


DATASETS: Registry[Any] = Registry(
    "dataset", entry_point_group="domainbed.datasets", check=_check_class
)
