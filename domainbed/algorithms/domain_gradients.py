"""What ANDMask, SANDMask and IGA share: the gradients of each domain's risk, stacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from domainbed.algorithms.base import Metrics, Minibatches, as_numbers
from domainbed.algorithms.erm import ERM


def gradients_of(
    risk: torch.Tensor, parameters: Sequence[torch.Tensor], create_graph: bool = False
) -> tuple[torch.Tensor, ...]:
    """The gradient of a scalar for each parameter: 0 of one that it does not depend on.

    With `create_graph` it can be differentiated once more.
    """
    return torch.autograd.grad(
        risk, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def domain_gradients(
    risks: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor], create_graph: bool = False
) -> list[torch.Tensor]:
    """The gradients of E risks, for each parameter (*shape) one tensor (E, *shape).

    Risks whose graphs are apart (see `ForwardPass.separate_risks`) cost one backward pass of all
    samples together; those of one graph would cost E of them.
    """
    rows = [gradients_of(risk, parameters, create_graph) for risk in risks]
    return [torch.stack(of_domains) for of_domains in zip(*rows)]


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Those that are not frozen."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


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

    def mask_of(self, gradients: torch.Tensor) -> torch.Tensor:
        """From (E, *shape) gradients to a mask (*shape) in [0, 1]."""
        raise NotImplementedError

    def update(
        self, minibatches: Minibatches, unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Metrics:
        risks = self.forward_pass(minibatches).separate_risks()
        parameters = trained_parameters(self.network)
        stacked = domain_gradients(risks, parameters)
        for parameter, gradients in zip(parameters, stacked, strict=True):
            parameter.grad = rescaled(gradients.mean(0), self.mask_of(gradients))
        self.optimizer.step()
        return as_numbers({"loss": torch.stack(risks).mean()})
