"""Subpopulation shift: losses and sampling for groups of label and attribute that differ in size.

Without an attribute the groups are the classes.
"""

import math

import torch
from torch import nn

from domainbed.algorithms.base import AUTHORS, Metrics, register_algorithm, two_readings
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.algorithms.group_dro import GroupDRO, reweighted
from domainbed.config.dimensions import Choice, LogUniform, Uniform


class Grouped(ERM):
    """An algorithm that knows how many training samples each group has; as it stands, ERM.

    Attributes:
        group_sizes: n_g, (G,), a buffer. Group y · A + a has the label y and the attribute a; with
            no attribute G is the number of classes. Outside a run all are 1.
        class_sizes: n_k, (K,), likewise.
    """

    needs_classes = True

    def build(self) -> None:
        super().build()
        named, of_classes = self.facts.group_names, self.facts.class_sizes
        sizes = (self.facts.group_sizes if named else of_classes) or [1] * self.num_classes
        self.group_sizes = nn.Buffer(torch.tensor(sizes, dtype=torch.float32))
        self.class_sizes = nn.Buffer(self.group_sizes.view(self.num_classes, -1).sum(dim=1))

    def groups(self, forward: ForwardPass) -> torch.Tensor:
        """(N,) the group of each sample."""
        return (forward.extras or {})["group"] if self.facts.group_names else forward.y

    def losses(self, forward: ForwardPass) -> torch.Tensor:
        """(N,) ℓ_n, of which the mean is minimised."""
        return self.label_type.losses(forward.logits, forward.y)

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        return self.losses(forward).mean(), {}


@register_algorithm
class ReWeight(Grouped):
    """Weights in inverse proportion to the sizes of groups.

        loss = mean_n w_g(n) CE_n,  w_g = 1/n_g, scaled so that the G weights sum to G

    A group without samples has the weight 0.
    """

    paper = "Japkowicz, The Class Imbalance Problem: Significance and Strategies, ICAI 2000"

    def weights(self, sizes: torch.Tensor) -> torch.Tensor:
        """w_g but for their sum, of n_g of at least 1: (G,) to (G,)."""
        return 1 / sizes

    def losses(self, forward: ForwardPass) -> torch.Tensor:
        weights = self.weights(self.group_sizes.clamp(min=1)) * (self.group_sizes > 0)
        scaled = weights * len(weights) / weights.sum()
        return scaled[self.groups(forward)] * super().losses(forward)


@register_algorithm
class SqrtReWeight(ReWeight):
    """As `ReWeight`, with w_g = n_g^-½."""

    def weights(self, sizes: torch.Tensor) -> torch.Tensor:
        return sizes.rsqrt()


@register_algorithm
class CB(ReWeight):
    """As `ReWeight`, with w_g = (1 − β) / (1 − β^n_g), the effective number of samples."""

    paper = (
        "Cui, Jia, Lin, Song, Belongie, Class-Balanced Loss Based on Effective Number of Samples, "
        "CVPR 2019, arXiv 1901.05555"
    )
    search_space = {"cb_rest": LogUniform(1e-4, -5, -2, "1 − β", above=0, below=1)}

    def weights(self, sizes: torch.Tensor) -> torch.Tensor:
        rest = self.hparams["cb_rest"]
        return rest / -torch.expm1(sizes * math.log1p(-rest))


@register_algorithm
class ReSample(Grouped):
    """ERM whose minibatches have all groups of a domain equally often."""

    paper = ReWeight.paper
    balances_groups = True


@register_algorithm
class Focal(Grouped):
    """ℓ_n = (1 − p_n)^γ CE_n, p_n the probability of the label."""

    paper = (
        "Lin, Goyal, Girshick, He, Dollár, Focal Loss for Dense Object Detection, ICCV 2017, "
        "arXiv 1708.02002"
    )
    search_space = {"focal_gamma": LogUniform(1.0, -0.30103, 0.69897, "γ, from a half to five")}

    def losses(self, forward: ForwardPass) -> torch.Tensor:
        losses = super().losses(forward)
        return (-torch.expm1(-losses)) ** self.hparams["focal_gamma"] * losses


@register_algorithm
class LDAM(Grouped):
    """Label-distribution-aware margins.

        ℓ_n = CE(s (z_n − m_y e_y), y),  m_k = n_k^-¼, scaled so that the largest is ldam_margin

    z: (N, K) logits; e_y: 1 at the label; s: ldam_scale; a class without samples has the margin 0
    (Cao et al. 2019).
    """

    paper = (
        "Cao, Wei, Gaidon, Arechiga, Ma, Learning Imbalanced Datasets with "
        "Label-Distribution-Aware Margin Loss, NeurIPS 2019, arXiv 1906.07413"
    )
    search_space = {
        "ldam_margin": LogUniform(0.5, -1, -0.1, "largest margin"),
        "ldam_scale": Choice(30.0, (10.0, 30.0), "factor of the logits", above=0),
    }

    def losses(self, forward: ForwardPass) -> torch.Tensor:
        margins = self.class_sizes.clamp(min=1) ** -0.25 * (self.class_sizes > 0)
        margins = margins * self.hparams["ldam_margin"] / margins.max()
        own = torch.arange(self.num_classes, device=margins.device) == forward.y[:, None]
        logits = self.hparams["ldam_scale"] * (forward.logits - margins * own)
        return self.label_type.losses(logits, forward.y)


@register_algorithm
class BSoftmax(Grouped):
    """Balanced softmax: ℓ_n = CE(z_n + log n_k, y); predictions are by z alone.

    A class without samples counts as one with a single one.
    """

    paper = (
        "Ren, Yu, Sheng, Ma, Zhao, Yi, Li, Balanced Meta-Softmax for Long-Tailed Visual "
        "Recognition, NeurIPS 2020, arXiv 2007.10740"
    )

    def losses(self, forward: ForwardPass) -> torch.Tensor:
        logits = forward.logits + self.class_sizes.clamp(min=1).log()
        return self.label_type.losses(logits, forward.y)


@register_algorithm
class GroupDROAttributes(Grouped):
    """`GroupDRO` over the groups of label and attribute, in place of the domains.

        q_g ← q_g exp(groupdro_eta · L_g) / Σ,   loss = Σ_g q_g L_g,  with the new q as a constant

    L_g: the mean loss of the samples of group g in the minibatches, 0 where there are none (Sagawa
    et al. 2020).

    Attributes:
        q: (G,), a buffer; 1/G at first.
    """

    paper = GroupDRO.paper
    search_space = GroupDRO.search_space

    def build(self) -> None:
        super().build()
        self.q: torch.Tensor = nn.Buffer(torch.ones_like(self.group_sizes) / len(self.group_sizes))

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        numbers = torch.arange(len(self.q), device=self.q.device)
        members = (self.groups(forward) == numbers[:, None]).to(self.q.dtype)  # (G, N)
        risks = (members * self.losses(forward)).sum(dim=1) / members.sum(dim=1).clamp(min=1)
        self.q = reweighted(self.q, risks.detach(), self.hparams["groupdro_eta"])
        return (self.q * risks).sum(), {}


@register_algorithm
class CVaRDRO(Grouped):
    """Conditional value at risk: the mean of the largest losses, a fraction α of a minibatch of N.

    The ⌊αN⌋ largest losses have the weight 1/(αN), and the next one what is left to 1.
    """

    paper = (
        "Levy, Carmon, Duchi, Sidford, Large-Scale Methods for Distributionally Robust "
        "Optimization, NeurIPS 2020, arXiv 2010.05893"
    )
    search_space = {
        "cvar_alpha": LogUniform(0.1, -2, 0, "fraction of the samples that count", above=0, most=1)
    }

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        losses = self.losses(forward).sort(descending=True).values
        places = torch.arange(len(losses), device=losses.device, dtype=losses.dtype)
        weights = (self.hparams["cvar_alpha"] * len(losses) - places).clamp(0, 1)
        return (weights * losses).sum() / weights.sum(), {}


class TwoNetworks(Grouped):
    """An algorithm with a second network, trained by the same optimizer.

    Attributes:
        biased: that network, of the same architecture and with a start of its own.
    """

    def build(self) -> None:
        super().build()
        own = self.featurizer, self.classifier
        super().build()
        self.biased = nn.Sequential(*own)
        self.optimizer = self.new_optimizer(self.network, self.biased)

    def biased_losses(self, forward: ForwardPass) -> torch.Tensor:
        """(N,) B_n, the losses of the biased network."""
        return self.label_type.losses(self.biased(forward.x), forward.y)


@register_algorithm
class LfF(TwoNetworks):
    """Learning from failure: a biased network, and another that learns from its failures.

        loss = mean_n p_n^q q B_n  +  mean_n B_n / (B_n + CE_n + 1e-8) CE_n

    B_n, CE_n: losses of the biased network and of the one that predicts; p_n: the probability that
    the biased one gives the label. p_n^q and the fraction are constants (Nam et al. 2020).
    """

    paper = (
        "Nam, Cha, Ahn, Lee, Shin, Learning from Failure: Training Debiased Classifier from "
        "Biased Classifier, NeurIPS 2020, arXiv 2007.02561"
    )
    search_space = {"lff_q": Uniform(0.7, 0.05, 0.95, "q, how much bias is amplified", least=0)}

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        own, q, biased = self.losses(forward), self.hparams["lff_q"], self.biased_losses(forward)
        amplified = ((-q * biased).exp().detach() * q * biased).mean()
        fails = (biased / (biased + own + 1e-8)).detach()
        return (fails * own).mean() + amplified, {"biased_loss": amplified}


@register_algorithm
class JTT(TwoNetworks):
    """Just train twice: a network by ERM, and a fresh one that attends to the errors of the first.

        the first ⌊jtt_first · steps⌋ updates:  loss = mean_n B_n
        the others:  loss = Σ_n w_n CE_n / Σ_n w_n,  w_n = 1 + jtt_lambda if the first errs, else 1

    B_n, CE_n: losses of the first network, which is fixed after its updates and errs in evaluation
    mode, and of the second, which predicts (Liu et al. 2021). With `fidelity: subpopbench`, as in
    SubpopBench, w_n is jtt_lambda where the first one errs, and the loss is mean_n w_n CE_n.
    """

    paper = (
        "Liu, Haghgoo, Chen, Raghunathan, Koh, Sagawa, Liang, Finn, Just Train Twice: Improving "
        "Group Robustness without Training Group Information, ICML 2021, arXiv 2107.09044"
    )
    search_space = {
        "jtt_first": Uniform(
            0.5, 0.2, 0.8, "fraction of the updates that train the first network", least=0, most=1
        ),
        "jtt_lambda": LogUniform(10.0, 0, 2.5, "how often its errors are repeated", least=0),
    }
    options = two_readings(
        AUTHORS, "subpopbench: weights that are not divided", values=(AUTHORS, "subpopbench")
    )

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        if self.facts.step < int(self.hparams["jtt_first"] * self.facts.steps):
            return self.biased_losses(forward).mean(), {}
        with torch.no_grad():
            errs = self.biased.eval()(forward.x).argmax(dim=1) != forward.y
        losses, times = self.losses(forward), self.hparams["jtt_lambda"]
        if self.option("fidelity") != AUTHORS:
            return (torch.where(errs, times, 1.0) * losses).mean(), {}
        weights = 1 + times * errs.to(losses.dtype)
        return (weights * losses).sum() / weights.sum(), {}
