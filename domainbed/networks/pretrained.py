"""Models of torchvision and timm by their names, without their last layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from domainbed.core.suggest import did_you_mean
from domainbed.errors import UserError, one_line
from domainbed.networks import open_clip_models, packaged
from domainbed.networks.weights import load_weights

_LIST_TORCHVISION = 'python -c "from torchvision import models; print(models.list_models(models))"'
_LIST_TIMM = 'python -c "import timm; print(timm.list_models())"'
_AUXILIARY_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def headless_model(name: str, weights: str) -> nn.Module:
    """A classification model from images to features, (B, C, H, W) to (B, width).

    The last linear layer (SqueezeNet's last convolution) is an identity. What else stands in
    the head stays, except for its dropout, which is off: dropout on the features is chosen
    apart. Stochastic depth stays as the model defines it.

    Args:
        name: a classification model of torchvision, `timm:NAME`, `efficientnet_lite0`, or
            `open_clip:NAME` for its image encoder.
        weights: "imagenet" for the published ones (torchvision's `IMAGENET1K_V1`, or its
            default where there is no such; timm's default), "none", or a file with a state dict.

    Raises:
        UserError: no such model, or its weights are not to be had or do not fit.
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
    if name == packaged.NAME:
        network, removed = _timm_model(packaged.TIMM_NAME, pretrained=False)
        if pretrained:
            packaged.load_published(network)
    elif name.startswith("timm:"):
        network, removed = _timm_model(name.removeprefix("timm:"), pretrained)
    else:
        network, removed = _torchvision_model(name, pretrained)
    if weights not in ("imagenet", "none"):
        load_weights(network, weights, name, removed)
    return network


def _torchvision_model(name: str, pretrained: bool) -> tuple[nn.Module, list[str]]:
    """The model without its head, and the names of the modules that were removed."""
    from torchvision import models  # 0.6 s, needed by natural images alone

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
            raise UserError(f"{file} is no file of the weights of {name}: delete it") from error
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
            f"backbone 'timm:{name}' needs the package timm: pip install 'domainbed[timm]'"
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
        raise UserError(_no_timm_weights(name, config, error)) from error
    heads = config.classifier or ()
    return network, [heads] if isinstance(heads, str) else list(heads)


def _no_timm_weights(name: str, config: Any, error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    reason = one_line(error).rstrip(".")
    remedy = (
        f"fill the cache {HF_HUB_CACHE} with `hf download {config.hf_hub_id}`, or "
        if config.hf_hub_id
        else ""
    )
    return (
        f"the published weights of 'timm:{name}' cannot be had ({reason}): {remedy}set the "
        "hyper-parameter 'weights' to the path of a state dict or to 'none'"
    )


def _unknown(name: str, known: Sequence[str], listing: str, prefix: str = "") -> str:
    hint = did_you_mean(name, [prefix + each for each in known])
    return f"unknown backbone {name!r}.{hint} All {len(known)} are listed by: {listing}"
