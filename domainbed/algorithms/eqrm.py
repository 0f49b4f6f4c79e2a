"""EQRM: minimise a quantile of the distribution of risks over domains."""

import math
from statistics import NormalDist

import torch

from domainbed.algorithms.base import DOMAINBED, PAPER, Metrics, register_algorithm, two_readings
from domainbed.algorithms.erm import AnnealedPenalty, ForwardPass
from domainbed.config.dimensions import DatasetFacts, Dimension, LogUniform, Uniform, learning_rate
from domainbed.errors import UserError

MENDED = "mended"
_ROUNDS, _PARTS = 4, 256  # _PARTS ** _ROUNDS is 2 ** 32, the finest that DomainBed's search gets


def quantile_of_risks(risks: torch.Tensor, quantile: float, implicit: bool = False) -> torch.Tensor:
    """q with F(q) = α, F the distribution of a Gaussian kernel density over the risks.

    Args:
        risks: L, (E,) of at least two domains. The bandwidth is h = 1.06 · std(L) · E^−0.2.
        quantile: α below 1; one below 0 stands for log(1 − α), and the tail is approximated.
        implicit: whether the derivative is that of F(q; L, h) = α, which weighs each risk by its
            kernel at q. Without, it is that of the last midpoint of a bisection between
            min L + h Φ⁻¹(α) and max L + h Φ⁻¹(α), which only min L, max L and h carry.

    Returns:
        a scalar.
    """
    width = 1.06 * risks.std() * len(risks) ** -0.2
    if quantile < 0:
        return (risks + width * math.sqrt(-2 * quantile)).mean()
    shift = width * NormalDist().inv_cdf(quantile)
    bandwidth = width.detach().clamp_min(torch.finfo(width.dtype).tiny)  # above 0
    position = _bisected(risks.detach(), bandwidth, shift.detach(), quantile)
    found = torch.lerp(risks.min(), risks.max(), position) + shift
    if not implicit:
        return found
    scores = ((found - risks) / bandwidth).detach()
    kernels = torch.softmax(-0.5 * scores.square(), dim=0)
    return (kernels * (risks + scores * width)).sum()  # each term's value is `found`


def _bisected(
    risks: torch.Tensor, width: torch.Tensor, shift: torch.Tensor, quantile: float
) -> torch.Tensor:
    """Where 32 halvings of [min L, max L] + shift end, as a fraction of it.

    A round looks at 255 points at once, which is eight halvings, and nothing waits for the
    device.
    """
    low, length = risks.min() + shift, risks.max() - risks.min()
    steps = torch.arange(1, _PARTS, dtype=risks.dtype, device=risks.device)
    position = torch.zeros_like(low)
    for size in [_PARTS**-k for k in range(1, _ROUNDS + 1)]:
        points = low + (position + steps * size) * length
        below = torch.special.ndtr((points.unsqueeze(1) - risks) / width).mean(dim=1)
        position = position + (below <= quantile).sum() * size
    return position + _PARTS**-_ROUNDS / 2


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    doc = "step size of Adam on the quantile"
    return {
        "eqrm_quantile": Uniform(
            0.75, 0.5, 0.99, "quantile of the risks; below 0: log(1 - quantile)", below=1
        ),
        "eqrm_burnin_iters": LogUniform(2500, 2.5, 3.5, "updates on the mean of the risks"),
        "eqrm_lr": learning_rate(facts, doc)
        if facts.features
        else LogUniform(1e-6, -7, -5, doc, above=0),
    }


@register_algorithm
class EQRM(AnnealedPenalty):
    """Empirical quantile risk minimisation.

        loss = mean_e L_e for the first eqrm_burnin_iters updates, then F⁻¹(eqrm_quantile; L)

    L: (E,) the domains' mean cross-entropies, F: see `quantile_of_risks` (Eastwood et al. 2022,
    algorithm 1). When the loss becomes the quantile, Adam is re-created with the learning rate
    `eqrm_lr`. Readings: DomainBed re-creates it when the number of updates equals
    `eqrm_burnin_iters`, which never happens where that was drawn and is not a whole number, and
    differentiates its bisection; `paper` re-creates it when the loss changes, and differentiates
    the quantile; `mended` re-creates it when the loss changes, and differentiates as DomainBed.
    """

    paper = (
        "Eastwood, Robey, Singh, von Kügelgen, Hassani, Pappas, Schölkopf, Probable Domain "
        "Generalization via Quantile Risk Minimization, NeurIPS 2022, arXiv 2207.09944"
    )
    search_space = staticmethod(_search_space)
    options = two_readings(
        MENDED,
        "domainbed: Adam changes only after a whole eqrm_burnin_iters; paper: exact gradient",
        further=(MENDED,),
    )
    lr_after = "eqrm_lr"
    least_domains = 2
    passes_by_domain = True

    def build(self) -> None:
        super().build()
        if self.hparams["eqrm_quantile"] == 0:
            raise UserError("hyper-parameter 'eqrm_quantile' of EQRM cannot be 0: it is no risk")
        self.fidelity = self.option("fidelity")

    def switches_now(self) -> bool:
        burnin = self.hparams["eqrm_burnin_iters"]
        return self.updates_done() == (burnin if self.fidelity == DOMAINBED else math.ceil(burnin))

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        risks = forward.domain_risks()
        if self.updates_done() < self.hparams["eqrm_burnin_iters"]:
            return risks.mean(), {}
        return quantile_of_risks(risks, self.hparams["eqrm_quantile"], self.fidelity == PAPER), {}
