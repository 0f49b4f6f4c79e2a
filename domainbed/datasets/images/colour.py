"""Colour operations on images, with the arithmetic of PIL on whole numbers from 0 to 255.

All take x of shape (…, 3, H, W), float32 that holds whole numbers, and change it in place. A
factor is a number, or a tensor that broadcasts over (…, 1, 1, 1). Every result is a whole number
again, truncated or rounded where PIL does so. Two differences to PIL remain: the hue, by one of
PIL's 255 steps, in the rare pixel that lies on the border between two; and the contrast, by one
grey level, in the rare image whose mean luma does.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from domainbed.core.transfer import sent

Factor = float | torch.Tensor

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_RED, _GREEN, _BLUE = 19595 / 65536, 38470 / 65536, 7471 / 65536  # luma of ITU-R 601, in PIL


def grey(x: torch.Tensor) -> torch.Tensor:
    """(…, 1, H, W): the luma."""
    red, green, blue = x.split(1, dim=-3)
    luma = red * _RED
    return luma.add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE).add_(0.5).floor_()


def brightness_(x: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Away from black for a factor above 1, towards it below."""
    return x.mul_(factor).clamp_(0, 255).floor_()


def contrast_(x: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Away from, or towards, the image's mean luma."""
    red, green, blue = x.mean((-2, -1), keepdim=True).split(1, dim=-3)
    mean = (red * _RED + green * _GREEN + blue * _BLUE).add_(0.5).floor_()
    return _blend_(x, mean, factor)


def saturation_(x: torch.Tensor, factor: Factor) -> torch.Tensor:
    """Away from, or towards, each pixel's luma."""
    return _blend_(x, grey(x), factor)


def _blend_(x: torch.Tensor, other: torch.Tensor, factor: Factor) -> torch.Tensor:
    torch.lerp(other.expand_as(x), x, factor, out=x)
    return x.clamp_(0, 255).floor_()


def hue_(x: torch.Tensor, shift: Factor) -> torch.Tensor:
    """Turns the hue by `shift` of 256 steps, a whole number from 0 to 255.

    A colour is value V = max, chroma C = max − min and hue. With h ∈ [0, 6) the hue in sixths of
    the circle, (R, G, B) = V − C · (clamp(2 − |h − 3|), clamp(|h − 2| − 1), clamp(|h − 4| − 1)),
    clamped to [0, 1].
    """
    red, green, blue = x.split(1, dim=-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    hue = green + blue
    hue.sub_(red).sub_(least)
    # For G ≥ B the hue is 1 + (G + B − R − min) / C sixths; else it is 6 minus that.
    hue.div_(chroma.clamp(min=1)).sub_(2)
    hue.copysign_(green - blue)
    hue.mul_(-42.5).add_(127.5).floor_().add_(shift)  # whole steps of 256
    hue.sub_((hue * (1 / 256)).floor_(), alpha=256)
    # PIL keeps 255 steps of saturation: C = V · ⌊255 (max − min) / V⌋ / 255.
    chroma.div_(value.clamp(min=1)).mul_(255).floor_().mul_(value)
    above = torch.add(value, chroma, alpha=1 / 255)
    below = value.sub_(chroma, alpha=2 / 255)
    for channel, base, centre, sign in (
        (red, below, 127.5, 1),  # 3 sixths
        (green, above, 85, -1),
        (blue, above, 170, -1),
    ):
        distance = torch.sub(hue, centre, out=channel).abs_().clamp_(42.5, 85)  # 1 to 2 sixths
        torch.addcmul(base, distance, chroma, value=sign * 6 / 255**2, out=channel).round_()
    return x


def normalised(x: torch.Tensor) -> torch.Tensor:
    """From 0 … 255 to ImageNet's mean 0 and standard deviation 1, per channel; in place."""
    scale, offset = _scale_and_offset(x.device)
    return x.mul_(scale).add_(offset)


@lru_cache
def _scale_and_offset(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Each (3, 1, 1)."""
    mean, std = (sent(torch.tensor(v), device)[:, None, None] for v in (_MEAN, _STD))
    return 1 / (255 * std), -mean / std
