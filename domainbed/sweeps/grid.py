"""From a config to the runs that it needs, in the order in which they are begun."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

from domainbed.errors import UserError
from domainbed.seeding import run_seed
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig

TestEnvs = tuple[int, ...]


def plan(config: SweepConfig) -> list[RunSpec]:
    """All runs of a sweep.

    Runs that share dataset and trial are neighbours, since a worker keeps one dataset loaded.
    Within, hparams seed by hparams seed: the defaults of all algorithms come first.

    Raises:
        UserError: a run that cannot be; see `RunSpec.create`.
    """
    runs = []
    first = cache(lambda *of: first_run(config, *of))  # its checks are as good for the others
    for dataset, trial, seed in itertools.product(
        config.datasets, config.trials, config.hparams_seeds
    ):
        env_sets = test_env_sets(config, dataset)
        for algorithm, envs in itertools.product(config.algorithms, env_sets):
            runs.append(_variant(first(dataset, algorithm, envs), seed, trial))
    return runs


def test_env_sets(config: SweepConfig, dataset: str) -> list[TestEnvs]:
    """The sets of test domains of a dataset: those of the config, or what selection needs.

    Every domain alone; and every pair, if a selection method of the config reads pairs.

    Raises:
        UserError: the dataset's class does not list its domains.
    """
    from domainbed.datasets import get_dataset_class
    from domainbed.selection import SELECTION_METHODS

    if config.test_envs is not None:
        return list(config.test_envs)
    domains = range(len(get_dataset_class(dataset).ENVIRONMENTS))
    if not domains:
        raise UserError(
            f"the dataset {dataset!r} does not list its domains (ENVIRONMENTS), so test domains "
            "cannot be planned: give them, as in [[0], [1]]"
        )
    pairing = [name for name in config.selection if SELECTION_METHODS[name].needs_pairs]
    if pairing and len(domains) < 3:
        raise UserError(
            f"{pairing[0]} needs a domain to train on beside two test domains, and {dataset!r} "
            f"has {len(domains)} domains: leave that method out of 'selection'"
        )
    sizes = (1, 2) if pairing else (1,)
    return [envs for size in sizes for envs in itertools.combinations(domains, size)]


def first_run(config: SweepConfig, dataset: str, algorithm: str, envs: TestEnvs) -> RunSpec:
    """The checked run with hparams seed 0 and trial 0.

    Raises:
        UserError: see `RunSpec.create`.
    """
    return RunSpec.create(
        dataset,
        algorithm,
        envs,
        steps=config.steps,
        checkpoint_freq=config.checkpoint_freq,
        holdout_fraction=config.holdout_fraction,
        uda_holdout_fraction=config.uda_holdout_fraction,
        task=config.task,
        hparams=config.hparams_of(algorithm),
        shared_draws=config.shared_draws,
        augment_validation=config.augment_validation,
        precision=config.precision,
    )


def _variant(run: RunSpec, hparams_seed: int, trial_seed: int) -> RunSpec:
    seed = run_seed(run.dataset_label, run.algorithm, run.test_envs, hparams_seed, trial_seed)
    return dataclasses.replace(run, hparams_seed=hparams_seed, trial_seed=trial_seed, seed=seed)
