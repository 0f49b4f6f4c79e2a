"""Sharpness: gradients at weights that are moved uphill first. Alone, or added: `SAM+CORAL`."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from domainbed.algorithms.add_ons import AddOn
from domainbed.algorithms.base import (
    AUTHORS,
    DOMAINBED,
    OF_AUTHORS,
    PAPER,
    Algorithm,
    Metrics,
    Minibatches,
    Unlabeled,
    chosen_options,
    gradients_of,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.optimizers import OPTIMIZER_OPTIONS, rate_factor
from domainbed.config.dimensions import Choice, Fixed, Option, with_defaults

Tensors = Sequence[torch.Tensor]


def uphill(gradients: Tensors, scales: Tensors, rho: float) -> list[torch.Tensor]:
    """rho · s² g / ‖s g‖, all weights as one vector, s their scales."""
    scaled = [s * g for s, g in zip(scales, gradients)]
    length = get_total_norm(scaled) + 1e-12
    return [rho * s * each / length for s, each in zip(scales, scaled)]


def inner_product(first: Tensors, second: Tensors) -> torch.Tensor:
    """Of two lists of tensors, each as one vector: a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second)]).sum()


@register_algorithm
class SAM(AddOn):
    """Sharpness-aware minimization, of ERM or of another algorithm.

        g = ∇L(w),  ε = sam_rho · g / (‖g‖ + 1e-12),  g' = ∇L(w + ε)
        the optimizer steps from w along g'

    L: the other algorithm's objective on the minibatches; w: all weights that its optimizer steps,
    as one vector; ε is a constant (Foret et al. 2021). Both passes see the same
    minibatches and the same draws of the algorithm's own source; dropout draws again. Running
    statistics, moving averages and counts are those of the first pass, whose loss is reported.
    """

    paper = (
        "Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization for Efficiently Improving "
        "Generalization, ICLR 2021, arXiv 2010.01412"
    )
    search_space = {
        "sam_rho": Choice(0.05, (0.01, 0.02, 0.05, 0.1), "how far uphill the weights move", least=0)
    }
    base_class = ERM
    passes_twice = True  # with the same draws of what is below it, so nothing goes on top
    needs_classes = False

    def moves(self, weights: Tensors, gradients: Tensors) -> list[torch.Tensor]:
        """What is added to the weights for the second pass."""
        return uphill(gradients, [torch.ones_like(g) for g in gradients], self.hparams["sam_rho"])

    def directions(self, first: Tensors, second: Tensors) -> Tensors:
        """From the gradients of the weights in both passes to those of the step."""
        return second

    def objective(
        self, minibatches: Minibatches, unlabeled: Unlabeled = None
    ) -> tuple[torch.Tensor, Metrics]:
        """A loss whose gradient is that of the step."""
        groups, start = self.base.optimizer.param_groups, self._state()
        trained = [w for group in groups for w in group["params"] if w.requires_grad]
        loss, metrics = self.base.objective(minibatches, unlabeled)
        found = zip(trained, torch.autograd.grad(loss, trained, allow_unused=True))
        weights, first = zip(*((w, g) for w, g in found if g is not None))
        after = self._state()
        self._set(start)
        with torch.no_grad():
            for weight, move in zip(weights, self.moves(weights, first)):
                weight += move
        second = gradients_of(self.base.objective(minibatches, unlabeled)[0], weights)
        self._set(after)
        return inner_product(weights, self.directions(first, second)), {"loss": loss, **metrics}

    def _state(self) -> tuple[dict[str, Any], list[Any]]:
        """A copy of what objectives change: weights, buffers, and sources of draws."""
        return copy.deepcopy((self.base.state_dict(), [each.draws for each in self._sources()]))

    def _set(self, state: tuple[dict[str, Any], list[Any]]) -> None:
        self.base.load_state_dict(state[0])
        for each, draws in zip(self._sources(), state[1]):
            each.draws = draws

    def _sources(self) -> list[Algorithm]:
        return [each for each in self.base.modules() if isinstance(each, Algorithm)]


@register_algorithm
class ASAM(SAM):
    """Adaptive SAM: weights move in proportion to their size.

        ε = sam_rho · w² g / (‖|w| g‖ + 1e-12)

    All products are by entry (Kwon et al. 2021, with T_w = |w|).
    """

    paper = (
        "Kwon, Kim, Park, Choi, ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant "
        "Learning of Deep Neural Networks, ICML 2021, arXiv 2102.11600"
    )
    search_space = {
        "sam_rho": Choice(0.5, (0.1, 0.2, 0.5, 1.0), "how far uphill the weights move", least=0)
    }

    def moves(self, weights: Tensors, gradients: Tensors) -> list[torch.Tensor]:
        return uphill(gradients, [w.detach().abs() for w in weights], self.hparams["sam_rho"])


@register_algorithm
class GSAM(SAM):
    """Surrogate gap guided sharpness-aware minimization.

        ε = ρ g / (‖g‖ + 1e-12),  the optimizer steps along g' − gsam_alpha · g_⊥
        g_⊥ = g − ⟨g, g'⟩ / (‖g'‖ + 1e-12)² · g'

    g, g' as in `SAM`; g_⊥ is the part of g across g', of whose loss the step does not descend
    (Zhuang et al. 2022). ρ falls and rises with the learning rate: it is `sam_rho` at the rate that
    is set, and `gsam_least_rho` where a schedule ends at 0. With `gsam_adaptive` weights move in
    proportion to their size, as in `ASAM`.
    """

    paper = (
        "Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu, Surrogate Gap "
        "Minimization Improves Sharpness-Aware Training, ICLR 2022, arXiv 2203.08065"
    )
    search_space = {
        "gsam_alpha": Choice(
            0.001, (0.01, 0.02, 0.05, 0.1), "weight of the orthogonal part", least=0
        )
    }
    options = {
        "gsam_least_rho": Option(0.0, "smallest sam_rho, when the learning rate is 0", least=0),
        "gsam_adaptive": Option(False, "move weights in proportion to their size"),
    }

    def moves(self, weights: Tensors, gradients: Tensors) -> list[torch.Tensor]:
        options = with_defaults(OPTIMIZER_OPTIONS, chosen_options(type(self), self.hparams))
        factor = rate_factor(self.facts.step, self.facts.steps, options)
        least = self.option("gsam_least_rho")
        adaptive = self.option("gsam_adaptive")
        scales = [w.detach().abs() if adaptive else torch.ones_like(w) for w in weights]
        return uphill(gradients, scales, least + (self.hparams["sam_rho"] - least) * factor)

    def directions(self, first: Tensors, second: Tensors) -> Tensors:
        share = inner_product(first, second) / (get_total_norm(second) + 1e-12) ** 2
        return [h - self.hparams["gsam_alpha"] * (g - share * h) for g, h in zip(first, second)]


@register_algorithm
class SAGM(SAM):
    """Sharpness-aware gradient matching.

        ε = (sam_rho / (‖g‖ + 1e-12) − sagm_alpha) g,  the optimizer steps along g + g'

    That is the gradient of L(w) + L(w + ρ g / ‖g‖ − α g) with a constant ε (Wang et al. 2023).
    With `fidelity: authors`, as in their code, the step is along half of it, and ρ is 0.05
    whatever `sam_rho` says; Adam without weight decay does not see the half. Where the other
    algorithm has readings too, its `fidelity` chooses both.
    """

    paper = (
        "Wang, Zhang, Lei, Zhang, Sharpness-Aware Gradient Matching for Domain Generalization, "
        "CVPR 2023, arXiv 2303.10353"
    )
    search_space = {
        "sam_rho": Fixed(0.05, "how far uphill the weights move", least=0),
        "sagm_alpha": Choice(
            0.001, (0.0005, 0.001, 0.01, 0.02, 0.05, 0.1), "share of a step downhill", least=0
        ),
    }
    options = two_readings(PAPER, "authors: half the step, and ρ is 0.05", values=OF_AUTHORS)

    @property
    def _is_authors(self) -> bool:
        return self.option("fidelity") in (AUTHORS, DOMAINBED)

    def moves(self, weights: Tensors, gradients: Tensors) -> list[torch.Tensor]:
        rho = 0.05 if self._is_authors else self.hparams["sam_rho"]
        factor = rho / (get_total_norm(gradients) + 1e-12) - self.hparams["sagm_alpha"]
        return [factor * g for g in gradients]

    def directions(self, first: Tensors, second: Tensors) -> Tensors:
        return [(g + h) / 2 if self._is_authors else g + h for g, h in zip(first, second)]
