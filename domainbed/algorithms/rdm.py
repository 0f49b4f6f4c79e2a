"""RDM: match the distribution of the worst domain's risks with that of all."""

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import AnnealedPenalty, AnnealedWeight, ForwardPass, in_full_precision
from domainbed.algorithms.mmd import GAMMAS, averages, kernel_sum
from domainbed.config.dimensions import Choice, DatasetFacts, Dimension, Uniform, learning_rate

RISK_GAMMAS = (1e-4, *GAMMAS)


@in_full_precision
def risk_penalties(risks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """MMD²(r_worst, r) and var(r) + var(r_worst), of the samples' risks (B,) of each domain.

    r: (N,) those of all domains, the worst included; worst: the domain with the largest mean.
    Which it is stays on the device.
    """
    every = torch.cat(list(risks))
    means = averages([len(r) for r in risks], every)
    worst = torch.stack([r.detach().mean() for r in risks]).argmax(dim=0, keepdim=True)
    contrast = means.index_select(0, worst) - 1 / len(every)  # (1, N)
    matching = kernel_sum(every.unsqueeze(1), contrast.T @ contrast, RISK_GAMMAS)
    variances = torch.stack([r.var() for r in risks])
    return matching, every.var() + variances.index_select(0, worst).squeeze(0)


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    """Laws by the dataset's name, as the authors chose them."""
    domain_net = facts.name == "DomainNet"
    low = 1 if facts.name in ("PACS", "TerraIncognita") else 0.1
    weight, weights = (0.5, (0.1, 1)) if domain_net else (5.0, (low, 10))
    anneal, anneals = (2400, (1500, 3000)) if domain_net else (1500, (800, 2700))
    doc = "weight of the risks' variances after annealing"
    without = facts.name in ("TerraIncognita", "OfficeHome", "DomainNet")
    space: dict[str, Dimension] = {
        "rdm_lambda": Uniform(weight, *weights, "weight of the matching after annealing", least=0),
        "rdm_penalty_anneal_iters": Uniform(
            anneal, *anneals, "updates before the penalties count", integer=True, least=0
        ),
        "variance_weight": Choice(0.0, (0.0,), doc, least=0)
        if without
        else Uniform(0.004, 0.001, 0.007, doc, least=0),
        "rdm_lr": Uniform(1.5e-5, 8e-6, 2e-5, "step size of Adam after annealing", above=0),
    }
    if facts.features:
        return {**space, "rdm_lr": learning_rate(facts, "step size of Adam after annealing")}
    if facts.small_images:
        return space
    large = facts.name in ("DomainNet", "TerraIncognita")
    size, sizes = (40, (30, 60)) if large else (88, (70, 100))
    doc = "images per training domain and step"
    return {**space, "batch_size": Uniform(size, *sizes, doc, integer=True, least=2)}


@register_algorithm
class RDM(AnnealedPenalty):
    """Risk distribution matching.

        loss = mean_e L_e + rdm_lambda · MMD²(r_worst, r) + variance_weight · (var r + var r_worst)

    r: (N,) the samples' losses, L_e their mean in domain e, worst = argmax_e L_e
    (Nguyen et al. 2024, equation 6). The kernel is that of MMD with one wider Gaussian. Both
    weights are 0 for the first `rdm_penalty_anneal_iters` updates; after them Adam is re-created
    with the learning rate `rdm_lr`. DomainBed needs a CUDA device and batches of one size; here
    r is that of all samples, whatever the sizes. With one domain the matching is 0. `total_loss`
    is DomainBed's name for the loss.
    """

    paper = (
        "Nguyen, Do, Duong, Nguyen, Domain Generalisation via Risk Distribution Matching, "
        "WACV 2024, arXiv 2310.18598"
    )
    search_space = staticmethod(_search_space)
    weights = (
        AnnealedWeight("rdm_lambda", "rdm_penalty_anneal_iters"),
        AnnealedWeight("variance_weight", "rdm_penalty_anneal_iters"),
    )
    lr_after = "rdm_lr"
    least_samples = 2

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        matching_weight, variance_weight = self.penalty_weights()
        each = forward.label_type.losses(forward.logits, forward.y)
        risk = forward.domain_risks().mean()
        matching, variance = risk_penalties(forward.by_domain(each))
        loss = risk + matching_weight * matching + variance_weight * variance
        return loss, {
            "update_count": self.updates_done() + 1,
            "total_loss": loss,
            "erm_loss": risk,
            "matching_penalty": matching,
            "variance_penalty": variance,
            "rdm_lambda": self.hparams["rdm_lambda"],
        }
