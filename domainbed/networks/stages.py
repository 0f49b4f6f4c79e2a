"""Where a network can be looked into: the outputs of its stem and of its stages."""

from typing import Any

from torch import nn

_LAYERS = tuple(f"network.layer{n}" for n in range(1, 5))
_FEATURE_MAPS = (
    ("bn0", "bn1", "bn2", "bn3"),  # MNIST_CNN
    ("network.conv1", "network.maxpool", *_LAYERS),  # ResNets of torchvision and timm
    ("network.conv1", "network.avgpool", *_LAYERS),  # CLIP's, which have no maxpool
    ("network.stem", *(f"network.trunk_output.block{n}" for n in range(1, 5))),  # RegNets, likewise
    ("network.stem", "network.s1", "network.s2", "network.s3", "network.s4"),
)
_TRANSFORMERS = (
    ("network.patch_embed", "network.blocks"),  # timm
    ("network.conv1", "network.transformer.resblocks"),  # CLIP's
    ("network.conv_proj", "network.encoder.layers"),  # torchvision
)


def feature_maps(featurizer: nn.Module) -> dict[str, nn.Module]:
    """By name the stem and the stages of a convolutional network, whose outputs are (B, C, H, W).

    Of a ResNet also its first convolution, before batch norm. Empty for a network of another kind.
    """
    # Also of a network that a method adds layers to.
    known = {name.removeprefix("0."): module for name, module in featurizer.named_modules()}
    for names in _FEATURE_MAPS:
        if all(name in known for name in names):
            return {name: known[name] for name in names}
    return {}


def stages(featurizer: nn.Module) -> list[nn.Module]:
    """The stem and the four stages of a convolutional network.

    Of a ViT the embedding of patches and the last block of each quarter (2, 5, 8 and 11 of twelve),
    whose outputs are tokens (…, C). Of any other network the featurizer itself, (B, d).
    """
    if maps := feature_maps(featurizer):
        return list(maps.values())[-5:]
    known: dict[str, Any] = dict(featurizer.named_modules())
    for stem, blocks in _TRANSFORMERS:
        if stem in known and blocks in known:
            quarter = max(1, len(known[blocks]) // 4)
            return [known[stem], *known[blocks][quarter - 1 :: quarter]]
    return [featurizer]
