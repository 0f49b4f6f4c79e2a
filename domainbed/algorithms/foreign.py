"""Classes written for DomainBed's forks, as algorithms of this package.

A fork's class has `update` and `predict`. What its constructor and its `update` are called with
follows from the names of their parameters and from what the class unpacks.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from domainbed import networks
from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    chosen_options,
)
from domainbed.algorithms.foreign_code import Batch, batch_of, construct, given, undriven
from domainbed.algorithms.optimizers import StepRule
from domainbed.core.minibatch import Nest, joined, mapped
from domainbed.errors import UserError, one_line

# What the parts of a minibatch are whose names say nothing.
_PLACES = ("x", "y", "domain", "attribute", "index")
# What an `update` is given only if it has a parameter for it.
_OWN = {*_PLACES, "minibatches", "unlabeled"}


class OnDevice(TorchFunctionMode):
    """Within it, "cuda" in a call of PyTorch means the run's device."""

    def __init__(self, device: torch.device | str) -> None:
        super().__init__()
        self._device = torch.device(device)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.Tensor.cuda:
            return args[0].to(self._device)
        named = {name: self._here(value) for name, value in (kwargs or {}).items()}
        return function(*map(self._here, args), **named)

    def _here(self, value: Any) -> Any:
        is_gpu = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
        return self._device if is_gpu else value


class ForeignAlgorithm(Algorithm):
    """An algorithm that a class from elsewhere computes; `adapt` makes its subclasses.

    Attributes:
        model: the object of the foreign class.
        elsewhere: returns values for hyper-parameters that its registry lacks; see `Handed`.
        current: the parts of each domain's minibatch, within an update.
    """

    foreign: ClassVar[Any]
    folder: ClassVar[Path | None] = None
    elsewhere: ClassVar[Any] = None
    memory_format = torch.contiguous_format

    def build(self) -> None:
        self.current: list[dict[str, Any]] = []
        self.model = self._called(
            construct, self.foreign, self.folder, self, self._known(), self.elsewhere or dict
        )
        chosen = chosen_options(type(self), self.hparams)
        values = [value for each in self.modules() for value in vars(each).values()]
        for optimizer in [each for each in values if isinstance(each, torch.optim.Optimizer)]:
            if not chosen.keys() & {"optimizer", "momentum"}:  # the class has chosen these itself
                StepRule(self.facts, chosen).attach(optimizer)

    def on_start(self) -> None:
        """Refuses what its fork trains by methods that nothing here calls."""
        names = undriven(self.foreign, self.folder)
        if names and type(self).on_step is Algorithm.on_step:
            raise UserError(
                f"{self.foreign.__name__} trains also by {', '.join(names)}, which its own "
                "train script calls: call it in 'on_start' or 'on_step' of a subclass"
            )

    def context(self) -> AbstractContextManager[Any]:
        """In which "cuda" is the device of the weights, or that of the run before there are any."""
        return OnDevice(next((p.device for p in self.parameters()), self.facts.device))

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        self.current = [self._parts(number, each) for number, each in enumerate(minibatches)]
        known: dict[str, Any] = {
            name: [part[name] for part in self.current] for name in self.current[0]
        }
        batch = batch_of(self.foreign)
        parts = [known.get(name, known[usual]) for name, usual in zip(batch.parts, _PLACES)]
        unpacked = tuple(map(joined, parts)) if batch.pooled else list(zip(*parts))
        known |= {"unlabeled": unlabeled, "step": self.facts.step, "minibatches": unpacked}
        args, kwargs = self._arguments(known)
        returned = self._called(self.model.update, *args, **kwargs)
        self.current = []
        return numbers_of(returned)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.predict_named(x)[""]

    def predict_named(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """All that the class predicts, by name: (B, C) each, first its logits, without a name."""
        found = self._called(self.model.predict, mapped(torch.Tensor.contiguous, x))
        if isinstance(found, torch.Tensor):
            return {"": found}
        named = found if isinstance(found, Mapping) else dict(enumerate(found))
        logits = {
            str(name): each.flatten(1)
            for name, each in named.items()
            if isinstance(each, torch.Tensor) and each.shape[1:].numel() == self.num_classes
        }
        if not logits:
            raise UserError(f"{self.foreign.__name__} predicts nothing of width {self.num_classes}")
        return {"": logits.pop(next(iter(logits))), **logits}

    def train(self, mode: bool = True) -> ForeignAlgorithm:
        """Calls the class's own `train` or `eval`, which may take no argument."""
        self.training = mode
        getattr(self.model, "train" if mode else "eval", lambda: None)()
        return self

    def _known(self) -> dict[str, Any]:
        """What constructors are given beside DomainBed's arguments, by name."""
        known: dict[str, Any] = {
            "data_type": "tabular" if len(self.input_shape) == 1 else "images",
            "num_attributes": len(self.facts.attribute_names) or self.num_domains,
            "num_examples": sum(self.facts.group_sizes),
            "grp_sizes": self._group_sizes(),
            "logger": logging.getLogger(__name__),
        }
        if {"model", "dataset", "optimizer"} <= inspect.signature(self.foreign).parameters.keys():
            network = WithFeatures(self.input_shape, self.num_classes, self.hparams)
            known |= {
                "model": network,
                "dataset": CurrentBatch(self),
                "optimizer": self.new_optimizer(network),
            }
        return known

    def _group_sizes(self) -> list[int]:
        """Training samples of each group y · A + a; a is the domain where there is no attribute."""
        if self.facts.attribute_names:
            return list(self.facts.group_sizes)
        counts = [split.labels.bincount(minlength=self.num_classes) for split in self.facts.splits]
        ones = torch.ones(self.num_domains, self.num_classes, dtype=torch.long)
        return (torch.stack(counts) if counts else ones).T.flatten().tolist()

    def _parts(self, number: int, minibatch: Any) -> dict[str, Any]:
        """By role, or by the name of an extra, what a minibatch of a training domain has."""
        x, y = minibatch
        domain = torch.full((len(y),), number, device=y.device)
        index, extras = getattr(minibatch, "index", None), getattr(minibatch, "extras", None)
        if self.facts.splits and index is not None:
            index = self.facts.splits[number].places[index].to(y.device)
        x = mapped(torch.Tensor.contiguous, x)
        known = {"x": x, "y": y, "domain": domain, "attribute": domain, "index": index}
        return known | (extras or {})

    def _arguments(self, known: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Those of the class's `update`: by name, and the minibatches first where no name fits."""
        parameters = inspect.signature(self.model.update).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            return [known["minibatches"], known["unlabeled"]], {}
        others = known.keys() - _OWN if inspect.Parameter.VAR_KEYWORD in kinds else ()
        return [], {name: known[name] for name in others} | given(
            *(parameters, known, ("minibatches",)),
            f"the update of {self.foreign.__name__} needs {{}}, which its train script computes: "
            "do that in the 'update' of a subclass",
        )

    def _called(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """What a function of the class returns, on the run's device."""
        try:
            with self.context():
                return function(*args, **kwargs)
        except (AssertionError, RuntimeError) as error:
            if not re.search("NVIDIA driver|compiled with CUDA", str(error)):
                raise
            raise UserError(
                f"{self.foreign.__name__} needs a GPU ({one_line(error)}): give --device cuda on a "
                "machine with one, or ask for devices by 'cuda' alone"
            ) from error


class WithFeatures(nn.Module):
    """The network that WOODS' classes are given: inputs to logits (B, 1, C) and features."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, hparams: Any) -> None:
        super().__init__()
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = nn.Linear(self.featurizer.n_outputs, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.featurizer(x)
        return self.classifier(z)[:, None], z[:, None]


class CurrentBatch:
    """What WOODS calls a dataset: the minibatches of the current update, and losses of domains.

    Labels (N, 1) and outputs (N, 1, C) have a dimension of time there, of length 1.
    """

    def __init__(self, algorithm: ForeignAlgorithm) -> None:
        self._algorithm = algorithm
        self.ENVS, self.test_env = algorithm.facts.domain_names, None

    def get_nb_training_domains(self) -> int:
        return self._algorithm.num_domains

    def get_next_batch(self) -> tuple[Nest, torch.Tensor]:
        """The inputs and labels of all domains, domain by domain."""
        x, y = (joined([part[name] for part in self._algorithm.current]) for name in "xy")
        return x, y[:, None]

    def loss(self, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean loss."""
        return self._algorithm.label_type.risk(out[:, 0], y[:, 0])

    def loss_by_domain(self, out: torch.Tensor, y: torch.Tensor, domains: int) -> torch.Tensor:
        """(E,) mean losses."""
        parts = self.split_tensor_by_domains(out, y, domains)
        return torch.stack([*map(self._algorithm.label_type.risk, *parts)])

    def split_tensor_by_domains(
        self, out: torch.Tensor, y: torch.Tensor, domains: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs (E, B, C) and labels (E, B), without time."""
        return out[:, 0].unflatten(0, (domains, -1)), y[:, 0].unflatten(0, (domains, -1))


def numbers_of(returned: Any) -> Metrics:
    """The numbers in what an update returned: a dict, one number, a tuple with a dict, or None."""
    if isinstance(returned, (list, tuple)):
        returned = next((each for each in returned if isinstance(each, Mapping)), None)
    named = returned if isinstance(returned, Mapping) else {"loss": returned}
    one: dict[str, Any] = {
        str(name): value
        for name, value in named.items()
        if isinstance(value, (int, float, np.number))
        or (isinstance(value, torch.Tensor) and value.numel() == 1)
    }
    return as_numbers(one)


def adapt(cls: Any, folder: Path | None = None) -> type[Algorithm]:
    """An algorithm of this package that trains and predicts by a class from elsewhere.

    Args:
        cls: with `update` and `predict`. A subclass of this package's `Algorithm` that is called
            as that is stays as it is.
        folder: of the fork, whose train scripts say which further methods they call; None where
            there is no more than a file.

    Returns:
        what can be registered under the class's name.

    Raises:
        UserError: it has no `update` or no `predict`.
    """
    if lacking := [name for name in ("update", "predict") if not hasattr(cls, name)]:
        raise UserError(f"class {cls.__name__} has no {' and no '.join(map(repr, lacking))}")
    is_usual = list(inspect.signature(cls.update).parameters)[1:3] == ["minibatches", "unlabeled"]
    if issubclass(cls, Algorithm) and is_usual and batch_of(cls) == Batch():
        cls.memory_format = torch.contiguous_format
        return cls
    copied = ("__doc__", "__module__", "__qualname__", "paper", "search_space", "options")
    members = {name: getattr(cls, name) for name in copied if hasattr(cls, name)}
    return type(cls.__name__, (ForeignAlgorithm,), {**members, "foreign": cls, "folder": folder})
