"""AND-mask: steps only where the domains' gradients have one sign."""

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    gradients_of,
    register_algorithm,
    trained_parameters,
)
from domainbed.algorithms.erm import ERM
from domainbed.config.dimensions import Uniform


def domain_gradients(
    risks: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], create_graph: bool = False
) -> list[torch.Tensor]:
    """The gradients of E risks, for each parameter (*shape) one tensor (E, *shape).

    Risks whose graphs are separate (see `ForwardPass.separate_risks`) cost one backward pass of all
    samples together; those of one graph would cost E of them.
    """
    rows = [gradients_of(risk, parameters, create_graph) for risk in risks]
    return [torch.stack(of_domains) for of_domains in zip(*rows)]


def rescaled(gradient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """m · g / (1e-10 + mean(m)): as large as if nothing were masked. Both of one shape."""
    return mask * gradient / (1e-10 + mask.mean())


class MaskedGradients(ERM):
    """Steps along the domains' mean gradient where the domains agree, tensor by tensor.

        g_e = ∇ CE_e,  m = mask_of(g_1, …, g_E)
        θ ← Adam(θ, m · mean_e g_e / (1e-10 + mean(m)))

    g_e, m: of each parameter's shape. With one domain it is ERM in effect.
    """

    separates_domains = True
    needs_classes = False

    def mask_of(self, gradients: torch.Tensor) -> torch.Tensor:
        """From (E, *shape) gradients to a mask (*shape) in [0, 1]."""
        raise NotImplementedError

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        risks = self.forward_pass(minibatches).separate_risks()
        parameters = trained_parameters(self.network)
        for parameter, gradients in zip(parameters, domain_gradients(risks, parameters)):
            parameter.grad = rescaled(gradients.mean(0), self.mask_of(gradients))
        self.optimizer.step()
        return as_numbers({"loss": torch.stack(risks).mean()})


def and_mask(gradients: torch.Tensor, tau: float) -> torch.Tensor:
    """1 where |mean_e sign g_e| ≥ tau, else 0: (E, *shape) to (*shape).

    Compared as sums, which are whole numbers: full agreement of any number of domains is 1.
    """
    return (gradients.sign().sum(dim=0).abs() >= tau * len(gradients)).to(gradients.dtype)


@register_algorithm
class ANDMask(MaskedGradients):
    """Invariance by the logical AND of gradients.

        m = 1[ |mean_e sign g_e| ≥ tau ]
        θ ← Adam(θ, m · mean_e g_e / (1e-10 + mean(m)))

    g_e, m: of each parameter's shape (Parascandolo et al. 2021; the division is that of the
    authors' code). With two domains the agreement is 0 or 1, with three 1/3 or 1: every tau of
    the search space counts as 1 there.
    """

    paper = (
        "Parascandolo, Neitz, Orvieto, Gresele, Schölkopf, Learning Explanations that are Hard to "
        "Vary, ICLR 2021, arXiv 2009.00329"
    )
    search_space = {
        "tau": Uniform(1, 0.5, 1, "least agreement of the domains' gradient signs", least=0)
    }

    def mask_of(self, gradients: torch.Tensor) -> torch.Tensor:
        return and_mask(gradients, self.hparams["tau"])
