"""What a published model expects of its images: size, crop, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from domainbed.errors import UserError
from domainbed.networks import open_clip_models, pretrained

Interpolation = Literal["bilinear", "bicubic"]


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
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False


def preprocessing_of(name: str) -> Preprocessing:
    """That of the weights which `headless_model(name, "imagenet")` loads.

    Raises:
        UserError: the model has none, or one that is not offered here.
    """
    if name == pretrained.PACKAGED:
        usual = _of_timm(pretrained.TIMM_OF_PACKAGED, name)
        return replace(usual, mean=pretrained.PACKAGED_MEAN, std=pretrained.PACKAGED_STD)
    if name.startswith("timm:"):
        return _of_timm(name.removeprefix("timm:"), name)
    if name.startswith(open_clip_models.PREFIX):
        return _of_open_clip(name)
    return _of_torchvision(name)


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
        _interpolation(found["interpolation"], name),
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
        _interpolation(found["interpolation"], name),
        tuple(found["mean"]),
        tuple(found["std"]),
        found["resize_mode"] == "squash",
    )


def _of_torchvision(name: str) -> Preprocessing:
    from torchvision import models

    found = pretrained.published_weights(models.get_model_weights(name)).transforms()
    return Preprocessing(
        found.crop_size[0],
        found.resize_size[0],
        _interpolation(found.interpolation.value, name),
        tuple(found.mean),
        tuple(found.std),
    )


def _interpolation(found: str, name: str) -> Interpolation:
    known: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic"}
    if found not in known:
        raise UserError(
            f"backbone {name!r} resizes images by {found!r}: choose one that does by bilinear or "
            "bicubic interpolation"
        )
    return known[found]
