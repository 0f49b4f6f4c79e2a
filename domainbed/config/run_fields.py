"""The settings of a run and of its diagnosis: each once, with type, bounds, default and help.

`RunFields` decide a run's numbers, `RunOptions` do not. The flags of commands, the fields of a
sweep's config, and the tables of the documentation follow from these declarations.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from domainbed.config.protocols import DEFAULT_PROTOCOL
from domainbed.core.flags import add_flags
from domainbed.core.settings import (
    Items,
    Listed,
    Settings,
    Text,
    checked,
    converted,
    known_to,
)
from domainbed.errors import UserError


class FeatureSource(Settings):
    """What computes the features of images, once, for `domainbed data features` and for runs."""

    backbone: Text = Field(
        "efficientnet_lite0",
        description="a torchvision model, timm:NAME, open_clip:NAME, or efficientnet_lite0",
    )
    weights: Text = Field(
        "imagenet", description="imagenet: the published ones; none; or the path of a state dict"
    )
    views: int = Field(
        0, ge=0, description="augmented views of each image, besides the image itself"
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="number format that features are computed and kept in"
    )

    def describe(self) -> str:
        """In a few words: "features of resnet50, 4 views"."""
        words = [f"features of {self.backbone}"]
        words += [f"weights {self.weights}"] if self.weights != "imagenet" else []
        words += [f"{self.views} views"] if self.views else []
        return ", ".join(words + ["bf16"] * (self.precision == "bf16"))


class DataFields(Settings):
    """How a user's own data is to be read: its columns and the names in it."""

    columns: dict[Text, Text | list[Text]] = Field(
        {},
        description="what a table's columns are: {path: image, label: diagnosis, group: patient}",
        json_schema_extra={
            "default_text": "columns with these names; none for group and attribute"
        },
    )
    classes: dict[Text, Listed[Text]] = Field(
        {},
        description="names in the data that stand for a class: {bird: [vogel, flying]}",
        json_schema_extra={"default_text": "each name is a class"},
    )
    missing_classes: Literal["refuse", "allow"] = Field(
        "refuse", description="what to do about domains without some of the classes"
    )

    def of_data(self) -> str:
        """These fields alone, as JSON."""
        return self.model_dump_json(include={*DataFields.model_fields})

    @property
    def meant(self) -> dict[str, str]:
        """The class that a name in the data means, where that is another.

        Raises:
            UserError: a name means two classes.
        """
        pairs = [(other, name) for name, others in self.classes.items() for other in others]
        for other, names in Counter(other for other, _ in pairs).items():
            if names > 1:
                raise UserError(f"{other!r} means {names} classes: name it once", "classes")
        return dict(pairs)


# In place of fixed hyper-parameters, or among them: take the others from a released baseline.
TUNED = "tuned"

FixedHparams = Annotated[
    dict[str, Any],
    converted(
        lambda value: {TUNED: True} if value == TUNED else value,
        accepts=dict[str, Any] | Literal["tuned"],
    ),
]


class RunFields(DataFields):
    """What a run's numbers depend on. A field that is not set has its protocol's value."""

    protocol: str = Field(
        DEFAULT_PROTOCOL, description="the protocol, which gives all values that are not set"
    )
    features: (
        Annotated[
            FeatureSource,
            converted(
                lambda value: {"backbone": value} if isinstance(value, str) else value,
                accepts=str | FeatureSource,
            ),
        ]
        | None
    ) = Field(
        None,
        description="train on frozen features: a backbone, or {backbone: …, weights: …, views: …}",
        json_schema_extra={"default_text": "images"},
    )
    steps: int | None = Field(
        None, ge=1, description="updates", json_schema_extra={"default_text": "the dataset's"}
    )
    checkpoint_freq: int | None = Field(
        None,
        ge=1,
        description="updates between records",
        json_schema_extra={"default_text": "the dataset's"},
    )
    holdout_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of a domain in its out-split"
    )
    uda_holdout_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="fraction of a test domain's in-split that is given without labels",
    )
    split: Literal["published", "stratified"] = Field(
        "published",
        description="published: the data's own, else random; stratified: random, with the same "
        "share of each class in all splits of a domain",
    )
    task: Literal["domain_generalization", "domain_adaptation"] = Field(
        "domain_generalization", description="domain_adaptation also gives unlabelled test images"
    )
    labels: Text = Field(
        "classes",
        description="type of labels: classes, binary, multilabel, regression, or a registered one",
        json_schema_extra={"default_text": "the dataset's, usually classes"},
    )
    draws: Literal["by-name", "in-sequence"] = Field(
        "by-name", description="how random hyper-parameters are drawn"
    )
    shared_draws: bool = Field(
        False,
        description="use the same random hyper-parameters in all trials (DomainBed redraws them)",
    )
    data_seed: Literal["trial", "run"] = Field(
        "trial", description="which seed determines the shuffling, label and colour noise of MNIST"
    )
    augment_validation: bool = Field(
        False, description="augment validation images of training domains, as DomainBed does"
    )
    eval_splits: Literal["all", "needed", "selection", "best"] = Field(
        "needed",
        description="splits evaluated at records: all, all but the training domains' in-splits, "
        "what selection can read, or what it can read without leave-one-domain-out",
    )
    record_last_step: bool = Field(
        True, description="write a record at the last step, whatever the interval"
    )
    metrics: Listed[Text] = Field(
        ("accuracy",),
        description="metrics recorded on every split; NAME_by_group measures each group",
        json_schema_extra={"default_text": "accuracy, or those of the labels"},
    )
    precision: Literal["float32", "bf16", "tf32"] = Field(
        "float32",
        description="bf16: mixed precision; tf32: matrix products on a GPU in TF32",
    )
    on_divergence: Literal["fail", "continue"] = Field(
        "fail", description="what to do if the loss is not finite"
    )

    initial_weights: Literal["own", "shared", "linear-probe", "text"] = Field(
        "own",
        description="shared: the same for all runs of a trial; linear-probe: also a classifier "
        "fitted to the initial features; text: a classifier made from the class names",
    )
    averages: Items[Literal["ema", "sma", "swad", "wise"]] = Field(
        (), description="averages of the weights to evaluate besides the last weights"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the exponential moving average, per update"
    )
    sma_start: int = Field(100, ge=0, description="first update in the simple moving average")
    swad_n_converge: int = Field(
        3,
        ge=1,
        description="SWAD starts at the first of this many records if it is the best of them",
    )
    swad_n_tolerance: int = Field(
        6, ge=1, description="SWAD ends before this many consecutive records above its limit"
    )
    swad_ratio: float | None = Field(
        None,
        ge=1,
        description="SWAD's limit, as a multiple of the loss at its start",
        json_schema_extra={"default_text": "1.3, on VLCS 1.2"},
    )

    swad_rule: Literal["paper", "authors"] = Field(
        "paper", description="SWAD's start and end: algorithm 1 of the paper, or its authors' code"
    )
    wise_alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="WiSE-FT's weight of the trained weights, against the initial ones",
    )

    def run_fields(self) -> dict[str, Any]:
        """The fields that were given, without a subclass's own; the protocol decides the others."""
        return {
            name: getattr(self, name)
            for name in RunFields.model_fields
            if name in self.model_fields_set
        }


class RunOptions(Settings):
    """Where a run is trained and what is kept of it; nothing here changes its numbers."""

    data_dir: Text = Field("data", description="folder of the datasets")
    device: Text | None = Field(
        None,
        description="cpu, cuda or mps",
        json_schema_extra={"default_text": "the best available"},
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="processes that read images, in total",
        json_schema_extra={"default_text": "one per core, at most 8"},
    )
    scratch: Text | None = Field(
        None,
        description="folder on the machine's own disk, such as $TMPDIR, in which a run writes; "
        "it is copied to the run's folder at each record",
    )
    keep: Literal["all", "last", "selected", "none"] | None = Field(
        None,
        description="weights to keep: all (of each record), last, selected (the last, and those "
        "that selection methods choose), or none",
        json_schema_extra={"default_text": "last"},
    )
    skip_model_save: bool = Field(False, description="DomainBed's name for keep: none")
    save_model_every_checkpoint: bool = Field(False, description="DomainBed's name for keep: all")
    selection: Items[Text] | None = Field(
        None,
        description="selection methods for `keep: selected`",
        json_schema_extra={"default_text": "all"},
    )
    selection_metric: Text | None = Field(
        None,
        description="metric by which selection methods choose, for `keep: selected`, "
        "`eval_splits: best` and the tables",
        json_schema_extra={"default_text": "accuracy, or that of the labels"},
    )
    trackers: Items[Annotated[Text, known_to("domainbed.runs.trackers", "TRACKERS")]] = Field(
        (), description="services that also receive records: tensorboard, wandb, mlflow"
    )
    save_predictions: bool = Field(
        False, description="after training, keep the logits of every image, as Parquet"
    )

    plugins_changed: Literal["accept", "redo"] | None = Field(
        None,
        description="what to do about runs made with another version of a plug-in: accept them, or "
        "redo them and keep the old version in the run's folder",
        json_schema_extra={"default_text": "refuse"},
    )

    @model_validator(mode="after")
    def _check_keep(self) -> RunOptions:
        flags = {"none": self.skip_model_save, "all": self.save_model_every_checkpoint}
        if self.keep and any(given and meant != self.keep for meant, given in flags.items()):
            name = "skip_model_save" if self.skip_model_save else "save_model_every_checkpoint"
            raise UserError(f"keep is {self.keep!r}, and {name} is set: leave one out", "keep")
        return self

    @property
    def weights(self) -> str:
        """Which weights are kept, by whichever field: "all", "last", "selected" or "none"."""
        if self.keep or self.skip_model_save:
            return self.keep or "none"
        return "all" if self.save_model_every_checkpoint else "last"

    def run_options(self) -> RunOptions:
        """The options alone, without a subclass's other fields."""
        return RunOptions(**{name: getattr(self, name) for name in RunOptions.model_fields})


_Curvature = Literal["variance", "empirical_fisher", "true_fisher", "hessian", "full_hessian"]

# The names of curvatures; all but the last, which takes the longest, are computed by default.
CURVATURES: tuple[_Curvature, ...] = get_args(_Curvature)


def _two_or_none(domains: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(domains)) not in (0, 2):
        raise UserError(f"expected two domains, found {list(domains)}")
    return domains


class DiagnosisOptions(Settings):
    """How to look at a run.

    `landscape` names two domains whose risks are computed around the weights; an empty list means
    the first two training domains, None no landscape.
    """

    curvatures: Listed[_Curvature] = Field(
        CURVATURES[:-1], description="used in place of the Hessian"
    )
    landscape: Annotated[tuple[int, ...], Field(strict=False), checked(_two_or_none)] | None = (
        Field(None, description="two domains whose risks are computed around the weights")
    )
    epsilon: float = Field(0.1, gt=0, description="how much the risk of A may rise, in nats")
    damping: float = Field(
        1e-3, gt=0, description="added to all curvatures, relative to their mean"
    )
    samples: int = Field(2000, ge=0, description="images per domain, from its in-split; 0 for all")
    data_dir: Text = Field("data", description="folder of the datasets")
    dataset: Text | None = Field(
        None, description="where the run's own images are now: folder:PATH or a YAML file"
    )
    device: Text | None = Field(
        None,
        description="cpu, cuda or mps",
        json_schema_extra={"default_text": "the best available"},
    )
    num_workers: int = Field(0, ge=0, description="processes that read images")


_AVERAGING = (
    *("averages", "ema_decay", "sma_start", "wise_alpha"),
    *("swad_n_converge", "swad_n_tolerance", "swad_ratio", "swad_rule"),
)


def add_run_flags(parser: argparse.ArgumentParser, model: type[Settings]) -> None:
    """Declares a flag for each field: those that `model` adds to a run's first, then groups."""
    own = list(model.__annotations__)
    groups = {
        "training and evaluation": {*RunFields.model_fields} - {*own, *_AVERAGING},
        "averages of the weights": {*_AVERAGING},
        "where runs are trained, and what is kept": {*RunOptions.model_fields} - {*own},
    }
    add_flags(parser, model, only=own)
    for title, fields in groups.items():
        group = parser.add_argument_group(title)
        add_flags(group, model, only=[name for name in model.model_fields if name in fields])
