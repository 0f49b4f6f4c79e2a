"""Featurizers: which one suits the shape of the inputs, small networks, and published backbones.

The backbones of the published protocol are ResNet-50 and ResNet-18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.config.dimensions import Option, with_defaults
from domainbed.core.registry import Registry, require_callable
from domainbed.errors import UserError, one_line
from domainbed.networks.pretrained import headless_model

# What decides which network is built.
CHOICE_OPTIONS: dict[str, Option] = {
    "featurizer": Option("", "a registered network; empty: by the shape of the input"),
    "backbone": Option(
        "", "a torchvision model, timm:NAME, or open_clip:NAME; empty: the protocol's ResNet"
    ),
}

MLP_OPTIONS: dict[str, Option] = {
    "mlp_width": Option(256, "width of a featurizer of vectors", least=1),
    "mlp_depth": Option(3, "linear layers of a featurizer of vectors", least=2),
    "mlp_dropout": Option(0.0, "dropout in a featurizer of vectors", least=0, below=1),
}

_AUGMIX = "timm:resnet50.ram_in1k"

BACKBONE_OPTIONS: dict[str, Option] = {
    "weights": Option(
        "imagenet", "pretrained: imagenet, none, or the path of a state dict", file=True
    ),
    "freeze_bn": Option(True, "keep a backbone's batch norm layers in eval mode"),
    "resnet50_augmix": Option(False, f"{_AUGMIX} instead of ResNet-50, as in DomainBed from 2024"),
}


class _Choosing(type):
    """Lets a call of `Featurizer` itself build the network that suits the inputs.

    Not `__new__`, after which Python would initialise the network a second time.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Featurizer:
            return _chosen(*args, **kwargs)
        return super().__call__(*args, **kwargs)


class Featurizer(nn.Module, metaclass=_Choosing):
    """A network from (B, *input_shape) to (B, n_outputs) features.

    `Featurizer(input_shape, hparams)` builds one of the registered networks: vectors go through
    an `MLP`, images of at most 28×28 through `MNIST_CNN`, of at least 32×32 through a `Backbone`,
    and so do images of any size where `hparams["backbone"]` names one. `hparams["featurizer"]`
    names another registered network, and wins; a dataset that names its network sets it.

    Attributes:
        n_outputs: the width of the features.

    Raises:
        UserError: no network for that shape.
    """

    n_outputs: int


NETWORKS: Registry[Callable[[Any, Mapping[str, Any]], nn.Module]] = Registry(
    "network",
    entry_point_group="domainbed.networks",
    check=lambda entry: require_callable(entry, "network"),
)
"""Featurizers: called with the dataset's `input_shape` and the hyper-parameters, they have
`n_outputs`. One may declare `options` of its own."""


def named_network(name: str) -> Any:
    """The registered network that a dataset or a user names.

    Raises:
        UserError: there is none of that name.
    """
    try:
        return NETWORKS[name]
    except UserError as error:
        raise UserError(f"hyper-parameter 'featurizer': {error}", "hparams", "featurizer") from None


def is_shape(described: Any) -> bool:
    """Whether a dataset's `input_shape` is the shape of one tensor, and no other description."""
    return isinstance(described, (list, tuple)) and all(isinstance(n, Integral) for n in described)


def _chosen(input_shape: Any, hparams: Mapping[str, Any]) -> nn.Module:
    chosen = with_defaults(CHOICE_OPTIONS, hparams)
    if not chosen["featurizer"] and not is_shape(input_shape):
        raise UserError(
            f"no featurizer for inputs of shape {input_shape}: the dataset names its network as "
            "'network', or you name one in the hyper-parameter 'featurizer'",
            *("hparams", "featurizer"),
        )
    name = chosen["featurizer"] or _suited(tuple(input_shape), chosen["backbone"])
    if name in ("MLP", "MNIST_CNN") and hparams.get("weights", "none") != "none":
        raise UserError(
            f"hyper-parameter 'weights' is {hparams['weights']!r}, but the network for inputs of "
            f"shape {tuple(input_shape)}, {name}, takes none: leave it out, or name a 'backbone'",
            *("hparams", "weights"),
        )
    return named_network(name)(input_shape, hparams)


def _suited(shape: tuple[int, ...], backbone: str) -> str:
    """The name of the network for inputs of `shape`, given the backbone that was named, if any."""
    if backbone and len(shape) != 3:
        raise UserError(
            f"backbone {backbone!r} takes images, but the inputs have the shape "
            f"{shape}: leave 'backbone' out"
        )
    if len(shape) == 1:
        return "MLP"
    if len(shape) == 3 and (backbone or min(shape[1:]) >= 32):
        return "Backbone"
    if len(shape) == 3 and max(shape[1:]) <= 28:
        return "MNIST_CNN"
    raise UserError(
        f"no featurizer for inputs of shape {shape}: expected (features,) or "
        "(channels, height, width); name a registered network in the hyper-parameter 'featurizer'"
    )


def Classifier(in_features: int, out_features: int, is_nonlinear: bool = False) -> nn.Module:
    """A head from (B, in_features) to (B, out_features) logits.

    One linear layer, or with `is_nonlinear` three of them (in, in/2, in/4, out) with ReLU.
    """
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(
        nn.Linear(in_features, in_features // 2),
        nn.ReLU(),
        nn.Linear(in_features // 2, in_features // 4),
        nn.ReLU(),
        nn.Linear(in_features // 4, out_features),
    )


class MLP(Featurizer):
    """`mlp_depth` linear layers of width `mlp_width`; after each but the last, dropout then ReLU.

    Args:
        n_inputs: width of the input, (B, n_inputs).
        n_outputs: width of the output, (B, n_outputs).
        hparams: reads `mlp_width`, `mlp_depth` (at least 2) and `mlp_dropout`.
    """

    def __init__(self, n_inputs: int, n_outputs: int, hparams: Mapping[str, Any]) -> None:
        super().__init__()
        width = hparams["mlp_width"]
        self.input = nn.Linear(n_inputs, width)
        self.dropout = nn.Dropout(hparams["mlp_dropout"])
        self.hiddens = nn.ModuleList(
            nn.Linear(width, width) for _ in range(hparams["mlp_depth"] - 2)
        )
        self.output = nn.Linear(width, n_outputs)
        self.n_outputs = n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in [self.input, *self.hiddens]:
            x = F.relu(self.dropout(layer(x)))
        return self.output(x)


@NETWORKS.register(name="MLP")
def mlp_featurizer(input_shape: Sequence[int], hparams: Mapping[str, Any]) -> MLP:
    """An `MLP` of vectors, as wide at its end as inside."""
    hparams = with_defaults(MLP_OPTIONS, hparams)
    return MLP(input_shape[0], hparams["mlp_width"], hparams)


@NETWORKS.register
class Projection(Featurizer):
    """What is trained on frozen features below the classifier: `head_depth` layers with ReLU.

    Dropout comes before each layer. With a depth of 0 there is only that dropout, and the
    classifier works on the features themselves.

    Args:
        input_shape: (d,).
        hparams: reads `head_depth`, `head_width` and `head_dropout`.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        widths = [input_shape[0], *[hparams["head_width"]] * hparams["head_depth"]]
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.dropout = nn.Dropout(hparams["head_dropout"])
        self.n_outputs = widths[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.relu(layer(self.dropout(x)))
        return x if self.layers else self.dropout(x)


@NETWORKS.register
class UnitFeatures(Featurizer):
    """Frozen features scaled to length 1; nothing below the classifier is trained.

    Args:
        input_shape: (d,).
        hparams: not read.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        self.n_outputs = input_shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=1)


@NETWORKS.register
class MNIST_CNN(Featurizer):
    """Four 3×3 convolutions with ReLU and GroupNorm, then a global average pool: 128 features.

    Gulrajani and Lopez-Paz 2020, table 7. Parameter names are those of DomainBed's class, so
    that its saved models load.
    """

    n_outputs = 128

    def __init__(
        self, input_shape: Sequence[int], hparams: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 64, 3, 1, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(128, 128, 3, 1, padding=1)
        self.conv4 = nn.Conv2d(128, 128, 3, 1, padding=1)
        self.bn0 = nn.GroupNorm(8, 64)
        self.bn1 = nn.GroupNorm(8, 128)
        self.bn2 = nn.GroupNorm(8, 128)
        self.bn3 = nn.GroupNorm(8, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv2.weight.is_contiguous():  # else convolutions are done in the layout of x
            x = x.contiguous()
        x = self.bn0(F.relu(self.conv1(x)))  # (B, 64, H, W)
        x = self.bn1(F.relu(self.conv2(x)))  # (B, 128, H/2, W/2)
        x = self.bn2(F.relu(self.conv3(x)))
        x = self.bn3(F.relu(self.conv4(x)))
        return x.mean(dim=(2, 3))  # (B, 128)


@NETWORKS.register
class SequenceCNN(Featurizer):
    """Convolutions over time, then the mean over time.

    Each of `sequence_depth` layers has a kernel of 7 steps, GroupNorm, ReLU and dropout, and halves
    the length.

    Args:
        input_shape: (T, C), steps and channels.
        hparams: reads `sequence_width`, a multiple of 4, `sequence_depth` and `sequence_dropout`.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        widths = [hparams["sequence_width"]] * hparams["sequence_depth"]
        layers = [
            nn.Sequential(
                nn.Conv1d(before, width, kernel_size=7, stride=2, padding=3),
                nn.GroupNorm(4, width),
                nn.ReLU(),
                nn.Dropout(hparams["sequence_dropout"]),
            )
            for before, width in zip([input_shape[1], *widths], widths)
        ]
        self.layers, self.n_outputs = nn.Sequential(*layers), widths[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.transpose(1, 2)).mean(dim=2)


@NETWORKS.register
class Transformer(Featurizer):
    """Self-attention of tokens with learned places; one more token, the first, sums up the others.

    `sequence_depth` layers with four heads, normalised before attention (Vaswani et al. 2017; Xiong
    et al. 2020). Padding, token 0, changes nothing.

    Args:
        data: `vocabulary`, the number of tokens with 0, and `length`, the most in a sequence.
        hparams: reads what `SequenceCNN` does.
    """

    def __init__(self, data: Mapping[str, int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        self.n_outputs = width = hparams["sequence_width"]
        self.tokens = nn.Embedding(data["vocabulary"] + 1, width)
        self.places = nn.Embedding(data["length"] + 1, width)
        layer = nn.TransformerEncoderLayer(
            *(width, 4, 2 * width, hparams["sequence_dropout"]), batch_first=True, norm_first=True
        )
        depth, norm = hparams["sequence_depth"], nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, L)
        x = F.pad(x, (1, 0), value=self.tokens.num_embeddings - 1)
        z = self.tokens(x) + self.places.weight[: x.shape[1]]
        with sdpa_kernel(SDPBackend.MATH):  # the only one with second derivatives
            return self.encoder(z, src_key_padding_mask=x == 0)[:, 0]


@NETWORKS.register
class Backbone(Featurizer):
    """A model of torchvision or timm without its last layer, with dropout on its features.

    Args:
        input_shape: (channels, height, width). With other than 3 channels the first
            convolution takes them, its pretrained weights repeated over the channels.
        hparams: reads `resnet18` (ResNet-18 in place of ResNet-50) and `resnet_dropout`
            (dropout on the features), and where they are given `backbone` (another model, by
            its name in torchvision, or `timm:NAME`) and `BACKBONE_OPTIONS`: `weights`
            ("imagenet", "none", or a file), `freeze_bn` (true as in the published protocol: all
            batch norm layers stay in eval mode while training) and `resnet50_augmix` (with
            neither of the other choices of a model: timm's ResNet-50 of AugMix's training).

    Attributes:
        network: the model; the names of its parameters are its source's, and DomainBed's.
        n_outputs: the width of the features.

    Raises:
        UserError: no such model, weights that are not available or do not fit, or a model that
            cannot take inputs of this shape.
    """

    def __init__(self, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> None:
        super().__init__()
        hparams = with_defaults({**CHOICE_OPTIONS, **BACKBONE_OPTIONS}, hparams)
        name = _chosen_model(hparams)
        self.network = headless_model(name, str(hparams["weights"]))
        if input_shape[0] != 3:
            _take_channels(self.network, input_shape[0], name)
        self.n_outputs = _width_of_features(self.network, input_shape, name)
        self.dropout = nn.Dropout(hparams["resnet_dropout"])
        self.freeze_bn = bool(hparams["freeze_bn"])
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(x))

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self.network.modules():
            if self.freeze_bn and isinstance(module, _BatchNorm):  # also synchronised or timm's
                module.eval()
        return self


def _chosen_model(hparams: Mapping[str, Any]) -> str:
    named, resnet18 = hparams["backbone"], hparams["resnet18"]
    if resnet18 and named not in ("", "resnet18"):
        raise UserError(
            f"the hyper-parameters 'backbone' ({named!r}) and 'resnet18' (True) choose two "
            "models: set only one of them"
        )
    if named or resnet18:
        return named or "resnet18"
    return _AUGMIX if hparams["resnet50_augmix"] else "resnet50"


def _take_channels(network: Any, channels: int, name: str) -> None:
    """Makes the first convolution take `channels`: number i gets the weights of i modulo 3."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        raise UserError(
            f"backbone {name!r} does not begin with a convolution of 3 channels, so it cannot "
            f"take images of {channels}: choose another backbone"
        )
    first.weight = nn.Parameter(first.weight.detach()[:, torch.arange(channels) % 3])
    first.in_channels = channels
    if hasattr(network, "transform_input"):
        network.transform_input = False  # torchvision's takes the three channels apart


def _width_of_features(network: nn.Module, input_shape: Sequence[int], name: str) -> int:
    """Tries the network on one blank image: its features must be (1, width)."""
    size = "×".join(map(str, input_shape))
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, *input_shape))
    except Exception as error:  # each model has its own way to refuse a size
        raise UserError(
            f"backbone {name!r} cannot take images of {size} ({one_line(error)}): choose another "
            "backbone"
        ) from error
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        raise UserError(
            f"backbone {name!r} does not give one vector of features per image of {size}: "
            "choose another backbone"
        )
    return features.shape[1]
