"""Baselines that need no training: fitted once to all training images' features."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    Stage,
    Unlabeled,
    concatenate,
    register_algorithm,
)
from domainbed.config.dimensions import Choice, LogUniform, Option
from domainbed.core.device import full_precision
from domainbed.core.minibatch import joined_extras
from domainbed.errors import UserError
from domainbed.networks import UnitFeatures, is_shape

_LEAST = -1e4  # the logit of a class without images


class FittedOnce(Algorithm):
    """An algorithm with a single update, which sees the whole in-splits.

    Inputs are vectors; small images count as vectors of their pixels. The run ends with its first
    record, whatever its number of steps, and reads no hyper-parameters but its own.

    Attributes:
        width: d, of the inputs.
    """

    needs_features: ClassVar[bool] = True
    needs_tensor = True
    uses_optimizer: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = True  # all that is fitted are scores of classes

    def build(self) -> None:
        if not is_shape(self.input_shape):
            raise UserError(
                f"{type(self).__name__} needs inputs of one shape, and the dataset's is "
                f"{self.input_shape}: choose another algorithm"
            )
        self.width = math.prod(self.input_shape)

    def training_stages(self) -> Sequence[Stage]:
        return (Stage(whole=True),)

    def on_record(self, metrics: dict[str, float]) -> bool:
        return True

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        with full_precision(x.device):
            groups = (joined_extras(minibatches) or {})["group"] if self.facts.group_names else y
            facts = self.fit(x.flatten(1).float(), y, groups)
            with torch.no_grad():
                loss = F.cross_entropy(self.predict(x), y)
        return {"loss": loss.item(), **facts}

    def fit(self, x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
        """From (N, d) features, (N,) labels and groups; returns what to watch beside the loss.

        Groups are those of label and attribute, or labels where there is no attribute.
        """
        raise NotImplementedError


def logistic_regression(
    x: torch.Tensor, y: torch.Tensor, num_classes: int, l2: float
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fits a linear classifier to convergence.

        min over W, b of  mean_n CE(W x_n + b, y_n) + l2 / 2 · ‖W‖²

    By SciPy's L-BFGS in float64, from zeros, until no derivative exceeds 1e-7. The minimum is
    unique but for a constant added to b. scikit-learn solves the same problem for C = 1 / (N · l2);
    here the weight of the penalty does not depend on N, and classes without samples are allowed.

    Args:
        x: (N, d).
        y: (N,) labels.
        num_classes: C.
        l2: more than 0.

    Returns:
        W (C, d), b (C,), and the largest of the absolute derivatives there.
    """
    from scipy.optimize import minimize  # which most runs need not wait for

    exact = torch.float32 if x.device.type == "mps" else torch.float64  # which has no float64
    x = x.detach().to(exact)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(values).to(x).view(num_classes, -1).requires_grad_()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + l2 / 2 * weight.square().sum()
        (gradient,) = torch.autograd.grad(loss, parameters)
        return loss.item(), gradient.double().flatten().cpu().numpy()

    limits = {"gtol": 1e-7, "ftol": 1e-15, "maxiter": 5000, "maxcor": 50}
    with torch.enable_grad():
        found = minimize(
            objective,
            np.zeros(num_classes * (x.shape[1] + 1)),
            jac=True,
            method="L-BFGS-B",
            options=limits,
        )
    best = torch.from_numpy(found.x).to(x).view(num_classes, -1)
    return best[:, :-1], best[:, -1], float(abs(found.jac).max())


class LinearFit(FittedOnce):
    """A linear classifier on the features.

    Attributes:
        classifier: W and b.
    """

    def build(self) -> None:
        super().build()
        self.classifier = nn.Linear(self.width, self.num_classes)

    def predicting_parts(self) -> tuple[nn.Module, nn.Module]:
        return nn.Flatten(), self.classifier

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x.flatten(1).float())


@register_algorithm
class LinearProbe(LinearFit):
    """Logistic regression to convergence, see `logistic_regression`; its l2 is `probe_l2`."""

    paper = (
        "Alain, Bengio, Understanding intermediate layers using linear classifier probes, 2016, "
        "arXiv 1610.01644"
    )
    search_space = {
        "probe_l2": LogUniform(1e-3, -5, 0, "weight of half the squared norm of W", above=0)
    }

    def fit(self, x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
        weight, bias, steepest = logistic_regression(
            x, y, self.num_classes, self.hparams["probe_l2"]
        )
        self.classifier.load_state_dict({"weight": weight, "bias": bias})
        return {"gradient": steepest}


@register_algorithm
class NearestMean(FittedOnce):
    """The class whose mean is nearest.

    logits = −‖x − μ_c‖², or with `mean_distance: cosine` the cosine of x and μ_c, where μ_c is the
    mean of the images of class c, of all domains (Mensink et al. 2013, equation 1).

    Attributes:
        means: μ, (C, d).
        counts: (C,) images of each class.
    """

    paper = (
        "Mensink, Verbeek, Perronnin, Csurka, Distance-Based Image Classification: Generalizing "
        "to New Classes at Near-Zero Cost, TPAMI 2013"
    )
    search_space = {
        "mean_distance": Choice("cosine", ("cosine", "euclidean"), "distance to the class means")
    }

    def build(self) -> None:
        super().build()
        self.means = nn.Buffer(torch.zeros(self.num_classes, self.width))
        self.counts = nn.Buffer(torch.zeros(self.num_classes))

    def fit(self, x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
        members = F.one_hot(y, self.num_classes).to(x.dtype)  # (N, C)
        self.counts.copy_(members.sum(dim=0))
        self.means.copy_(members.T @ x / self.counts.clamp(min=1)[:, None])
        return {}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1).float()
        if self.hparams["mean_distance"] == "cosine":
            logits = F.normalize(x, dim=1) @ F.normalize(self.means, dim=1).T
        else:
            logits = -torch.cdist(x, self.means).square()
        return logits.masked_fill(self.counts == 0, _LEAST)


@register_algorithm
class KNN(FittedOnce):
    """The classes of the nearest training images.

        votes_c = Σ over the knn_k nearest n of class c of exp(cos(x, x_n) / 0.07),   logits = log

    (Wu et al. 2018, section 3.4). All training images are kept.

    Attributes:
        memory: (N, d) features of length 1, and their labels; empty before the fit.
    """

    paper = (
        "Wu, Xiong, Yu, Lin, Unsupervised Feature Learning via Non-Parametric Instance "
        "Discrimination, CVPR 2018, arXiv 1805.01978"
    )
    search_space = {"knn_k": Choice(20, (1, 5, 10, 20, 50, 100), "neighbours that vote", least=1)}

    def build(self) -> None:
        super().build()
        self.memory: list[torch.Tensor] = []

    def get_extra_state(self) -> list[torch.Tensor]:
        """Its size is not known before the fit, so it is no buffer."""
        return self.memory

    def set_extra_state(self, state: list[torch.Tensor]) -> None:
        self.memory = state

    def fit(self, x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
        self.memory = [F.normalize(x, dim=1), y]
        return {}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        kept, labels = (each.to(x.device) for each in self.memory)
        cosines = F.normalize(x.flatten(1).float(), dim=1) @ kept.T  # (B, N)
        nearest = cosines.topk(min(self.hparams["knn_k"], len(kept)), dim=1)
        classes = F.one_hot(labels[nearest.indices], self.num_classes)  # (B, k, C)
        log_votes = (nearest.values / 0.07)[..., None].masked_fill(classes == 0, _LEAST)
        return log_votes.logsumexp(dim=1).clamp(min=_LEAST)


def sparse_regression(x: np.ndarray, y: np.ndarray, c: float, seed: int) -> np.ndarray:
    """w and b of scikit-learn's logistic regression by liblinear, as one vector (d + 1,).

        min over w, b of  ‖w‖₁ + |b| + c Σ_n log(1 + exp(−y_n (w · x_n + b)))

    Args:
        x: (N, d).
        y: (N,) false or true, which counts as −1 and 1; zeros if all are the same.
        c: more than 0.
        seed: of the order in which liblinear goes over the features.
    """
    import sklearn
    from sklearn.linear_model import LogisticRegression  # which most runs need not wait for

    if y.all() or not y.any():
        return np.zeros(x.shape[1] + 1)
    older = [int(part) for part in sklearn.__version__.split(".")[:2]] < [1, 8]
    penalty: dict[str, Any] = {"penalty": "l1"} if older else {"l1_ratio": 1}
    model = LogisticRegression(**penalty, C=c, solver="liblinear", random_state=seed).fit(x, y)
    return np.append(model.coef_[0], model.intercept_)


@register_algorithm
class DFR(LinearFit):
    """Deep feature reweighting: a sparse classifier, fitted to groups of one size.

    The mean of `dfr_subsamples` classifiers. Each is fitted to as many samples of each group,
    drawn without replacement, as the smallest one has, by `sparse_regression` of each class against
    the others with c = `dfr_c`. Features are standardised by all samples (Kirichenko et al. 2023).
    """

    paper = (
        "Kirichenko, Izmailov, Wilson, Last Layer Re-Training is Sufficient for Robustness to "
        "Spurious Correlations, ICLR 2023, arXiv 2204.02937"
    )
    search_space = {
        "dfr_c": Choice(1.0, (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01), "weight of the loss", above=0)
    }
    options = {
        "dfr_subsamples": Option(
            20, "number of subsamples, each of which gives a classifier", least=1
        )
    }

    def fit(self, x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
        std, mean = torch.std_mean(x, dim=0, correction=0)
        std = torch.where(std > 0, std, 1)
        scaled, labels = ((x - mean) / std).double().cpu().numpy(), y.cpu().numpy()
        places = [torch.nonzero(groups.cpu() == g)[:, 0] for g in groups.unique().cpu()]
        size, found = min(map(len, places)), []
        for seed in range(self.option("dfr_subsamples")):
            rows = torch.cat([of[self.draws.permutation(len(of))[:size]] for of in places]).numpy()
            found += [
                sparse_regression(scaled[rows], labels[rows] == k, self.hparams["dfr_c"], seed)
                for k in range(self.num_classes)
            ]
        mean_of_all = np.reshape(found, (-1, self.num_classes, self.width + 1)).mean(axis=0)
        fitted = torch.from_numpy(mean_of_all).to(x)
        weight = fitted[:, :-1] / std
        self.classifier.load_state_dict({"weight": weight, "bias": fitted[:, -1] - weight @ mean})
        return {"zero_weights": (weight == 0).double().mean().item()}


@register_algorithm
class ZeroShot(FittedOnce):
    """A classifier made of the names of the classes, by the backbone's text encoder.

        logits_c = s · ⟨x / ‖x‖, w_c⟩

    w_c: the mean text vector of class c over the `prompts`, of length 1; s: the scale that the
    model was trained with (Radford et al. 2021, section 3.1). Nothing is fitted, and no image of a
    training domain is looked at.

    Attributes:
        classifier: s · w, which the run is given before its record; and no bias.
    """

    paper = (
        "Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, "
        "Sutskever, Learning Transferable Visual Models From Natural Language Supervision, ICML "
        "2021, arXiv 2103.00020"
    )
    needs_text = True

    def build(self) -> None:
        super().build()
        self.featurizer = UnitFeatures((self.width,), self.hparams)
        self.classifier = nn.Linear(self.width, self.num_classes)

    def fit(self, x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor) -> dict[str, float]:
        return {}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x.flatten(1).float()))
