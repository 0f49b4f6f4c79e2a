"""URM: uniformly distributed features."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    as_numbers,
    register_algorithm,
    step,
)
from domainbed.algorithms.erm import ERM, ForwardPass
from domainbed.config.dimensions import (
    Choice,
    DatasetFacts,
    Dimension,
    LogUniform,
    Uniform,
)
from domainbed.core.device import sent

# The last layer of the featurizer, and the interval of the noise that features should resemble.
ACTIVATIONS: dict[str, tuple[type[nn.Module], float, float]] = {
    "tanh": (nn.Tanh, -1.0, 1.0),
    "relu": (nn.ReLU, 0.0, 1.0),
    "sigmoid": (nn.Sigmoid, 0.0, 1.0),
}

WIDTH = 100  # of the discriminator


def _search_space(facts: DatasetFacts) -> dict[str, Dimension]:
    rate, low, high = (1e-3, -5.5, -3.5) if facts.from_scratch else (5e-5, -6.0, -4.5)
    return {
        "urm": Choice("adversarial", ("adversarial",), "kind of loss for uniformity; never read"),
        "urm_adv_lambda": Uniform(
            0.1, 0.0, 0.2, "weight of the features' terms in both losses", least=0
        ),
        "urm_generator_output": Choice(
            "tanh", ("tanh", "relu"), "activation at the end of the features", further=("sigmoid",)
        ),
        "urm_discriminator_hidden_layers": Choice(
            1, (1, 2, 3), "discriminator: linear layers between the first and the last", least=0
        ),
        "urm_discriminator_optimizer": Choice(
            "adam",
            ("adam",),
            "discriminator: optimizer; adam: that of the network",
            further=("sgd",),
        ),
        "urm_discriminator_label_smoothing": Uniform(
            0.0,
            *(0.0, 0.0),
            "discriminator: width of the range its labels are drawn from",
            least=0,
            below=1,
        ),
        "urm_discriminator_lr": LogUniform(
            rate, low, high, "discriminator: step size of its optimizer", above=0
        ),
    }


def noise_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How badly logits (N, 1) tell whether inputs are noise, labels (N,) of 1, or not, of 0."""
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))


def new_discriminator(width: int, hidden_layers: int) -> nn.Sequential:
    """(N, width) to (N, 1) logits, LeakyReLU after each linear layer but the last."""
    layers: list[nn.Module] = [nn.Linear(width, WIDTH), nn.LeakyReLU()]
    for _ in range(hidden_layers):
        layers += [nn.Linear(WIDTH, WIDTH), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


@register_algorithm
class URM(ERM):
    """Uniform risk minimisation: a discriminator tells features from uniform noise.

        network:        min_{φ, w}  CE(w(z), y) + λ · BCE(D(z), 1)
        discriminator:  min_D       BCE(D(n), 1) + λ · BCE(D(z), 0)

    z = act(φ(x)): (N, d), in predictions as well; n: (N, d) noise, uniform in [−1, 1) for tanh
    and in [0, 1) for relu and sigmoid; D: (N, d) to (N, 1); λ is `urm_adv_lambda`. Both steps are
    taken in each update, the second on the features of the first. With label smoothing s the
    discriminator's labels are drawn from [1 − s, 1) and [0, s).

    Attributes:
        featurizer: act ∘ φ, on any featurizer; DomainBed's takes four classes of them.
        discriminator, discriminator_opt: D and its optimizer.
        draws: of the noise and the labels.
    """

    paper = (
        "Krishnamachari, Ng, Foo, Uniformly Distributed Feature Representations for Fair and "
        "Robust Learning, TMLR 2024, openreview.net/forum?id=PgLbS5yp8n"
    )
    search_space = staticmethod(_search_space)
    needs_classes = False

    def build(self) -> None:
        super().build()
        self.discriminator = new_discriminator(
            self.featurizer.n_outputs, self.hparams["urm_discriminator_hidden_layers"]
        )
        activation, *self.interval = ACTIVATIONS[self.hparams["urm_generator_output"]]
        self.featurizer = nn.Sequential(self.featurizer, activation())  # type: ignore[assignment]
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.discriminator_opt = self.new_optimizer(
            self.discriminator,
            role="discriminator",
            lr=self.hparams["urm_discriminator_lr"],
            optimizer=None if self.hparams["urm_discriminator_optimizer"] == "adam" else "sgd",
        )

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        forward = self.forward_pass(minibatches)
        loss, metrics = self.objective_of(forward)
        self.descend(loss)
        disc_loss = self.discriminator_loss(forward.features.detach())
        step(self.discriminator_opt, disc_loss)
        return as_numbers({"loss": loss, **metrics, "disc_loss": disc_loss})

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, Metrics]:
        """Of the network's step."""
        risk = forward.pooled_risk()
        adversarial = noise_loss(
            self.discriminator(forward.features), forward.features.new_ones(len(forward.y))
        )
        return risk + self.hparams["urm_adv_lambda"] * adversarial, {"nll": risk}

    def discriminator_loss(self, z: torch.Tensor) -> torch.Tensor:
        """Of the discriminator's step, on features (N, d)."""
        low, high = self.interval
        noise = (high - low) * sent(self.draws.uniform(*z.shape).to(z.dtype), z.device) + low
        ones, zeros = self.noise_labels(z)
        of_noise = noise_loss(self.discriminator(noise), ones)
        return of_noise + self.hparams["urm_adv_lambda"] * noise_loss(self.discriminator(z), zeros)

    def noise_labels(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The discriminator's (N,) labels of noise and of features z (N, d)."""
        smoothing = self.hparams["urm_discriminator_label_smoothing"]
        if not smoothing:
            return z.new_ones(len(z)), z.new_zeros(len(z))
        ones, zeros = (
            sent(smoothing * self.draws.uniform(len(z)).to(z.dtype), z.device) for _ in range(2)
        )
        return ones + 1 - smoothing, zeros
