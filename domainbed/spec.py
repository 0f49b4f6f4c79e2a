"""What defines a run, resolved: names looked up, defaults and draws filled in, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from domainbed import hparams as search
from domainbed.algorithms import get_algorithm_class
from domainbed.config.protocols import (
    DEFAULT_PROTOCOL,
    FROZEN_FEATURES,
    Protocol,
    get_protocol,
    of_frozen_features,
)
from domainbed.config.run_fields import FeatureSource, RunFields
from domainbed.config.settings import make
from domainbed.core.files import file_digest
from domainbed.core.names import dataset_label, describe_run
from domainbed.core.seeding import run_seed, shared_initial_seed
from domainbed.datasets import get_dataset_class
from domainbed.datasets.features import reads_text
from domainbed.errors import UserError
from domainbed.metrics import METRICS

ALWAYS = (
    *("protocol", "protocol_version", "dataset", "algorithm", "test_envs"),
    *("hparams_seed", "trial_seed", "seed", "steps", "checkpoint_freq", "hparams"),
)
"""The fields that every identity holds; of the others, those that the protocol has otherwise."""

MOST_SEED = 2**32 - 1  # of NumPy's global source


class RunSpec(RunFields):
    """One training, as pure data. `RunSpec.create` makes it of what a user gives.

    Attributes:
        protocol_version: of the protocol's file.
        dataset: as `datasets.get_dataset_class` takes it.
        algorithm: a name that `algorithms.get_algorithm_class` takes.
        test_envs: the test domains, in ascending order.
        hparams_seed: 0 for the defaults, any other for a random draw.
        trial_seed: decides the split and the dataset's noise.
        seed: of everything else.
        steps: number of updates.
        checkpoint_freq: updates between records.
        hparams: all hyper-parameters.
        fixed_hparams: those of them that the user set.
        digests: of hyper-parameters that name a file, the SHA-256 of its content.
        rerun: of a run that repeats in a new trial what a selection method chose, the method.

    The other attributes are those of `RunFields`.
    """

    protocol_version: int
    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    hparams_seed: int = Field(0, ge=0, le=MOST_SEED)
    trial_seed: int = Field(0, ge=0, le=MOST_SEED)
    seed: int = Field(ge=0, le=MOST_SEED)
    steps: int = Field(ge=1)
    checkpoint_freq: int = Field(ge=1)
    hparams: dict[str, Any]
    fixed_hparams: dict[str, Any] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    rerun: str = ""

    @classmethod
    def create(
        cls,
        dataset: str,
        algorithm: str,
        test_envs: Sequence[int],
        *,
        protocol: str | None = None,
        hparams_seed: int = 0,
        trial_seed: int = 0,
        seed: int | None = None,
        steps: int | None = None,
        checkpoint_freq: int | None = None,
        hparams: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> RunSpec:
        """A resolved spec; None means the protocol's value (for `seed`: derived from the rest).

        Without a `protocol` it is the default one, or with `features` that of frozen features.

        The arguments are the attributes of the same names, but for `hparams`: fixed values, which
        win over defaults and draws. `fields` are other fields of `RunFields`.

        Raises:
            UserError: a value that cannot be; the message names it and what would be right.
        """
        protocol = protocol or (FROZEN_FEATURES if fields.get("features") else DEFAULT_PROTOCOL)
        data, published = get_dataset_class(dataset), get_protocol(protocol)
        get_algorithm_class(algorithm)
        label, ordered = dataset_label(dataset), tuple(sorted(test_envs))
        set_here = {"seed": seed, "steps": steps, "checkpoint_freq": checkpoint_freq}
        draft = make(
            cls,
            {
                **published.fields,
                **fields,
                "protocol": protocol,
                "protocol_version": published.version,
                "dataset": dataset,
                "algorithm": algorithm,
                "test_envs": ordered,
                "hparams_seed": hparams_seed,
                "trial_seed": trial_seed,
                "seed": run_seed(label, algorithm, ordered, hparams_seed, trial_seed),
                "steps": published.steps.get(label, data.N_STEPS),
                "checkpoint_freq": published.checkpoint_freq.get(label, data.CHECKPOINT_FREQ),
                "hparams": {},
                "fixed_hparams": dict(hparams or {}),
                **{name: value for name, value in set_here.items() if value is not None},
            },
        )
        _check(draft, len(data.ENVIRONMENTS))
        return _resolved(draft)

    def variant(
        self, hparams_seed: int, trial_seed: int, hparams: Mapping[str, Any] | None = None
    ) -> RunSpec:
        """The run of another hparams seed and trial, with its own derived seed and draws.

        `hparams` are those draws, where they are known: they do not depend on the test domains.
        """
        seed = run_seed(
            self.dataset_label, self.algorithm, self.test_envs, hparams_seed, trial_seed
        )
        changes = {"hparams_seed": hparams_seed, "trial_seed": trial_seed, "seed": seed}
        if hparams is not None:
            return self.model_copy(update={**changes, "hparams": dict(hparams)})
        return _resolved(self.model_copy(update=changes))

    @property
    def dataset_label(self) -> str:
        """The dataset's name in records and tables, free of any machine's paths."""
        return dataset_label(self.dataset)

    @property
    def initial_seed(self) -> int:
        """Of the weights that training begins with, and of what an algorithm draws in updates."""
        if self.initial_weights != "own":
            return shared_initial_seed(self.dataset_label, self.trial_seed)
        return self.seed

    @property
    def tolerance_ratio(self) -> float:
        """SWAD's, for VLCS another one, as published (Cha et al. 2021, section 4.1)."""
        published = 1.2 if self.dataset_label == "VLCS" else 1.3
        return published if self.swad_ratio is None else self.swad_ratio

    def identity(self) -> dict[str, Any]:
        """What the run's numbers depend on, as JSON values.

        The protocol's name and version, what is resolved, and the fields that differ from the
        protocol's values: a new field with a default changes no identity. A file counts by its
        content.
        """
        usual = field_values(get_protocol(self.protocol))
        values = self.as_json()
        digests = dict(self.digests)
        if self.features:
            values["features"] = _identity_of(self.features, digests.pop(_WEIGHTS, None))
        values["hparams"] = {**self.hparams, **digests}
        return {
            name: value
            for name, value in values.items()
            if name in (*ALWAYS, "rerun") or (name in usual and value != usual[name])
        }

    @property
    def run_id(self) -> str:
        """The name of the run's folder: a hash of its identity."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.md5(text.encode("utf-8")).hexdigest()

    def planned(self) -> dict[str, Any]:
        """What tells the run from the others of its sweep, as plan.json keeps it."""
        return {
            "dataset": self.dataset_label,
            "algorithm": self.algorithm,
            "test_envs": list(self.test_envs),
            "hparams_seed": self.hparams_seed,
            "trial_seed": self.trial_seed,
            "steps": self.steps,
        }

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values, with the dataset's label in place of any path."""
        values = {**self.model_dump(mode="json"), "dataset": self.dataset_label}
        return values if self.rerun else {n: v for n, v in values.items() if n != "rerun"}

    def describe(self) -> str:
        """One line for people: "Fishr on PACS, test domain 0, hparams seed 3, trial 1"."""
        return describe_run(self.as_json())


_WEIGHTS = "features.weights"


def _identity_of(features: FeatureSource, digest: str | None) -> dict[str, Any]:
    """What is not as usual, and the backbone; a file of weights counts by its content."""
    said = {"backbone": features.backbone, **features.model_dump(exclude_defaults=True)}
    return {**said, "weights": digest} if digest else said


def field_values(protocol: Protocol) -> dict[str, Any]:
    """The value under `protocol` of each field of a run that nobody sets, as JSON values."""
    return RunFields().model_dump(mode="json") | dict(protocol.fields)


def _resolved(draft: RunSpec) -> RunSpec:
    """The same run, with all its hyper-parameters."""
    protocol, on_features = get_protocol(draft.protocol), draft.features is not None
    of_text = {"featurizer": _OF_TEXT} if draft.initial_weights == "text" else {}
    values = search.resolve(
        draft.algorithm,
        draft.dataset_label,
        protocol_options={**protocol.options, **of_text},
        protocol_defaults=protocol.defaults.get(draft.algorithm, {}),
        protocol_ranges=protocol.ranges.get(draft.algorithm, {}),
        fixed=draft.fixed_hparams,
        hparams_seed=draft.hparams_seed,
        trial_seed=draft.trial_seed,
        shared_draws=draft.shared_draws,
        in_sequence=draft.draws == "in-sequence",
        features=on_features,
    )
    files = search.file_options(draft.algorithm, draft.dataset_label, on_features)
    digests = {
        name: _digest(values[name]) for name in files if Path(values.get(name, "")).is_file()
    }
    if draft.features and Path(draft.features.weights).is_file():
        digests[_WEIGHTS] = _digest(draft.features.weights)
    return draft.model_copy(update={"hparams": values, "digests": digests})


def _digest(file: str) -> str:
    facts = Path(file).stat()
    return _content_digest(file, facts.st_mtime_ns, facts.st_size)


@lru_cache  # a sweep asks once per run
def _content_digest(file: str, modified: int, size: int) -> str:
    """The SHA-256 of a file, read anew if it has changed since."""
    return f"sha256:{file_digest(Path(file))}"


def _check(spec: RunSpec, domains: int) -> None:
    """What depends on several fields, or on the dataset."""
    for metric in spec.metrics:
        METRICS[metric]
    if domains == 1:
        raise UserError(
            f"dataset {spec.dataset_label} has 1 domain: training needs one and testing another",
            "dataset",
        )
    # A dataset from outside may not list its domains; then only loading it can tell.
    highest = domains - 1 if domains else 10**6
    rules = [
        ("test_envs", bool(spec.test_envs), "at least one test domain"),
        (
            "test_envs",
            all(0 <= e <= highest for e in spec.test_envs),
            f"domains of {spec.dataset_label} between 0 and {highest}",
        ),
        ("test_envs", len(set(spec.test_envs)) == len(spec.test_envs), "each domain once"),
        (
            "test_envs",
            not domains or len(spec.test_envs) < domains,
            f"a training domain left ({spec.dataset_label} has {domains} in all)",
        ),
        (
            "uda_holdout_fraction",
            spec.task != "domain_adaptation" or spec.uda_holdout_fraction > 0,
            "more than 0 in the task domain_adaptation",
        ),
        (
            "uda_holdout_fraction",
            spec.task == "domain_adaptation" or spec.uda_holdout_fraction == 0,
            "0, unless the task is domain_adaptation",
        ),
        (
            "swad_n_tolerance",
            spec.swad_n_tolerance >= spec.swad_n_converge,
            f"swad_n_converge ({spec.swad_n_converge}) or more",
        ),
    ]
    for name, holds, expected in rules:
        if not holds:
            raise UserError(f"{name} is {getattr(spec, name)!r}: expected {expected}", name)
    _check_features(spec)
    if lack := domain_shortage(spec.dataset, spec.algorithm, spec.test_envs):
        raise UserError(f"test_envs is {spec.test_envs!r}: {lack}; hold out fewer", "test_envs")


def _check_features(spec: RunSpec) -> None:
    """Features and a protocol of frozen features go together, and suit dataset and algorithm."""
    suited = of_frozen_features()
    if bool(spec.features) != (spec.protocol in suited):
        what = "is set" if spec.features else "is not set"
        others = f"name one of frozen features ({', '.join(suited)})"
        remedy = f"leave 'protocol' out, or {others}" if spec.features else "set 'features'"
        raise UserError(
            f"features {what} under the protocol {spec.protocol!r}: {remedy}", "features"
        )
    if spec.features and not getattr(get_dataset_class(spec.dataset), "reads_images", False):
        raise UserError(
            f"features are of image files, and {spec.dataset_label} has none: leave 'features' out",
            "features",
        )
    if lack := unsuited(spec.dataset, spec.algorithm, spec.features):
        raise UserError(lack, "algorithm")
    if spec.initial_weights == "text" and not (spec.features and reads_text(spec.features)):
        raise UserError(
            f"initial_weights is 'text', which {_NEEDS_TEXT}; or choose other initial_weights",
            "initial_weights",
        )
    named = spec.fixed_hparams.get("featurizer", _OF_TEXT)
    if spec.initial_weights == "text" and named != _OF_TEXT:
        raise UserError(
            f"hyper-parameter 'featurizer' is {named!r}, but initial_weights is 'text', a "
            f"classifier on features of length 1: leave it out, which means {_OF_TEXT!r}",
            *("hparams", "featurizer"),
        )


_OF_TEXT = "UnitFeatures"
"""The featurizer below a classifier that begins as one made of text: nothing is trained there."""

_NEEDS_TEXT = "needs features of a backbone that reads text: set 'features' to open_clip:NAME"


def unsuited(dataset: str, algorithm: str, features: FeatureSource | None) -> str:
    """Why an algorithm cannot do with images, or with features of them; empty where it can."""
    cls = get_algorithm_class(algorithm)
    if features and cls.needs_images:
        return f"{algorithm} needs images, and works on no features of them"
    if cls.needs_text and not (features and reads_text(features)):
        return f"{algorithm} {_NEEDS_TEXT}"
    natural = getattr(get_dataset_class(dataset), "reads_images", False)
    if cls.needs_features and natural and not features:
        return f"{algorithm} needs features of images: set the field 'features'"
    return ""


def obstacle(
    dataset: str, algorithm: str, test_envs: Sequence[int], features: FeatureSource | None = None
) -> str:
    """Why an algorithm cannot do a run that others could; empty where it can."""
    inputs = unsuited(dataset, algorithm, features)
    return inputs or domain_shortage(dataset, algorithm, test_envs)


def domain_shortage(dataset: str, algorithm: str, test_envs: Sequence[int]) -> str:
    """Why so many test domains are too many for an algorithm that could do with fewer.

    Empty where they are not, where they are too many for all algorithms, and where the dataset's
    class does not list its domains.
    """
    least = get_algorithm_class(algorithm).least_domains
    domains = len(get_dataset_class(dataset).ENVIRONMENTS)
    if not 0 < domains - len(test_envs) < least:
        return ""
    label = dataset_label(dataset)
    return (
        f"{algorithm} needs at least {least} training domains, and {len(test_envs)} of the "
        f"{domains} of {label} are held out"
    )
