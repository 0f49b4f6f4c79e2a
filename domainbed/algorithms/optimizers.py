"""Optimizers by name, learning rate schedules, and gradient clipping.

The rate of an update is a function of its step: nothing of a schedule is in a checkpoint, and an
optimizer that is made in the middle of a run starts at the rate of that step.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from domainbed.config.dimensions import Option, with_defaults
from domainbed.config.run_facts import RunFacts
from domainbed.core.registry import Registry
from domainbed.errors import UserError

# From the share of the updates after the warm-up that are done, in [0, 1), and the options, by
# name, to the factor by which a rate is multiplied.
Schedule = Callable[[float, Mapping[str, Any]], float]


def _check_optimizer(entry: Any) -> None:
    missing = {"lr", "weight_decay"} - set(inspect.signature(entry).parameters)
    if missing:
        raise ValueError(f"{entry!r} takes no {' and no '.join(sorted(missing))}")


OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry(
    "optimizer", entry_point_group="domainbed.optimizers", check=_check_optimizer
)
"""By name, what makes an optimizer of parameters, `lr` and `weight_decay`."""

LR_SCHEDULES: Registry[Schedule] = Registry(
    "learning-rate schedule", entry_point_group="domainbed.lr_schedules"
)

for _class in (
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop),
):
    OPTIMIZERS.register(_class, name=_class.__name__.lower())
OPTIMIZERS.register(partial(torch.optim.SGD, momentum=0.9), name="sgd")


@LR_SCHEDULES.register
def constant(progress: float, options: Mapping[str, Any]) -> float:
    """1."""
    return 1.0


@LR_SCHEDULES.register
def cosine(progress: float, options: Mapping[str, Any]) -> float:
    """Half a cosine, from 1 to 0 (Loshchilov and Hutter 2017, equation 5, without restarts)."""
    return (1 + math.cos(math.pi * progress)) / 2


@LR_SCHEDULES.register
def linear(progress: float, options: Mapping[str, Any]) -> float:
    """A line from 1 to 0."""
    return 1 - progress


@LR_SCHEDULES.register(name="step")
def falling(progress: float, options: Mapping[str, Any]) -> float:
    """`lr_gamma` to the power of the number of `lr_milestones` passed."""
    return float(options["lr_gamma"] ** sum(progress >= p for p in options["lr_milestones"]))


# What every algorithm reads that makes its optimizers by `Algorithm.new_optimizer`.
OPTIMIZER_OPTIONS: dict[str, Option] = {
    "optimizer": Option("adam", "optimizer, with the learning rate 'lr'", OPTIMIZERS),
    "momentum": Option(
        0.9, "momentum of sgd, and of rmsprop, which has none by default", least=0, below=1
    ),
    "lr_schedule": Option(
        "constant", "schedule of all learning rates after the warm-up", LR_SCHEDULES
    ),
    "lr_milestones": Option(
        [0.5, 0.75], "schedule step: fractions of training after which rates drop"
    ),
    "lr_gamma": Option(0.1, "schedule step: factor by which rates drop", above=0, most=1),
    "warmup": Option(
        0.0, "fraction of the updates during which all rates rise linearly from 0", least=0, below=1
    ),
    "gradient_clip": Option(
        0.0, "largest norm of the gradient of an optimizer's parameters; 0: no limit", least=0
    ),
}


def check_optimizer_options(chosen: Mapping[str, Any]) -> None:
    """Makes sure that the options fit each other.

    Raises:
        UserError: one would not be used; or a milestone is no share.
    """
    options = with_defaults(OPTIMIZER_OPTIONS, chosen)
    optimizer, schedule = options["optimizer"], options["lr_schedule"]
    if "momentum" in chosen and not _takes(OPTIMIZERS[optimizer], "momentum"):
        raise _refusal("momentum", chosen, f"the optimizer {optimizer} has none")
    for name in ("lr_milestones", "lr_gamma"):
        if name in chosen and schedule in ("constant", "cosine", "linear"):
            raise _refusal(name, chosen, f"the schedule {schedule} does not use it")
    if not all(isinstance(p, (int, float)) and 0 < p < 1 for p in options["lr_milestones"]):
        raise _refusal("lr_milestones", chosen, "expected numbers between 0 and 1")


def _refusal(name: str, chosen: Mapping[str, Any], reason: str) -> UserError:
    return UserError(f"hyper-parameter {name!r} is {chosen[name]!r}, but {reason}", "hparams", name)


def _takes(make: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(make).parameters


def registered_as(chosen: Mapping[str, Any]) -> list[Any]:
    """What makes the optimizers, and the schedule."""
    options = with_defaults(OPTIMIZER_OPTIONS, chosen)
    return [OPTIMIZERS[options["optimizer"]], LR_SCHEDULES[options["lr_schedule"]]]


def rate_factor(step: int, steps: int, options: Mapping[str, Any]) -> float:
    """The factor for all rates in update `step` of `steps`, counted from 0.

        (step + 1) / w                               for step < w, w = warmup · steps, rounded
        schedule((step − w) / (steps − w))           from then on

    Args:
        step: of the update.
        steps: of the run, or of each of its stages.
        options: values of `OPTIMIZER_OPTIONS`, all of them.
    """
    rising = round(options["warmup"] * steps)
    if step < rising:
        return (step + 1) / rising
    return LR_SCHEDULES[options["lr_schedule"]]((step - rising) / (steps - rising), options)


class StepRule:
    """Prepares each step of an optimizer: sets its rates and clips its gradients.

    Args:
        facts: of the run, whose step the rates follow.
        chosen: values of `OPTIMIZER_OPTIONS`, where they are set.
    """

    def __init__(self, facts: RunFacts, chosen: Mapping[str, Any]) -> None:
        self._facts, self._options = facts, with_defaults(OPTIMIZER_OPTIONS, chosen)
        self.moves_rates = bool({"lr_schedule", "warmup"} & set(chosen))

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """To an optimizer with the rates of a run without schedule and warm-up."""
        for group in optimizer.param_groups if self.moves_rates else ():
            group.setdefault("initial_lr", group["lr"])
        vars(optimizer)["rule"] = self
        if self.moves_rates or self._options["gradient_clip"]:
            optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Called by the optimizer before its step."""
        if self.moves_rates:
            factor = rate_factor(self._facts.step, self._facts.steps, self._options)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        if self._options["gradient_clip"]:
            nn.utils.clip_grad_norm_(_tensors(optimizer), self._options["gradient_clip"])


def _tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"]]


def new_optimizer(
    parts: Sequence[Any],
    hparams: Mapping[str, Any],
    chosen: Mapping[str, Any],
    facts: RunFacts,
    settings: dict[str, Any],
) -> torch.optim.Optimizer:
    """See `Algorithm.new_optimizer`; `chosen` are the options that are set."""
    make = OPTIMIZERS[settings.pop("optimizer", None) or chosen.get("optimizer", "adam")]
    usual = {name: hparams[name] for name in ("lr", "weight_decay") if name not in settings}
    if "momentum" in chosen and _takes(make, "momentum"):
        usual["momentum"] = chosen["momentum"]
    if not _takes(make, "betas"):
        settings.pop("betas", None)
    are_networks = all(isinstance(part, nn.Module) for part in parts)
    parameters: Iterable[Any] = nn.ModuleList(parts).parameters() if are_networks else parts[0]
    optimizer = make(parameters, **{**usual, **settings})
    StepRule(facts, chosen).attach(optimizer)
    return optimizer


class OptimizerGuard:
    """Refuses steps of optimizers that the options do not affect, in a `with` around updates.

    One over other tensors (the clones that a method steps within an update) is its own affair.

    Args:
        algorithm: whose parameters are stepped.
        chosen: the options that are set; where there are none, nothing is refused.

    Raises:
        UserError: at such a step.
    """

    def __init__(self, algorithm: nn.Module, chosen: Mapping[str, Any]) -> None:
        self._algorithm, self._chosen, self._steps = algorithm, chosen, 0

    def __enter__(self) -> None:
        if self._chosen:
            self._hook = register_optimizer_step_pre_hook(self._check)

    def __exit__(self, *error: Any) -> None:
        if self._chosen:
            self._hook.remove()

    def _check(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if "rule" in vars(optimizer):
            self._steps += 1
        elif set(_tensors(optimizer)) & set(self._algorithm.parameters()):
            self._refuse(f"makes {type(optimizer).__name__} by itself")

    def require_steps(self) -> None:
        """Refuses updates if no optimizer has taken a step so far."""
        if self._chosen and not self._steps:
            self._refuse("trains without an optimizer")

    def _refuse(self, what: str) -> None:
        name = next(iter(self._chosen))
        raise UserError(
            f"hyper-parameter {name!r} has no effect: {type(self._algorithm).__name__} {what}. "
            f"Leave out {', '.join(self._chosen)}, or change the class: optimizers that "
            "'self.new_optimizer' makes have these options",
            *("hparams", name),
        )
