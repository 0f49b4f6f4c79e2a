"""What is diagnosed: a finished run's network and the in-splits of its domains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.datasets import DATASETS
from domainbed.datasets.domain import Minibatch, evaluation_draws
from domainbed.errors import UserError
from domainbed.names import dataset_label
from domainbed.run_folder import DONE, RunFolder
from domainbed.seeding import split_seed
from domainbed.spec import RunSpec
from domainbed.training.trainer import RunOptions, Trainer


def read_spec(folder: RunFolder, dataset: str | None) -> RunSpec:
    """The spec of a finished run.

    Args:
        folder: the run's.
        dataset: what to load in place of the dataset that run.json names, whose images may lie
            anywhere (`folder:PATH`); None for the one it names.

    Raises:
        UserError: the folder holds no finished run, or `dataset` is another one.
    """
    identity = folder.read_json(folder.spec)
    if identity is None:
        raise UserError(f"{folder.path} holds no run.json: name the folder of a trained run")
    if folder.state() != DONE:
        raise UserError(f"the run in {folder.path} is {folder.state()}: train it to its end first")
    label = identity.get("dataset") if isinstance(identity, dict) else None
    if dataset is not None and dataset_label(dataset) != label:
        raise UserError(f"--dataset {dataset!r} is not {label}, which {folder.path} was trained on")
    if label is None:
        raise UserError(f"{folder.spec} describes no run: train the run again")
    if dataset is None and label not in DATASETS:
        raise UserError(
            f"{folder.path} was trained on {label!r}, which is not registered: say where its "
            "images are with --dataset folder:PATH, or what registers it with --plugins"
        )
    try:
        changes = {"dataset": dataset or label, "test_envs": tuple(identity["test_envs"])}
        return RunSpec(**{**identity, **changes})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder.spec} is of another version ({error}): train the run again"
        ) from error


def read_weights(folder: RunFolder) -> Mapping[str, torch.Tensor]:
    """The state dict of the trained algorithm.

    Raises:
        UserError: it was not kept, or cannot be read.
    """
    if not folder.model.exists():
        raise UserError(
            f"{folder.path} holds no {folder.model.name}: train the run again, in another folder "
            "and without --skip_model_save"
        )
    try:
        return torch.load(folder.model, map_location="cpu", weights_only=True)["model_dict"]
    except Exception as error:  # unpickling what is no model raises anything
        raise UserError(
            f"{folder.model} cannot be read ({_first_line(error)}): train the run again"
        ) from error


class TrainedRun:
    """A finished run's network, first as training began it, and its images.

    Args:
        folder: the run's.
        data_dir: where the datasets lie.
        dataset: see `read_spec`.
        samples: images per domain, drawn from its in-split; 0 for all.
        device: "cpu", "cuda", "mps"; None finds one.
        num_workers: worker processes that read images.

    Attributes:
        spec: what defines the run.
        network: featurizer, then classifier, in evaluation mode.
        environments: the names of all domains.

    Raises:
        UserError: see `read_spec` and `read_weights`; or the algorithm has no featurizer and
            classifier.
    """

    def __init__(
        self,
        folder: Path | str,
        data_dir: str,
        dataset: str | None,
        samples: int,
        device: str | None,
        num_workers: int,
    ) -> None:
        run_folder = RunFolder(folder)
        self.spec = read_spec(run_folder, dataset)
        self._weights = read_weights(run_folder)
        # It seeds and builds as it did when the run began: the same weights as before training.
        self._trainer = Trainer(self.spec, run_folder, RunOptions(data_dir, device))
        self._samples, self._num_workers = samples, num_workers
        self.network = self._network().eval()
        known = type(self._trainer.dataset).ENVIRONMENTS
        self.environments = list(known) or list(map(str, range(len(self._trainer.splits))))

    def load_trained_weights(self) -> None:
        """Gives the network the weights it had after training.

        Raises:
            UserError: they are of another network.
        """
        try:
            self._trainer.algorithm.load_state_dict(self._weights)
        except RuntimeError as error:
            raise UserError(
                f"{self._trainer.folder.model} does not fit {self.spec.algorithm} "
                f"({_first_line(error)}): train the run again with this version"
            ) from error

    def indices(self, domain: int) -> list[int]:
        """The images of a domain's in-split that are looked at, at random in each trial."""
        inside = self._trainer.splits[domain].inside
        source = np.random.RandomState(split_seed(self.spec.trial_seed, domain))
        return [inside[i] for i in source.permutation(len(inside))[: self._samples or None]]

    def batches(self, domain: int) -> Iterator[Minibatch]:
        """The images of `indices` with their labels, on the device and not augmented."""
        draws = evaluation_draws(self.indices(domain), seed=self.spec.seed, domain=domain)
        return self._trainer.domains[domain].batches(draws, self._num_workers)

    @torch.no_grad()
    def features(self, domain: int) -> Minibatch:
        """(n, d) features, in double precision on the CPU, and (n,) labels of a domain."""
        featurizer = self.network[0]
        pairs = [(featurizer(x).cpu().double(), y.cpu()) for x, y in self.batches(domain)]
        features, labels = zip(*pairs)
        return torch.cat(features), torch.cat(labels)

    def _network(self) -> nn.Sequential:
        algorithm: Any = self._trainer.algorithm
        missing = [n for n in ("featurizer", "classifier") if not hasattr(algorithm, n)]
        if missing:
            raise UserError(
                f"{self.spec.algorithm} has no attribute {missing[0]!r}: only algorithms with a "
                "featurizer and a classifier can be diagnosed"
            )
        return nn.Sequential(algorithm.featurizer, algorithm.classifier)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
