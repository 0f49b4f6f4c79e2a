"""PCL: features near the proxy of their class, and away from samples of other classes."""

import math
from itertools import chain, pairwise

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import (
    AUTHORS,
    OF_AUTHORS,
    PAPER,
    Metrics,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.cad import outside, same
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import DatasetFacts, Dimension, Fixed
from domainbed.core.device import full_precision

_SCALE, _HIDDEN = 12, 512
_LEAST = 1e-6  # of the cosine of a negative, in the authors' code


def proxy_loss(
    z: torch.Tensor,
    proxies: torch.Tensor,
    y: torch.Tensor,
    negative: torch.Tensor,
    is_coded: bool = False,
) -> torch.Tensor:
    """mean_i of −log exp(s z_i·p_y) / (Σ_k exp(s z_i·p_k) + Σ_j exp(s z_i·z_j)), a scalar, s = 12.

    All vectors are scaled to length 1 before.

    Args:
        z: (N, d).
        proxies: p, (K, d).
        y: (N,) labels.
        negative: (N, N) of which i which j count.
        is_coded: as in the authors' code: no proxy but that of y, no j at more than a right angle,
            and in the place of z_i·p_y that product of another sample. The samples' products are
            in the order of their classes.
    """
    with full_precision(z.device):
        full = torch.promote_types(z.dtype, torch.float32)
        z, proxies = (F.normalize(each.to(full), dim=1) for each in (z, proxies))
        to_proxies, between = _SCALE * z @ proxies.T, _SCALE * z @ z.T
    own = to_proxies.gather(1, y[:, None])
    if is_coded:
        own = to_proxies = own[y.argsort(stable=True)]
        negative = negative & (between >= _SCALE * _LEAST)
    candidates = torch.cat([to_proxies, outside(between, negative)], dim=1)
    return (candidates.logsumexp(dim=1) - own.squeeze(1)).mean()


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    wide, terra = facts.name in ("OfficeHome", "TerraIncognita"), facts.name == "TerraIncognita"
    return {
        "pcl_width": Fixed(512 if wide else 256, "width of the classifier's input", least=1),
        "pcl_blocks": Fixed(2 if terra else 1, "hidden layers below it", least=0),
        "pcl_projection": Fixed(
            2 if facts.name == "OfficeHome" else 1, "linear layers of the projection", least=1
        ),
        "pcl_dropout": Fixed(0.25, "dropout in both", least=0, below=1),
    }


@register_algorithm
class PCL(ERM):
    """Proxy-based contrastive learning.

        h = E(φ(x)),  logits = h Cᵀ,  z = r(h),  p = C Fᵀ
        loss = CE(logits, y) + `proxy_loss`(z, p, y)

    h, z: (N, d), d = `pcl_width`; C: (K, d), the classifier, without a bias, and linear whatever
    `nonlinear_classifier` says; E: `pcl_blocks` hidden layers of width 512 with batch norm, ReLU
    and dropout, then a linear layer; r: `pcl_projection` linear layers with dropout between them;
    F: (d, d). Negatives of a sample are those of its domain with other labels (Yao et al. 2022).
    With `fidelity: authors`, as in their code, they are of any domain, and `proxy_loss` is as
    coded.

    Attributes:
        featurizer: E ∘ φ.
        projection, proxy_map: r, F.
    """

    paper = (
        "Yao, Bai, Zhang, Zhang, Sun, Chen, Li, Yu, PCL: Proxy-based Contrastive Learning for "
        "Domain Generalization, CVPR 2022"
    )
    search_space = staticmethod(_search_space)
    options = two_readings(PAPER, "authors: proxies of other samples", values=OF_AUTHORS)
    needs_classes = True
    least_in_all = 2  # for batch norm
    classifier: nn.Linear

    def build(self) -> None:
        super().build()
        width, dropout = self.hparams["pcl_width"], self.hparams["pcl_dropout"]
        widths = [self.featurizer.n_outputs, *[_HIDDEN] * self.hparams["pcl_blocks"]]
        blocks = [
            (nn.Linear(below, above), nn.BatchNorm1d(above), nn.ReLU(), nn.Dropout(dropout))
            for below, above in pairwise(widths)
        ]
        encoder = nn.Sequential(*chain(*blocks), nn.Linear(widths[-1], width))
        for layer in encoder:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        self.featurizer = nn.Sequential(self.featurizer, encoder)  # type: ignore[assignment]
        self.classifier = nn.Linear(width, self.num_classes, bias=False)
        self.proxy_map = nn.Linear(width, width, bias=False)
        for drawn in (self.classifier, self.proxy_map):
            nn.init.kaiming_uniform_(drawn.weight, a=math.sqrt(5), mode="fan_out")
        more = [
            (nn.Dropout(dropout), nn.Linear(width, width))
            for _ in range(1, self.hparams["pcl_projection"])
        ]
        self.projection = nn.Sequential(nn.Linear(width, width), *chain(*more))
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = self.new_optimizer(self.network, self.projection, self.proxy_map)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        z, proxies = self.projection(forward.features), self.proxy_map(self.classifier.weight)
        is_coded = self.option("fidelity") == AUTHORS
        negative = ~same(forward.y) & (same(forward.domains) | is_coded)
        risk = forward.pooled_risk()
        penalty = proxy_loss(z, proxies, forward.y, negative, is_coded)
        return risk + penalty, {"nll": risk, "penalty": penalty}
