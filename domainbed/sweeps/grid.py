"""From a config to the runs that it needs, in the order in which they are begun."""

from __future__ import annotations

import itertools
from functools import cache

from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig, first_run, test_env_sets


def plan(config: SweepConfig) -> list[RunSpec]:
    """All runs of a sweep.

    Runs that share dataset and trial are neighbours, since a worker keeps one dataset loaded.
    Within, hparams seed by hparams seed: the defaults of all algorithms come first.

    Raises:
        UserError: a run that cannot be; see `RunSpec.create`.
    """
    runs: list[RunSpec] = []
    first = cache(lambda *of: first_run(config, *of))  # its checks are as good for the others
    for dataset, trial, seed in itertools.product(
        config.datasets, config.trials, config.hparams_seeds
    ):
        env_sets = test_env_sets(config, dataset)
        for algorithm in config.algorithms:
            hparams = None
            for envs in env_sets:
                runs.append(first(dataset, algorithm, envs).variant(seed, trial, hparams))
                hparams = runs[-1].hparams
    return runs
