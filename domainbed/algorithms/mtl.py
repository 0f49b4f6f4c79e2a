"""Marginal transfer learning: a classifier of the features and of the domain they come from."""

import torch
from torch import nn

from domainbed import networks
from domainbed.algorithms.base import (
    DOMAINBED,
    Draws,
    Metrics,
    Minibatches,
    domain_sizes,
    register_algorithm,
    two_readings,
)
from domainbed.algorithms.erm import ForwardPass, PooledAlgorithm, trains_batch_norm
from domainbed.config.dimensions import Choice
from domainbed.core.device import sent
from domainbed.core.minibatch import Nest, split


def beside(features: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """[z, m]: features (B, d) and one embedding (d,), or one each (B, d), to (B, 2d)."""
    return torch.cat([features, embedding.expand_as(features)], dim=1)


@register_algorithm
class MTL(PooledAlgorithm):
    """The neural version of marginal transfer learning.

        m_e ← ema · mean_n z_en + (1 − ema) · m_e                               (d,)
        loss = Σ_e CE(w([z_e, m_e]), y_e)
        prediction of a batch of one domain: w([z, mean_n z_n])

    z_e = φ(x_e): (B, d), w: (B, 2d) to (B, C). The gradient goes through the new mean, not
    through the average that is kept. With `fidelity: paper` that is what is computed: the mean
    feature stands for the paper's kernel mean embedding of a domain's marginal distribution.

    DomainBed, and the default, fills the embedding [·, m] with numbers from N(0, 1) just
    before the classifier, (B, d) of them, in training and in predictions: so predictions are
    partly random. The numbers of predictions come from a source that restarts with every batch, so
    that evaluation changes no training and gives the same result twice.

    Attributes:
        embeddings: m, (E, d), a buffer.
    """

    paper = (
        "Blanchard, Deshmukh, Dogan, Lee, Scott, Domain Generalization by Marginal Transfer "
        "Learning, JMLR 2021, arXiv 1711.07910"
    )
    search_space = {
        "mtl_ema": Choice(
            0.99, (0.5, 0.9, 0.99, 1.0), "weight of the new mean in the average", least=0, most=1
        )
    }
    options = two_readings(DOMAINBED, "DomainBed: noise in place of the domain's mean features")
    predicts_batches = True
    passes_by_domain = True
    needs_classes = False

    def build(self) -> None:
        self.featurizer = networks.Featurizer(self.input_shape, self.hparams)
        width = self.featurizer.n_outputs
        self.classifier = networks.Classifier(
            2 * width, self.num_classes, self.hparams["nonlinear_classifier"]
        )
        self.optimizer = self.new_optimizer(self.featurizer, self.classifier)
        self.embeddings = nn.Buffer(torch.zeros(self.num_domains, width))
        self.is_noisy = self.option("fidelity") == DOMAINBED

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        return forward.domain_risks().sum(), {}

    def forward_pass(self, minibatches: Minibatches) -> ForwardPass:
        """Its features are the classifier's inputs, (N, 2d)."""
        self.require_samples(minibatches)
        sizes, one_by_one = domain_sizes(minibatches), trains_batch_norm(self)

        def embedded(x: Nest) -> torch.Tensor:
            z = (
                [self.featurizer(x_e) for x_e in split(x, sizes)]
                if one_by_one
                else self.featurizer(x).split(sizes)
            )
            return torch.cat([beside(z_e, self.embedding(z_e, e)) for e, z_e in enumerate(z)])

        return ForwardPass(minibatches, embedded, self.classifier, label_type=self.label_type)

    def embedding(self, z: torch.Tensor, domain: int) -> torch.Tensor:
        """m_e (d,), or noise (B, d) in its place, for features (B, d); moves the average on."""
        ema = self.hparams["mtl_ema"]
        mean = ema * z.to(self.embeddings.dtype).mean(dim=0) + (1 - ema) * self.embeddings[domain]
        self.embeddings[domain] = mean.detach()
        return self.noise(z, self.draws) if self.is_noisy else mean

    def noise(self, z: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Numbers from N(0, 1) in the shape of features (B, d)."""
        return sent(draws.normal(*z.shape).to(z.dtype), z.device)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Of a batch of one domain: (B, *input_shape) to (B, C)."""
        z = self.featurizer(x)
        if self.is_noisy:
            return self.classifier(beside(z, self.noise(z, self.draws.of_a_prediction())))
        return self.classifier(beside(z, z.to(self.embeddings.dtype).mean(dim=0)))
