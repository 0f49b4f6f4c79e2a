"""One experiment: everything that a run needs, built from its spec in one place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from domainbed.algorithms import Algorithm, LinearProbe, Stage, get_algorithm_class
from domainbed.algorithms.fitted import logistic_regression
from domainbed.config.dimensions import with_defaults
from domainbed.config.run_facts import HParams, RunFacts, made_for
from domainbed.config.run_fields import RunOptions
from domainbed.core.device import choose_device, tf32_products
from domainbed.core.minibatch import Minibatch, Nest
from domainbed.core.seeding import seed_everything, seed_hash
from domainbed.core.stopping import Interrupted
from domainbed.datasets import (
    MultipleDomainDataset,
    check_domains,
    get_dataset_class,
    load_dataset,
)
from domainbed.datasets.base import domains_of
from domainbed.datasets.domain import Domain
from domainbed.datasets.features import open_text_head
from domainbed.datasets.listing import data_facts
from domainbed.errors import UserError, log, reason_of
from domainbed.metrics import Value
from domainbed.metrics.labels import LabelType, label_type
from domainbed.metrics.names import BY_GROUP
from domainbed.networks import HEAD_OPTIONS
from domainbed.spec import RunSpec
from domainbed.training.evaluation import EvaluationSplit, Evaluator, splits_to_evaluate
from domainbed.training.machine import to_device
from domainbed.training.ranks import align, of_first, own_device
from domainbed.training.sampling import (
    EpochDraws,
    IndexDraws,
    Split,
    TrainingSplit,
    WholeDraws,
    minibatches,
    split_domains,
    undivided,
)
from domainbed.training.shared_passes import share_passes, share_reading

PROBE_L2 = float(LinearProbe.search_space["probe_l2"].default)
"""Weight of the penalty of a linear probe that runs start with."""


@dataclass(frozen=True)
class Experiment:
    """A spec with its data, its algorithm before the first update, and the minibatches.

    Attributes:
        spec: what defines it.
        device: where everything is.
        dataset: as it was loaded.
        domains: all domains of the dataset.
        splits: of each domain.
        algorithm: on the device, in training mode.
        workers: processes that read images, in all.
        facts: what the algorithm knows of the run.
        data_dir: the data folder.
        stage_number: of the run's stages, from 1.
    """

    spec: RunSpec
    device: torch.device
    dataset: MultipleDomainDataset
    domains: list[Domain]
    splits: list[Split]
    algorithm: Algorithm
    workers: int
    facts: RunFacts
    data_dir: str
    stage_number: int = 1

    @property
    def stage(self) -> Stage:
        """What the current stage trains on."""
        return self.algorithm.training_stages()[self.stage_number - 1]

    @property
    def stages(self) -> int:
        """The number of stages of the run."""
        return len(self.algorithm.training_stages())

    @property
    def validation(self) -> tuple[str, ...]:
        """Metrics whose mean over the training domains' out-splits is recorded."""
        asked = ("loss",) if "swad" in self.spec.averages else ()
        return tuple(dict.fromkeys([*self.stage.validation, *asked]))

    def further_stage(self, number: int) -> Experiment:
        """The same experiment at another stage: with a fresh model, from the stage's seed."""
        there = replace(self, stage_number=number)
        facts = _facts(self.spec, self.dataset, self.domains, there.stage_splits, self.device)
        algorithm = _new_algorithm(self.spec, self.dataset, facts, self.device, number)
        return replace(there, algorithm=algorithm, facts=facts)

    @property
    def seed(self) -> int:
        """The seed of the stage's draws."""
        return _of_stage(self.spec.seed, self.stage_number)

    @cached_property
    def stage_splits(self) -> list[Split]:
        """The splits of each domain in the current stage."""
        return list(map(undivided, self.splits)) if self.stage.data == "all" else self.splits

    @property
    def train_envs(self) -> list[int]:
        """The numbers of the training domains."""
        return [e for e in range(len(self.domains)) if e not in self.spec.test_envs]

    @property
    def augmented_envs(self) -> list[int]:
        """The numbers of the domains whose images are augmented, where a use augments any."""
        if not self.spec.hparams["data_augmentation"]:
            return []
        declared = self.dataset.augmented_domains
        return self.train_envs if declared is None else list(declared)

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the dataset consists of, see `listing.data_facts`."""
        return data_facts(
            *(self.dataset, self.domains, self.domain_names, self.data_dir),
            ignores_exif=self.spec.hparams.get("orientation") != "exif",
        )

    @property
    def label_type(self) -> LabelType:
        """What the labels are."""
        return label_type(self.spec.labels)

    @property
    def outputs(self) -> int:
        """The width of the algorithm's outputs."""
        return self.label_type.width(self.dataset.num_classes)

    @property
    def domain_names(self) -> list[str]:
        """As the dataset calls them, or else their numbers."""
        return _domain_names(self.dataset, len(self.domains))

    @property
    def batches_per_epoch(self) -> float:
        """Of the smallest in-split, test domains included, as in DomainBed."""
        smallest = min(len(split.inside) for split in self.stage_splits)
        return smallest / self.spec.hparams["batch_size"]

    def precision(self) -> AbstractContextManager[Any]:
        """The context for updates and predictions."""
        if self.spec.precision == "bf16":
            # No cache of cast weights: an update with several steps (Fish) would continue with
            # the weights from before its first step.
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return tf32_products() if self.spec.precision == "tf32" else nullcontext()

    def minibatches(self, steps: range) -> Iterator[list[Minibatch]]:
        """For each step one (x, y) per training domain: x (B, *input_shape), y (B,)."""
        balanced = self.spec.hparams["class_balanced"] or self.algorithm.balances_groups
        draws = [self._draws(e, self.stage_splits[e].inside, balanced) for e in self.train_envs]
        return minibatches(self.domains, draws, steps, self.augmented_envs, self.workers)

    def batches(self, domain: int, indices: Sequence[int]) -> Iterator[Minibatch]:
        """Images of a domain in their order, as they are evaluated."""
        return self.domains[domain].evaluation_batches(indices, workers=self.workers)

    def unlabeled(self, steps: range) -> Iterator[list[Nest] | None]:
        """For each step one x per test domain in the task domain_adaptation, else None.

        As in DomainBed they are not augmented, unless the dataset augments its test domains.
        """
        if self.spec.task != "domain_adaptation":
            return iter([None] * len(steps))
        draws = [self._draws(e, self.stage_splits[e].unlabeled) for e in self.spec.test_envs]
        of_steps = minibatches(self.domains, draws, steps, self.augmented_envs, self.workers)
        return ([x for x, _ in pairs] for pairs in of_steps)

    def evaluate(
        self,
        step: int,
        splits: Sequence[EvaluationSplit],
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Value]:
        """The metrics of the splits, at the weights that the algorithm has.

        In several processes of a run they are the first one's, at the first one's weights.

        Args:
            step: for the random draws of augmented validation images.
            splits: none empty.
            on_batch: called with the images done and in all.
        """
        spec = self.spec
        evaluator = Evaluator(
            self.domains,
            self.workers,
            self.augmented_envs if spec.augment_validation else (),
            self.seed,
            tuple(dict.fromkeys([*spec.metrics, *self.validation])),
            label_type(spec.labels),
            self.dataset.group,
        )
        align(self.algorithm)
        with self.precision():
            return of_first(evaluator.evaluate(self.algorithm, splits, step, on_batch))

    def all_splits(self) -> list[EvaluationSplit]:
        """Those of the stage that have images."""
        return splits_to_evaluate(self.stage_splits, self.spec.test_envs, everything=True)

    def validated(self, metric: str) -> float:
        """The mean of a recorded value on the training domains' out-splits; NaN without any."""
        splits = [
            EvaluationSplit(domain, "out", self.splits[domain].out)
            for domain in self.train_envs
            if self.splits[domain].out
        ]
        values = self.evaluate(self.spec.steps - 1, splits)
        found = [each.value for each in values if each.metric == metric]
        return sum(found) / len(found) if found else float("nan")

    def _draws(self, domain: int, indices: list[int], balanced: bool = False) -> IndexDraws:
        own, by_group = self.domains[domain], self.algorithm.balances_groups
        kinds = own.noted["group"].cpu() if by_group and self.facts.group_names else own.labels
        labels = kinds[indices].long() if balanced else None
        size = self.spec.hparams["batch_size"]
        draws = IndexDraws if self.stage.replacement or len(indices) < size else EpochDraws
        draws = WholeDraws if self.stage.whole else draws
        return draws(indices, size, self.seed, domain, labels)


def build(spec: RunSpec, machine: RunOptions | None = None, encoding: Any = None) -> Experiment:
    """The experiment that `spec` defines, as it is before its first step.

    Seeds the global random sources, from which networks draw their weights.

    Args:
        spec: resolved.
        machine: where the data lies and what computes; None for the defaults.
        encoding: of inputs, that the run has learned before; None to learn it where there is one.

    Raises:
        UserError: the data is not there, or does not fit the spec; or no such device.
    """
    machine = machine or RunOptions()
    device = own_device(choose_device(machine.device))
    dataset = dataset_of(spec, machine.data_dir)
    labels = label_type(spec.labels)
    domains = domains_of(dataset, labels)
    _check_data(spec, dataset, len(domains))
    check_domains(dataset, domains, spec.hparams.get("featurizer", ""), labels)
    splits = split_domains(
        domains,
        spec.test_envs,
        spec.holdout_fraction,
        spec.trial_seed,
        spec.uda_holdout_fraction,
        mixed=get_algorithm_class(spec.algorithm).predicts_batches,
        stratified=spec.split == "stratified",
    )
    if hasattr(dataset, "encode"):
        inside = [() if e in spec.test_envs else split.inside for e, split in enumerate(splits)]
        dataset.encode(inside, encoding)
        domains = domains_of(dataset, labels)
    _check_kind(get_algorithm_class(spec.algorithm), spec, domains)
    domains = [domain.to(device) for domain in domains]
    _check_groups(spec, dataset, domains, splits)
    # In all, whatever the number of domains; by default one per core that PyTorch may use.
    cores = min(8, torch.get_num_threads())
    workers = cores if machine.num_workers is None else machine.num_workers
    facts = _facts(spec, dataset, domains, splits, device)
    return Experiment(
        spec,
        device,
        dataset,
        list(map(share_reading, domains)),
        splits,
        _new_algorithm(spec, dataset, facts, device),
        workers,
        facts,
        machine.data_dir,
    )


def _domain_names(dataset: MultipleDomainDataset, domains: int) -> list[str]:
    return list(dataset.ENVIRONMENTS) or [str(e) for e in range(domains)]


def _facts(
    spec: RunSpec,
    dataset: MultipleDomainDataset,
    domains: Sequence[Domain],
    splits: Sequence[Split],
    device: torch.device,
) -> RunFacts:
    """What an algorithm may know before its first update."""
    names = _domain_names(dataset, len(splits))
    trained = [e for e in range(len(splits)) if e not in spec.test_envs]
    inside = [(domains[e], splits[e].inside) for e in trained]
    attribute_names = tuple(getattr(dataset, "attribute_names", ()))
    group_names = tuple(dataset.group_names) if attribute_names else ()
    sizes, class_sizes = tuple(len(rows) for _, rows in inside), ()
    if group_names:
        sizes = _sizes([d.noted["group"][rows] for d, rows in inside], group_names)
    if label_type(spec.labels).has_classes and all(d.labels_at_hand for d, _ in inside):
        class_sizes = _sizes([d.labels[rows] for d, rows in inside], dataset.class_names)
    facts = RunFacts(
        steps=spec.steps,
        class_names=tuple(dataset.class_names),
        domain_names=tuple(names[e] for e in trained),
        test_domains=tuple(names[e] for e in spec.test_envs),
        test_envs=tuple(spec.test_envs),
        group_sizes=sizes,
        group_names=group_names,
        attribute_names=attribute_names,
        class_sizes=class_sizes,
        labels=spec.labels,
        dataset=spec.dataset_label,
        data_options=tuple((n, dataset.option(n, spec.hparams)) for n in dataset.options),
    )
    starts = accumulate((len(splits[e].inside) for e in trained), initial=0)
    data = [TrainingSplit(domains[e], splits[e].inside, n) for e, n in zip(trained, starts)]
    facts.place(str(device), data)
    return facts


def _sizes(numbers: list[torch.Tensor], names: Sequence[str]) -> Any:
    """How often the number of each name is there."""
    return tuple(torch.cat(numbers).reshape(-1).long().bincount(minlength=len(names)).tolist())


def dataset_of(spec: RunSpec, data_dir: str) -> MultipleDomainDataset:
    """The dataset that a run is on.

    Raises:
        UserError: the data is not there.
    """
    with _named(get_dataset_class(spec.dataset, spec)):
        return load_dataset(
            spec.dataset,
            data_dir,
            spec.test_envs,
            spec.hparams,
            spec.trial_seed,
            data_seed=spec.seed if spec.data_seed == "run" else None,
            features=spec.features,
            options=spec,
            labels=spec.labels,
        )


def _new_algorithm(
    spec: RunSpec,
    dataset: MultipleDomainDataset,
    facts: RunFacts,
    device: torch.device,
    stage: int = 1,
) -> Algorithm:
    """In training mode; seeds the global random sources, from which it draws its weights."""
    cls, train_domains = get_algorithm_class(spec.algorithm), len(facts.domain_names)
    hparams = HParams(spec.hparams, facts)
    width = label_type(spec.labels).width(dataset.num_classes)
    seed_everything(_of_stage(spec.initial_seed, stage))
    with _named(cls), made_for(facts):
        algorithm = cls(dataset.input_shape, width, train_domains, hparams)
    to_device(algorithm, device, spec.precision)
    if spec.initial_seed != spec.seed:  # what is drawn in training is the run's own
        seed_everything(_of_stage(spec.seed, stage))
    algorithm.train()
    share_passes(algorithm)
    return algorithm


def _of_stage(seed: int, stage: int) -> int:
    return seed if stage == 1 else seed_hash(seed, "stage", stage)


@contextmanager
def _named(cls: type) -> Iterator[None]:
    """Logs, before the traceback of a programming error, whose constructor it comes from."""
    try:
        yield
    except Exception as error:
        if not (reason_of(error) or isinstance(error, Interrupted)):
            place = getattr(sys.modules.get(cls.__module__), "__file__", cls.__module__)
            log.error("error: making %s of %s failed:", cls.__qualname__, place)
        raise


def _check_data(spec: RunSpec, dataset: MultipleDomainDataset, domains: int) -> None:
    """What only the loaded dataset can tell."""
    if max(spec.test_envs) >= domains or len(spec.test_envs) >= domains:
        raise UserError(
            f"test_envs is {list(spec.test_envs)}, but {spec.dataset_label} has {domains} "
            "domains: hold out some of them, and not all",
            "test_envs",
        )
    if dataset.num_classes < 2 and label_type(spec.labels).kind == "classes":
        raise UserError(
            f"dataset {spec.dataset_label} has {dataset.num_classes} class: there is nothing to "
            "tell apart; add images of a second class",
            "dataset",
        )


def _check_groups(
    spec: RunSpec, dataset: MultipleDomainDataset, domains: list[Domain], splits: list[Split]
) -> None:
    """Raises a UserError where a metric by group is asked of samples without a group."""
    wanted = [name for name in spec.metrics if name.endswith(BY_GROUP)]
    for domain, split in zip(domains, splits) if wanted else ():
        (batch,) = domain.evaluation_batches(split.inside[:1])
        if dataset.group not in (batch.extras or {}):
            raise UserError(
                f"metric {wanted[0]!r} needs the group of each sample, and those of "
                f"{spec.dataset_label} have no {dataset.group!r} in their extras: leave it out, or "
                "choose a dataset whose samples are (x, y, extras)",
                "metrics",
            )


def _check_kind(cls: type[Algorithm], spec: RunSpec, domains: Sequence[Domain]) -> None:
    """Refuses an algorithm that computes with inputs which are no numbers."""
    if not cls.needs_tensor and not cls.needs_images:
        return
    x, _ = domains[0].first_sample() or (torch.empty(0), None)
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        found = f"{x.dtype} tensors" if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"
        raise UserError(
            f"{spec.algorithm} computes with the inputs themselves, and those of "
            f"{spec.dataset_label} are {found}, no tensors of numbers: choose another algorithm",
            "algorithm",
        )


def set_initial_weights(experiment: Experiment) -> None:
    """Gives the algorithm the classifier that its spec asks for, in place of the drawn one.

    `linear-probe`: logistic regression on the features that its featurizer gives to the training
    domains' images, of the in-splits, not augmented. `text`: that of the classes' names.

    Raises:
        UserError: the algorithm has no linear classifier on features, or the backbone's text
            encoder is not available.
    """
    algorithm, initial = experiment.algorithm, experiment.spec.initial_weights
    is_text = initial == "text" or algorithm.needs_text
    if not is_text and initial != "linear-probe":
        return
    try:
        featurizer, classifier = linear_head(experiment)
    except UserError as error:
        raise UserError(
            f"initial_weights is {initial!r}, but {error}: choose 'shared' or 'own'",
            "initial_weights",
        ) from error
    weight, bias = _text_head(experiment) if is_text else _probe(experiment, featurizer)
    algorithm.train()
    # Also of the classifier that is trained, where another one predicts.
    for each in (classifier, getattr(algorithm, "classifier", classifier)):
        each.load_state_dict({"weight": weight, "bias": bias})


def _text_head(experiment: Experiment) -> tuple[torch.Tensor, torch.Tensor]:
    spec, folder = experiment.spec, experiment.dataset.features_folder
    assert spec.features is not None
    assert folder is not None
    names = experiment.dataset.class_names
    prompts = with_defaults(HEAD_OPTIONS, spec.hparams)["prompts"]
    weight, scale = open_text_head(folder, spec.features, names, prompts)
    return scale * weight, torch.zeros(len(names))


@torch.no_grad()
def _probe(experiment: Experiment, featurizer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the logistic regression; the algorithm is in evaluation mode."""
    pairs = [
        (featurizer(x).float(), y)
        for domain in experiment.train_envs
        for x, y in experiment.batches(domain, experiment.stage_splits[domain].inside)
    ]
    z, y = map(torch.cat, zip(*pairs))
    weight, bias, _ = logistic_regression(z, y, experiment.dataset.num_classes, PROBE_L2)
    return weight, bias


@torch.no_grad()
def linear_head(experiment: Experiment) -> tuple[nn.Module, nn.Linear]:
    """The featurizer and the linear classifier that an experiment's algorithm predicts with.

    Puts the algorithm in evaluation mode. The two are tried on two training images, for which they
    must predict as it does.

    Raises:
        UserError: it predicts in another way; the reason has the algorithm's name.
    """
    algorithm, domain = experiment.algorithm.eval(), experiment.train_envs[0]
    two = experiment.stage_splits[domain].inside[:2]
    ((x, _),) = experiment.domains[domain].evaluation_batches(two)
    name = type(algorithm).__name__
    try:
        featurizer, classifier = algorithm.predicting_parts()
    except AttributeError as error:
        raise UserError(f"{name} has no classifier on features") from error
    if not isinstance(classifier, nn.Linear):
        raise UserError(f"the classifier of {name} is not one linear layer")
    try:
        logits = classifier(featurizer(x))
    except RuntimeError as error:  # its featurizer or classifier needs more than the inputs
        raise UserError(f"{name} predicts by more than a classifier on its features") from error
    if algorithm.predicts_batches or not torch.allclose(logits, algorithm.predict(x), atol=1e-4):
        raise UserError(f"{name} predicts by more than a classifier on its features")
    return featurizer, classifier
