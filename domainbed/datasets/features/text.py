"""Zero-shot classifiers of features, made of text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from domainbed.config.run_fields import FeatureSource
from domainbed.core.files import locked, written_aside
from domainbed.errors import UserError
from domainbed.networks.open_clip_models import PREFIX, prompt_templates, text_classifier
from domainbed.networks.pretrained import load_plain


def reads_text(source: FeatureSource) -> bool:
    """Whether the backbone has a text encoder beside that of images."""
    return source.backbone.startswith(PREFIX)


@dataclass(frozen=True)
class TextHead:
    """A classifier of features that have length 1.

    Attributes:
        weight: (C, d), of length 1.
        scale: the factor of the products.
    """

    weight: torch.Tensor
    scale: float


def open_text_head(
    folder: Path, source: FeatureSource, class_names: Sequence[str], prompts: str
) -> TextHead:
    """The classifier of some classes, computed unless it already lies beside the features.

    Args:
        folder: of the images' features.
        source: what computed them; see `reads_text`.
        class_names: underscores in them are read as spaces.
        prompts: see `prompt_templates`.

    Raises:
        UserError: the backbone has no text encoder, its weights are not available, or there
            are no such prompts.
    """
    if not reads_text(source):
        raise UserError(
            f"the backbone {source.backbone!r} reads no text: name one of open_clip "
            "('open_clip:ViT-B-16')",
            "features",
        )
    classes = [name.replace("_", " ") for name in class_names]
    templates = prompt_templates(prompts)
    key = hashlib.md5(json.dumps([classes, templates]).encode()).hexdigest()[:12]
    file = folder / f"text-{key}.pt"
    with locked(file.with_suffix(".lock"), lambda: None):
        if not file.exists():
            weight, scale = text_classifier(source.backbone, source.weights, classes, templates)
            with written_aside(file) as aside:
                kept = {"classes": classes, "templates": list(templates)}
                torch.save({**kept, "weight": weight, "scale": scale}, aside)
    found = load_plain(file)
    return TextHead(found["weight"], found["scale"])
