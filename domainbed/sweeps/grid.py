"""From a config to the runs that it needs, in the order in which they are begun."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

from domainbed.core.names import dataset_label
from domainbed.spec import RunSpec
from domainbed.sweeps.config import (
    SweepConfig,
    first_run,
    test_env_sets,
    trainable_sets,
    why_not,
)


def left_out(config: SweepConfig) -> list[dict[str, Any]]:
    """The runs of a sweep that cannot be, of all trials and hparams seeds at once, and why.

    As plan.json keeps them: `dataset`, `algorithm`, `test_envs` and `why`.
    """
    found = []
    for dataset, algorithm in itertools.product(config.datasets, config.algorithms):
        for envs in test_env_sets(config, dataset):
            if why := why_not(config, dataset, algorithm, envs):
                place = {"dataset": dataset_label(dataset), "algorithm": algorithm}
                found.append({**place, "test_envs": list(envs), "why": why})
    return found


def plan(config: SweepConfig) -> list[RunSpec]:
    """All runs of a sweep, without those that are `left_out`.

    Runs that share dataset and trial are neighbours, since a worker keeps one dataset loaded.
    Within, hparams seed by hparams seed: the defaults of all algorithms come first.

    Raises:
        UserError: a run that cannot be; see `RunSpec.create`.
    """
    runs: list[RunSpec] = []
    first = cache(lambda *of: first_run(config, *of))  # its checks are as good for the others
    sets_of = cache(lambda *of: trainable_sets(config, *of))
    for dataset, trial, seed in itertools.product(
        config.datasets, config.trials, config.hparams_seeds
    ):
        for algorithm in config.algorithms:
            hparams = None
            for envs in sets_of(dataset, algorithm):
                runs.append(first(dataset, algorithm, envs).variant(seed, trial, hparams))
                hparams = runs[-1].hparams
    return runs
