"""Every seed of the benchmark is a `seed_hash`, whose arguments say what it is for.

Beside the functions below, with `seed` the seed of a run:

    (draws' seed, name)                               the draw of one hyper-parameter
    (dataset, trial, "initial weights")               weights that all runs of a trial start with
    (seed, "stage", stage)                            a later stage of a run
    (seed, "minibatch", domain, block)                a block of a domain's minibatches
    (seed, "update"); (that, "prediction")            what an algorithm draws
    (seed, "augmentation", domain, step, place)       the augmentation of one image
    (seed, "augmentation", domain, step, use)         of all images of a minibatch at once
    ("view", file, view)                              an augmented view with stored features
"""

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


def split_seed(trial_seed: int, domain: int) -> int:
    """The seed that cuts one domain into out-split and in-split."""
    return seed_hash(trial_seed, domain)


def data_seed(trial_seed: int) -> int:
    """The seed of a dataset's own randomness (MNIST's shuffle, label and colour noise)."""
    return seed_hash(trial_seed, "data")


def seed_everything(seed: int, gpus: bool = True) -> None:
    """Seeds Python, NumPy and PyTorch, for code that uses the global sources.

    `gpus` says whether to seed PyTorch's sources of all GPUs, too.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    (torch if gpus else torch.default_generator).manual_seed(seed)


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
