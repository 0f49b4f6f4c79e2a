"""Models of open_clip: an image encoder, and a text encoder whose vectors are comparable."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.errors import UserError, did_you_mean, one_line

PREFIX = "open_clip:"
_LIST = 'python -c "import open_clip; print(open_clip.list_pretrained())"'


def image_encoder(name: str, weights: str) -> nn.Module:
    """From images (B, 3, size, size) to vectors (B, d), not normalised.

    Args:
        name: `open_clip:MODEL` or `open_clip:MODEL.TAG`, where the tag names published weights;
            without it they are OpenAI's, or else the first that open_clip lists. It also decides
            the activation, for weights from a file too.
        weights: "imagenet" for the published ones, "none", or a file of the whole model's.

    Raises:
        UserError: no such model, or its weights are not available or do not fit.
    """
    return _model(name, weights).visual


@torch.no_grad()
def text_classifier(
    name: str, weights: str, classes: Sequence[str], templates: Sequence[str]
) -> tuple[torch.Tensor, float]:
    """What zero-shot classification compares images with.

    Of each class the text vectors of all templates, each of length 1, are averaged, and the mean is
    brought to length 1 (Radford et al. 2021, section 3.1.4).

    Args:
        name: see `image_encoder`.
        weights: likewise.
        classes: names, which take the place of `{}` in each template.
        templates: at least one.

    Returns:
        (C, d) vectors, and the factor of their products with image vectors of length 1.

    Raises:
        UserError: see `image_encoder`; or the model's tokenizer is not available.
    """
    model, rows = _model(name, weights).eval(), []
    open_clip, architecture, _ = _named(name)
    with _quiet():
        try:
            tokenize = open_clip.get_tokenizer(architecture)
        except Exception as error:  # of a package that is missing, or of the network
            said = f"the tokenizer of {name!r} is not available ({one_line(error)})"
            raise UserError(said) from error
        for each in classes:
            vectors = model.encode_text(tokenize([t.replace("{}", each) for t in templates]))
            rows.append(F.normalize(F.normalize(vectors, dim=-1).mean(dim=0), dim=0))
    return torch.stack(rows), float(model.logit_scale.exp())


def preprocess_config(name: str) -> Mapping[str, Any]:
    """`size`, `mean`, `std`, `interpolation` and `resize_mode` of the weights that a name means.

    Raises:
        UserError: no such model.
    """
    open_clip, model, published = _named(name)
    config = open_clip.get_model_config(model)
    usual = vars(open_clip.transform.PreprocessCfg())
    return {**usual, **published, "size": config["vision_cfg"]["image_size"]}


def _named(name: str) -> tuple[Any, str, Mapping[str, Any]]:
    """The package, the model, and what is known of its published weights; empty without any."""
    open_clip = _package(name)
    model, _, tag = name.removeprefix(PREFIX).partition(".")
    known = open_clip.list_models()
    if model not in known:
        hint = did_you_mean(name, [PREFIX + each for each in known])
        raise UserError(f"unknown backbone {name!r}.{hint} All are listed by: {_LIST}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise UserError(
            f"backbone {name!r}: {model} has no published weights {tag!r}."
            f"{did_you_mean(tag, tags)} Known: {', '.join(tags) or 'none'}"
        )
    usual = "openai" if "openai" in tags else next(iter(tags), "")
    return open_clip, model, open_clip.get_pretrained_cfg(model, tag or usual)


def _package(user: str) -> Any:
    try:
        import open_clip  # optional, and seconds to import
    except ImportError as error:
        raise UserError(
            f"{user!r} needs the package open_clip: pip install open_clip_torch"
        ) from error
    return open_clip


def _model(name: str, weights: str) -> Any:
    """Both encoders."""
    open_clip, model, published = _named(name)
    file = _published_file(name, published) if weights == "imagenet" else weights
    try:
        with _quiet():
            network = open_clip.create_model(
                model, force_quick_gelu=published.get("quick_gelu", False), pretrained_text=False
            )
    except Exception as error:  # of the packages that some models need besides
        raise UserError(f"backbone {name!r} cannot be made ({one_line(error)})") from error
    if weights != "none":
        try:
            with _quiet():
                open_clip.load_checkpoint(network, file, weights_only=True)
        except Exception as error:  # unpickling what is no state dict raises anything
            raise UserError(
                f"the weights {file!r} cannot be read or are not a state dict of {name!r} "
                f"({one_line(error)[:200]}): give a file of that whole model, text encoder included"
            ) from error
    return network


def _published_file(name: str, published: Mapping[str, Any]) -> str:
    """The file of published weights, downloaded once.

    Raises:
        UserError: there are none, or no network.
    """
    import open_clip
    from huggingface_hub.constants import HF_HUB_CACHE

    give = "give the file of a state dict as weights, or 'none'"
    if not published:
        raise UserError(f"open_clip knows no published weights of {name!r}: {give}")
    try:
        with _quiet():
            return open_clip.pretrained.download_pretrained(published)
    except Exception as error:  # of the network, in whatever way
        repository = os.path.dirname(published.get("hf_hub", ""))
        remedy = (
            f"fill the cache {HF_HUB_CACHE} with `hf download {repository}`, or {give}"
            if repository
            else f"get {published.get('url')}, and give that file as weights"
        )
        raise UserError(
            f"the published weights of {name!r} are not available ({one_line(error)}): {remedy}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the logs of open_clip and the hub, and leaves the root logger as it is.

    What they warn of is raised as an error here.
    """
    disabled, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


# Sets of templates: one, and OpenAI's seven and eighty for ImageNet, as open_clip has them.
PROMPTS = ("photo", "imagenet-7", "imagenet-80")


def prompt_templates(prompts: str) -> tuple[str, ...]:
    """The templates of a set, or of a file with one in each line.

    Raises:
        UserError: it is neither, or a line has no `{}` for the name of the class.
    """
    if prompts == "photo":
        return ("a photo of a {}.",)
    if prompts in PROMPTS:
        package, few = _package(prompts), prompts == "imagenet-7"
        of_set = package.SIMPLE_IMAGENET_TEMPLATES if few else package.OPENAI_IMAGENET_TEMPLATES
        return tuple(template("{}") for template in of_set)
    try:
        lines = Path(prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the prompts {prompts!r} are neither a readable file nor one of {', '.join(PROMPTS)}",
            *("hparams", "prompts"),
        ) from error
    templates = tuple(line.strip() for line in lines if line.strip())
    without = [line for line in templates if "{}" not in line]
    if without or not templates:
        raise UserError(
            f"the prompts {prompts!r} have {f'the line {without[0]!r}' if without else 'no line'}: "
            "expected one template in each line, with {} for the name of the class",
            *("hparams", "prompts"),
        )
    return templates
