"""What defines a run, resolved: names looked up, values checked, defaults and draws filled in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from domainbed.algorithms import Algorithm, get_algorithm_class, optimizers
from domainbed.algorithms.base import AUTHORS, DOMAINBED, chosen_options
from domainbed.config.baselines import baseline_of, tuned_hparams
from domainbed.config.protocols import (
    DEFAULT_PROTOCOL,
    FROZEN_FEATURES,
    Protocol,
    get_protocol,
    of_frozen_features,
)
from domainbed.config.run_fields import DataFields, RunFields
from domainbed.core.files import file_digest
from domainbed.core.names import dataset_label, describe_run
from domainbed.core.seeding import hparams_draw_seed, run_seed, seed_hash
from domainbed.core.settings import make
from domainbed.core.yaml_file import Where
from domainbed.datasets import get_dataset_class
from domainbed.datasets.features import reads_text
from domainbed.errors import UserError
from domainbed.hparams import Space
from domainbed.metrics import check_metrics, registered_as
from domainbed.metrics.labels import label_type

ALWAYS = (
    *("protocol", "protocol_version", "dataset", "algorithm", "test_envs"),
    *("hparams_seed", "trial_seed", "seed", "steps", "checkpoint_freq", "hparams"),
)
"""The fields of every identity; others are in it if they differ from the protocol's values."""

# Fields that stand in no JSON and no identity where they have these values.
_IF_SET = {"rerun": "", "tuned": "", "revision": 1}

MOST_SEED = 2**32 - 1  # of NumPy's global source

_WEIGHTS = "features.weights"

# The featurizer below a classifier that starts as one made of text: it trains nothing.
_OF_TEXT = "UnitFeatures"

_NEEDS_TEXT = "needs features of a backbone that reads text: set 'features' to open_clip:NAME"

_Rule = tuple[Any, str, Where]  # whether it holds, or else what is said, and of which field


class RunSpec(RunFields):
    """One training run, as pure data. `RunSpec.create` makes it from what a user gives.

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
        tuned: the released baseline that the hyper-parameters are taken from.
        revision: of the algorithm's updates, see `Algorithm.revision`.

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
    tuned: str = ""
    revision: int = 1

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
        win over defaults and draws; {"tuned": True} in it takes the others from a released
        baseline. `fields` are other fields of `RunFields`.

        Raises:
            UserError: a wrong value; the message names it and what would be right.
        """
        chosen = {"protocol": protocol, "steps": steps, "checkpoint_freq": checkpoint_freq}
        fields |= {name: value for name, value in chosen.items() if value is not None}
        resolver = Resolver.of(dataset, algorithm, hparams, fields, cls)
        return resolver.run(test_envs, hparams_seed, trial_seed, seed)

    def variant(self, hparams_seed: int, trial_seed: int, hparams: Mapping[str, Any]) -> RunSpec:
        """The run of another hparams seed and trial, with its own derived seed and these draws."""
        return self.model_copy(
            update={
                "hparams_seed": hparams_seed,
                "trial_seed": trial_seed,
                "seed": run_seed(
                    self.dataset_label, self.algorithm, self.test_envs, hparams_seed, trial_seed
                ),
                "hparams": dict(hparams),
            }
        )

    @property
    def dataset_label(self) -> str:
        """The dataset's name in records and tables, free of any machine's paths."""
        return dataset_label(self.dataset)

    @property
    def initial_seed(self) -> int:
        """The seed of the weights that training starts with, and of the draws of updates."""
        if self.initial_weights != "own":
            return seed_hash(self.dataset_label, self.trial_seed, "initial weights")
        return self.seed

    @property
    def tolerance_ratio(self) -> float:
        """SWAD's, which differs for VLCS, as published (Cha et al. 2021, section 4.1)."""
        return self.swad_ratio or (1.2 if self.dataset == "VLCS" else 1.3)

    def identity(self) -> dict[str, Any]:
        """What the run's numbers depend on, as JSON values.

        The protocol's name and version, what is resolved, and the fields that differ from the
        protocol's values: a new field with a default changes no identity. A file counts by its
        content.
        """
        usual = RunFields().model_dump(mode="json") | dict(get_protocol(self.protocol).fields)
        values, digests = self.as_json(), dict(self.digests)
        if self.features:
            said = self.features.model_dump(exclude_defaults=True)
            of_weights = {"weights": digests.pop(_WEIGHTS)} if _WEIGHTS in digests else {}
            values["features"] = {"backbone": self.features.backbone, **said, **of_weights}
        values["hparams"] = {**self.hparams, **digests}
        return {
            name: value
            for name, value in values.items()
            if name in (*ALWAYS, *_IF_SET) or (name in usual and value != usual[name])
        }

    @property
    def run_id(self) -> str:
        """The name of the run's folder: a hash of its identity."""
        return hashlib.md5(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def planned(self) -> dict[str, Any]:
        """What distinguishes the run from the others of its sweep, as plan.json keeps it."""
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
        return {name: v for name, v in values.items() if name not in _IF_SET or v != _IF_SET[name]}

    def describe(self) -> str:
        """One line for people: "Fishr on PACS, test domain 0, hparams seed 3, trial 1"."""
        return describe_run(self.as_json())


@dataclass(frozen=True)
class Resolver:
    """Makes the runs of an algorithm on a dataset; names are looked up once for all of them.

    Attributes:
        data: the dataset's class.
        algorithm: its class.
        protocol: of all runs.
        space: their hyper-parameters.
        draft: a run without test domains and hyper-parameters.
    """

    data: Any
    algorithm: type[Algorithm]
    protocol: Protocol
    space: Space
    draft: RunSpec

    @property
    def parts(self) -> list[Any]:
        """What is registered under the names that the runs have: what defines their numbers."""
        labels, metrics = label_type(self.draft.labels), registered_as(self.draft.metrics)
        return [
            *(self.data, self.algorithm, labels, *metrics),
            *optimizers.registered_as(chosen_options(self.algorithm, self.draft.fixed_hparams)),
        ]

    @classmethod
    def of(
        cls,
        dataset: str,
        algorithm: str,
        hparams: Mapping[str, Any] | None,
        fields: Mapping[str, Any],
        kind: type[RunSpec] = RunSpec,
    ) -> Resolver:
        """Looks names up, and checks everything that does not depend on test domains.

        The arguments are those of `RunSpec.create`; `kind` is the class of the runs.

        Raises:
            UserError: see `RunSpec.create`.
        """
        usual = FROZEN_FEATURES if fields.get("features") else DEFAULT_PROTOCOL
        published = get_protocol(fields.get("protocol") or usual)
        own = {name: fields[name] for name in DataFields.model_fields if name in fields}
        fixed = dict(hparams or {})
        is_tuned = fixed.pop("tuned", False)
        data = get_dataset_class(dataset, make(DataFields, own))
        declaring = get_algorithm_class(algorithm)
        values = {
            "labels": getattr(data, "labels", "classes"),
            **published.fields,
            "steps": published.steps.get(dataset, data.N_STEPS),
            "checkpoint_freq": published.checkpoint_freq.get(dataset, data.CHECKPOINT_FREQ),
            **fields,
            "protocol": published.name,
            "protocol_version": published.version,
            "dataset": dataset,
            "algorithm": algorithm,
            "test_envs": (),
            "seed": 0,
            "hparams": {},
            "fixed_hparams": fixed,
        }
        own_metrics = values["labels"] == getattr(data, "labels", "") and getattr(
            data, "metrics", ()
        )
        usual_metrics = own_metrics or label_type(values["labels"]).default_metrics
        draft = make(kind, {"metrics": usual_metrics, **values})
        featurizer = str(draft.fixed_hparams.get("featurizer", ""))
        space = Space.of(algorithm, declaring, dataset, draft.features is not None, featurizer)
        if is_tuned:
            words = draft.features.describe() if draft.features else ""
            draft = draft.model_copy(
                update={
                    "tuned": baseline_of(
                        draft.dataset_label, words, MOST_SEED, tuned=draft.algorithm
                    )
                }
            )
        resolver = cls(data, declaring, published, space, draft)
        resolver._check()
        return resolver

    def run(
        self,
        test_envs: Sequence[int],
        hparams_seed: int = 0,
        trial_seed: int = 0,
        seed: int | None = None,
    ) -> RunSpec:
        """The run with these test domains and seeds; without a `seed` it is derived.

        Raises:
            UserError: see `RunSpec.create`.
        """
        draft, envs = self.draft, tuple(sorted(test_envs))
        derived = run_seed(draft.dataset_label, draft.algorithm, envs, hparams_seed, trial_seed)
        own = {
            "test_envs": envs,
            "hparams_seed": hparams_seed,
            "trial_seed": trial_seed,
            "seed": derived if seed is None else seed,
        }
        spec = make(type(draft), {**dict(draft), **own})
        self._check_test_envs(spec.test_envs)
        hparams, options = self.hparams(hparams_seed, trial_seed, envs), self.space.options
        files = {name: hparams[name] for name in hparams if name in options and options[name].file}
        if draft.features:
            files[_WEIGHTS] = draft.features.weights
        digests = {
            name: _digest(file, os.stat(file).st_mtime_ns)
            for name, file in files.items()
            if os.path.isfile(file)
        }
        return spec.model_copy(
            update={
                "hparams": hparams,
                "digests": digests,
                "revision": self.algorithm.revision(hparams),
            }
        )

    def hparams(
        self, hparams_seed: int, trial_seed: int, test_envs: Sequence[int]
    ) -> dict[str, Any]:
        """All hyper-parameters: defaults or a draw, the protocol's options, and fixed values.

        Those of a released baseline, if they are wanted, take the place of the defaults.

        Raises:
            UserError: it has none, or they are wanted in place of a draw.
        """
        draft, protocol, options = self.draft, self.protocol, self.space.options
        if draft.tuned and hparams_seed:
            raise UserError(
                f"hyper-parameters are tuned, which takes the place of the defaults, and the "
                f"hparams seed is {hparams_seed}: choose 0 alone",
                "hparams_seeds",
            )
        if hparams_seed == 0:
            drawn = {**self.space.defaults(), **protocol.defaults.get(draft.algorithm, {})}
        else:
            seed = hparams_draw_seed(hparams_seed, trial_seed, draft.shared_draws)
            drawn = self.space.draw(
                seed, draft.draws == "in-sequence", protocol.ranges.get(draft.algorithm, {})
            )
        if draft.tuned:
            tuned = tuned_hparams(draft.tuned, draft.dataset_label, draft.algorithm, test_envs)
            drawn = {name: tuned.get(name, value) for name, value in drawn.items()}
        usual = {name: each.default for name, each in options.items() if each.always_recorded}
        usual |= {name: value for name, value in protocol.options.items() if name in options}
        if usual.get("fidelity") == DOMAINBED and AUTHORS in options["fidelity"].values:
            usual["fidelity"] = AUTHORS  # of a method that DomainBed lacks
        if draft.initial_weights == "text":
            usual["featurizer"] = _OF_TEXT
        return {**drawn, **usual, **draft.fixed_hparams}

    def obstacle(self, test_envs: Sequence[int]) -> UserError | None:
        """Why the algorithm cannot do a run that others could; None if it can.

        Test domains that are wrong for all algorithms are no obstacle, but an error of `run`.
        """
        cls, name, features = self.algorithm, self.draft.algorithm, self.draft.features
        domains, label = len(self.data.ENVIRONMENTS), self.draft.dataset_label
        reads_images = getattr(self.data, "reads_images", False)  # a plug-in's may lack it
        has_classes = label_type(self.draft.labels).kind == "classes"
        shape = getattr(self.data, "input_shape", ())  # many have none before they are loaded
        obstacles = [
            (
                cls.needs_classes and not has_classes,
                f"{name} needs classes, and labels are {self.draft.labels!r}: choose an algorithm "
                "whose loss is that of the labels, such as ERM or CORAL",
                "algorithm",
            ),
            (
                cls.needs_linear and self.draft.fixed_hparams.get("nonlinear_classifier"),
                f"{name} needs a linear classifier: leave the hyper-parameter "
                "'nonlinear_classifier' out",
                "algorithm",
            ),
            (
                features and cls.needs_images,
                f"{name} needs images, and does not work on features of them",
                "algorithm",
            ),
            (
                cls.needs_images and isinstance(shape, tuple) and len(shape) not in (0, 3),
                f"{name} needs images, and the inputs of {label} are none: choose another "
                "algorithm",
                "algorithm",
            ),
            (
                (cls.needs_tensor or cls.needs_images) and shape is None,
                f"{name} computes with the inputs themselves, and those of {label} have no one "
                "shape: choose another algorithm",
                "algorithm",
            ),
            (
                cls.needs_text and not (features and reads_text(features)),
                f"{name} {_NEEDS_TEXT}",
                "algorithm",
            ),
            (
                cls.needs_features and reads_images and not features,
                f"{name} needs features of images: set the field 'features'",
                "algorithm",
            ),
            (
                0 < domains - len(test_envs) < cls.least_domains,
                f"{name} needs at least {cls.least_domains} training domains, and "
                f"{len(test_envs)} of the {domains} of {label} are held out",
                "test_envs",
            ),
        ]
        return next((UserError(why, field) for stands, why, field in obstacles if stands), None)

    def _check_test_envs(self, envs: tuple[int, ...]) -> None:
        """Checks the test domains, and whether the algorithm can do the run."""
        domains, label = len(self.data.ENVIRONMENTS), self.draft.dataset_label
        # A class of a plug-in may not list its domains; then only loading it shows them.
        highest = domains - 1 if domains else 10**6
        for holds, expected in (
            (envs, "at least one test domain"),
            (
                all(0 <= env <= highest for env in envs),
                f"domains of {label} between 0 and {highest}",
            ),
            (len(set(envs)) == len(envs), "each domain once"),
            (len(envs) <= highest, f"a training domain left ({label} has {domains} in all)"),
        ):
            if not holds:
                raise UserError(f"test_envs is {envs!r}: expected {expected}", "test_envs")
        if obstacle := self.obstacle(envs):
            raise obstacle

    def _check(self) -> None:
        """Checks what depends on several fields or on the dataset, but not on test domains."""
        draft, adapts = self.draft, self.draft.task == "domain_adaptation"
        held_out = f"uda_holdout_fraction is {draft.uda_holdout_fraction}"
        check_metrics(draft.metrics, label_type(draft.labels))
        rules: list[_Rule] = [
            (
                len(self.data.ENVIRONMENTS) != 1,
                f"dataset {draft.dataset_label} has 1 domain: training needs one and testing "
                "another",
                ("dataset",),
            ),
            (
                draft.uda_holdout_fraction > 0 or not adapts,
                f"{held_out}: expected more than 0 in the task domain_adaptation",
                ("uda_holdout_fraction",),
            ),
            (
                draft.uda_holdout_fraction == 0 or adapts,
                f"{held_out}: expected 0, unless the task is domain_adaptation",
                ("uda_holdout_fraction",),
            ),
            (
                draft.swad_n_tolerance >= draft.swad_n_converge,
                f"swad_n_tolerance is {draft.swad_n_tolerance}: expected swad_n_converge "
                f"({draft.swad_n_converge}) or more",
                ("swad_n_tolerance",),
            ),
            *self._rules_of_labels(),
            *self._rules_of_features(),
        ]
        for holds, message, where in rules:
            if not holds:
                raise UserError(message, *where)
        self.space.check(draft.fixed_hparams)

    def _rules_of_features(self) -> list[_Rule]:
        """What must hold of frozen features, and of weights that begin as a text's."""
        draft, label, features = self.draft, self.draft.dataset_label, self.draft.features
        reads_images = getattr(self.data, "reads_images", False)
        suited, on_text = of_frozen_features(), draft.initial_weights == "text"
        others = f"leave 'protocol' out, or name one of frozen features ({', '.join(suited)})"
        remedy = others if features else "set 'features'"
        featurizer = draft.fixed_hparams.get("featurizer", _OF_TEXT)
        return [
            (
                bool(features) == (draft.protocol in suited),
                f"features {'is' if features else 'is not'} set under the protocol "
                f"{draft.protocol!r}: {remedy}",
                ("features",),
            ),
            (
                reads_images or not features,
                f"features are of image files, and {label} has none: leave 'features' out",
                ("features",),
            ),
            (
                not on_text or (features and reads_text(features)),
                f"initial_weights is 'text', which {_NEEDS_TEXT}; or choose other initial_weights",
                ("initial_weights",),
            ),
            (
                not on_text or featurizer == _OF_TEXT,
                f"hyper-parameter 'featurizer' is {featurizer!r}, but initial_weights is 'text', a "
                f"classifier on features of length 1: leave it out, which means {_OF_TEXT!r}",
                ("hparams", "featurizer"),
            ),
        ]

    def _rules_of_labels(self) -> list[_Rule]:
        """What must hold of options that need classes."""
        draft, labels = self.draft, label_type(self.draft.labels)
        class_balanced = draft.fixed_hparams.get("class_balanced")
        return [
            (
                not class_balanced or labels.has_classes,
                f"hyper-parameter 'class_balanced' is {class_balanced}, but labels are "
                f"{draft.labels!r}, of which there are no classes: leave it out",
                ("hparams", "class_balanced"),
            ),
            (
                draft.split == "published" or labels.has_classes,
                f"split is {draft.split!r}, but labels are {draft.labels!r}, of which there are no "
                "classes: leave it out",
                ("split",),
            ),
            (
                labels.kind == "classes" or draft.initial_weights in ("own", "shared"),
                f"initial_weights is {draft.initial_weights!r}, which needs classes, but labels "
                f"are {draft.labels!r}: choose 'shared' or 'own'",
                ("initial_weights",),
            ),
        ]


@lru_cache  # a sweep asks for each run
def _digest(file: str, modified: int) -> str:
    """The SHA-256 of a file, read again if it has been `modified` since."""
    return f"sha256:{file_digest(Path(file))}"
