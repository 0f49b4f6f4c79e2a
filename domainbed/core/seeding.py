"""Every seed of the benchmark is derived here, and nowhere else."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np


def seed_hash(*args: Any) -> int:
    """A seed in [0, 2^31) derived from `args`, as in DomainBed: MD5 of the tuple's repr."""
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % (2**31)


def run_seed(
    dataset: str, algorithm: str, test_envs: Sequence[int], hparams_seed: int, trial_seed: int
) -> int:
    """The seed of a run for everything but its split, its data and its hyper-parameters."""
    return seed_hash(dataset, algorithm, list(test_envs), hparams_seed, trial_seed)


def hparams_draw_seed(hparams_seed: int, trial_seed: int, shared_draws: bool = False) -> int:
    """The seed of a run's hyper-parameter draws.

    The published protocol mixes the trial in, so that one hparams seed means other
    hyper-parameters in each trial; `shared_draws` uses trial 0's draws in all trials.
    """
    return seed_hash(hparams_seed, 0 if shared_draws else trial_seed)


def hparam_seed(random_seed: int, name: str) -> int:
    """The seed of one hyper-parameter's draw: it depends on nothing but its own name."""
    return seed_hash(random_seed, name)


def shared_initial_seed(dataset: str, trial_seed: int) -> int:
    """The seed of the initial weights that all runs of a trial share."""
    return seed_hash(dataset, trial_seed, "initial weights")


def stage_seed(seed: int, stage: int) -> int:
    """The seed of a later stage of a run for everything but its split and its data."""
    return seed_hash(seed, "stage", stage)


def split_seed(trial_seed: int, domain: int) -> int:
    """The seed that cuts one domain into out-split and in-split."""
    return seed_hash(trial_seed, domain)


def data_seed(trial_seed: int) -> int:
    """The seed of a dataset's own randomness (MNIST's shuffle, label and colour noise)."""
    return seed_hash(trial_seed, "data")


def minibatch_seed(seed: int, domain: int, block: int) -> int:
    """The seed of one block of minibatch draws of one training domain."""
    return seed_hash(seed, "minibatch", domain, block)


def update_draws_seed(seed: int) -> int:
    """The seed of what an algorithm draws inside its updates."""
    return seed_hash(seed, "update")


def prediction_draws_seed(seed: int) -> int:
    """The seed of what an algorithm draws to predict a batch; `seed` is that of its updates."""
    return seed_hash(seed, "prediction")


def augmentation_seed(seed: int, domain: int, step: int, position: int) -> int:
    """The seed of the augmentation of one image, whichever worker process loads it."""
    return seed_hash(seed, "augmentation", domain, step, position)


def batch_augmentation_seed(seed: int, domain: int, step: int, use: str) -> int:
    """The seed of the augmentation of all of a domain's images in a step, drawn at once.

    `use` keeps the draws of training and of evaluation apart.
    """
    return seed_hash(seed, "augmentation", domain, step, use)


def view_seed(file: str, view: int) -> int:
    """The seed of one of an image's augmented views, whose features are computed once."""
    return seed_hash("view", file, view)


def seed_everything(seed: int, gpus: bool = True) -> None:
    """Seeds Python, NumPy and PyTorch, for code that uses the global sources.

    `gpus` says whether to seed PyTorch's sources of all GPUs, too.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    source = torch if gpus else torch.default_generator
    source.manual_seed(seed)


@contextmanager
def global_sources_kept(gpus: bool = True) -> Iterator[None]:
    """Restores the global sources of Python, NumPy and PyTorch at the end.

    `gpus` says whether PyTorch's sources of all GPUs are restored, too.
    """
    import torch

    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=None if gpus else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
