"""What defines a run: every field that its result depends on, and nothing of the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from domainbed.errors import UserError
from domainbed.names import dataset_label
from domainbed.seeding import hparams_draw_seed, run_seed
from domainbed.settings import Settings
from domainbed.suggest import did_you_mean

TASKS = ("domain_generalization", "domain_adaptation")
PRECISIONS = ("float32", "bf16")


class RunFields(Settings):
    """What a user may set of a run, beside what names it."""

    steps: int | None = Field(
        None,
        ge=1,
        description="updates per run",
        json_schema_extra={"default_text": "the dataset's"},
    )
    checkpoint_freq: int | None = Field(
        None,
        ge=1,
        description="updates between records",
        json_schema_extra={"default_text": "the dataset's"},
    )
    holdout_fraction: float = Field(0.2, gt=0, lt=1, description="the out-splits' share")
    uda_holdout_fraction: float = Field(
        0.0, ge=0, lt=1, description="the unlabelled share of test domains, for domain adaptation"
    )
    task: Literal["domain_generalization", "domain_adaptation"] = Field(
        "domain_generalization", description="what the runs train for"
    )
    shared_draws: bool = Field(False, description="the same draws in all trials")
    augment_validation: bool = Field(
        False,
        description="augment the training domains' validation images, as DomainBed does",
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="of the numbers")


@dataclass(frozen=True)
class RunSpec:
    """One training. `RunSpec.create` fills in what the dataset decides, and checks the rest.

    Attributes:
        dataset: as `datasets.get_dataset_class` takes it.
        algorithm: a registered name.
        test_envs: the test domains, in ascending order.
        hparams_seed: 0 for the defaults, any other for a random draw.
        trial_seed: decides the split and the dataset's noise.
        seed: of everything else.
        steps: number of updates.
        checkpoint_freq: updates between records.
        holdout_fraction: the out-split's share of each domain.
        uda_holdout_fraction: the share of a test domain's in-split that is given to training
            without its labels, in the task "domain_adaptation".
        hparams: fixed values, which win over defaults and draws.
        shared_draws: the same hyper-parameter draws in all trials.
        augment_validation: augment the training domains' validation images, as DomainBed does.
        precision: "float32", or "bf16" for mixed precision.
    """

    dataset: str
    algorithm: str
    test_envs: tuple[int, ...]
    hparams_seed: int
    trial_seed: int
    seed: int
    steps: int
    checkpoint_freq: int
    holdout_fraction: float = 0.2
    uda_holdout_fraction: float = 0.0
    task: str = "domain_generalization"
    hparams: Mapping[str, Any] = field(default_factory=dict)
    shared_draws: bool = False
    augment_validation: bool = False
    precision: str = "float32"

    @classmethod
    def create(
        cls,
        dataset: str,
        algorithm: str,
        test_envs: tuple[int, ...] | list[int],
        *,
        hparams_seed: int = 0,
        trial_seed: int = 0,
        seed: int | None = None,
        steps: int | None = None,
        checkpoint_freq: int | None = None,
        **others: Any,
    ) -> RunSpec:
        """A checked spec; None means the published value (for `seed`: derived from the rest).

        Raises:
            UserError: a value that cannot be; the message names it and what would be right.
        """
        from domainbed.algorithms import get_algorithm_class
        from domainbed.datasets import get_dataset_class

        data = get_dataset_class(dataset)
        get_algorithm_class(algorithm)
        label, ordered = dataset_label(dataset), tuple(sorted(test_envs))
        if seed is None:
            seed = run_seed(label, algorithm, ordered, hparams_seed, trial_seed)
        spec = cls(
            dataset,
            algorithm,
            ordered,
            hparams_seed,
            trial_seed,
            seed,
            data.N_STEPS if steps is None else steps,
            data.CHECKPOINT_FREQ if checkpoint_freq is None else checkpoint_freq,
            **others,
        )
        _check(spec, len(data.ENVIRONMENTS))
        spec.resolved_hparams()
        return spec

    @property
    def dataset_label(self) -> str:
        return dataset_label(self.dataset)

    def identity(self) -> dict[str, Any]:
        """All fields as JSON values, with the dataset's label in place of any path."""
        return {
            **dataclasses.asdict(self),
            "dataset": self.dataset_label,
            "test_envs": list(self.test_envs),
            "hparams": dict(self.hparams),
        }

    @property
    def run_id(self) -> str:
        """The name of the run's folder: a hash of its identity."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.md5(text.encode("utf-8")).hexdigest()

    def resolved_hparams(self) -> dict[str, Any]:
        """The run's hyper-parameters: defaults or draw, then the fixed values over them."""
        from domainbed import hparams

        label = self.dataset_label
        if self.hparams_seed == 0:
            drawn = hparams.default_hparams(self.algorithm, label)
        else:
            seed = hparams_draw_seed(self.hparams_seed, self.trial_seed, self.shared_draws)
            drawn = hparams.random_hparams(self.algorithm, label, seed)
        space = hparams.search_space(self.algorithm, label)
        _check_fixed(self, {**hparams.options(self.algorithm), **space})
        return {**drawn, **self.hparams}

    def describe(self) -> str:
        """One line for people: "Fishr on PACS, test domains 0, hparams seed 3, trial 1"."""
        domains = "+".join(map(str, self.test_envs))
        return (
            f"{self.algorithm} on {self.dataset_label}, test domain {domains}, "
            f"hparams seed {self.hparams_seed}, trial {self.trial_seed}"
        )


def _check(spec: RunSpec, domains: int) -> None:
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
        ("test_envs", not domains or len(spec.test_envs) < domains, "a training domain left"),
        ("steps", spec.steps >= 1, "1 or more"),
        ("checkpoint_freq", spec.checkpoint_freq >= 1, "1 or more"),
        ("holdout_fraction", 0 < spec.holdout_fraction < 1, "between 0 and 1, both excluded"),
        ("uda_holdout_fraction", 0 <= spec.uda_holdout_fraction < 1, "at least 0, less than 1"),
        ("hparams_seed", spec.hparams_seed >= 0, "0 or more"),
        ("trial_seed", spec.trial_seed >= 0, "0 or more"),
        ("task", spec.task in TASKS, f"one of {', '.join(TASKS)}"),
        ("precision", spec.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        (
            "uda_holdout_fraction",
            spec.task != "domain_adaptation" or spec.uda_holdout_fraction > 0,
            "more than 0 in the task domain_adaptation",
        ),
    ]
    for name, holds, expected in rules:
        if not holds:
            raise UserError(f"{name} is {getattr(spec, name)!r}: expected {expected}", name)


def _check_fixed(spec: RunSpec, space: Mapping[str, Any]) -> None:
    """Refuses values that cannot be, and unknown names where the algorithm declares its space."""
    from domainbed.algorithms import get_algorithm_class

    algorithm = get_algorithm_class(spec.algorithm)
    declared = algorithm.__module__.startswith("domainbed.") or "search_space" in vars(algorithm)
    for name, value in spec.hparams.items():
        if declared and name not in space:
            raise UserError(
                f"unknown hyper-parameter {name!r} of {spec.algorithm}.{did_you_mean(name, space)} "
                f"Known: {', '.join(space)}",
                "hparams",
                name,
            )
        if name in space and not space[name].accepts(value):
            dimension = space[name]
            raise UserError(
                f"hyper-parameter {name!r} of {spec.algorithm} cannot be {value!r}: the default is "
                f"{dimension.default!r} ({dimension.describe()})",
                "hparams",
                name,
            )
