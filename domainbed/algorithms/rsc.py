"""Self-challenging: mute the features that predictions rely on most, and learn from the others."""

import math

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, register_algorithm
from domainbed.algorithms.erm import ERM, ForwardPass, Network
from domainbed.config.dimensions import Uniform


def below_quantile(values: torch.Tensor, quantile: float) -> torch.Tensor:
    """Which entries of each row are less than the row's quantile: (…, n) numbers to truth values.

    The quantile is interpolated linearly. At 1 it is the row's maximum, which is not less.
    """
    # Not torch.quantile: its places are float32, where one that is whole may miss its entry.
    ordered = values.to(torch.promote_types(values.dtype, torch.float32)).sort(dim=-1).values
    place = quantile * (values.shape[-1] - 1)
    ends = ordered[..., math.floor(place)], ordered[..., math.ceil(place)]
    return values < torch.lerp(*ends, place % 1).unsqueeze(-1)


def kept_features(
    features: torch.Tensor, labels: torch.Tensor, classifier: Network, f_drop: float, b_drop: float
) -> torch.Tensor:
    """Which features of which samples are not muted.

    Args:
        features: z, (N, d).
        labels: y, (N,).
        classifier: w, (N, d) to (N, C).
        f_drop: share of the features to mute, those with the largest gradients.
        b_drop: share of the samples to mute them in, those that lose most by it.

    Returns:
        (N, d) truth values, outside the graph.
    """
    z, own = features.detach().requires_grad_(), labels.unsqueeze(1)
    with torch.enable_grad():
        logits = classifier(z)
        (gradient,) = torch.autograd.grad(logits.gather(1, own).sum(), z)
    with torch.no_grad():
        in_features = below_quantile(gradient, 1 - f_drop)
        muted = classifier(z * in_features)
        lost = logits.softmax(dim=1).gather(1, own) - muted.softmax(dim=1).gather(1, own)
    return in_features | below_quantile(lost.squeeze(1), 1 - b_drop).unsqueeze(1)


@register_algorithm
class RSC(ERM):
    """Representation self-challenging.

        g_n = ∂ w(z_n)[y_n] / ∂z_n                                              (d,)
        m_n = 1[g_n < its (1 − f)-quantile]                                     (d,)
        Δ_n = softmax(w(z_n))[y_n] − softmax(w(z_n m_n))[y_n]
        m_n = 1 where Δ_n < the batch's (1 − b)-quantile
        loss = CE(w(z m), y)

    z = φ(x): (N, d), of all domains; f and b are `rsc_f_drop_factor` and `rsc_b_drop_factor`.
    The masks m are constants. So of the samples only those b that lose most are muted
    (Huang et al. 2020, equations 1 to 5 and section 3.3). As in DomainBed pooled features are
    muted, where the authors' code mutes feature maps, by place or by channel.
    """

    paper = (
        "Huang, Wang, Xing, Huang, Self-Challenging Improves Cross-Domain Generalization, "
        "ECCV 2020, arXiv 2007.02454"
    )
    search_space = {
        "rsc_f_drop_factor": Uniform(
            1 / 3, 0, 0.5, "share of the features that are muted", least=0, below=1
        ),
        "rsc_b_drop_factor": Uniform(
            1 / 3, 0, 0.5, "share of the samples in which they are muted", least=0, below=1
        ),
    }

    needs_classes = True  # it mutes what the score of the own class relies on

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        kept = kept_features(
            forward.features,
            forward.y,
            self.classifier,
            f_drop=self.hparams["rsc_f_drop_factor"],
            b_drop=self.hparams["rsc_b_drop_factor"],
        )
        return F.cross_entropy(self.classifier(forward.features * kept), forward.y), {}
