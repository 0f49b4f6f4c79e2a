"""What holds for every registered network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from domainbed import networks
from domainbed.networks import NETWORKS

SHAPES: dict[str, Any] = {
    **{"MLP": (6,), "Projection": (6,), "UnitFeatures": (6,), "MNIST_CNN": (2, 10, 10)},
    **{"Backbone": (3, 32, 32), "SequenceCNN": (9, 2)},
    "Transformer": {"vocabulary": 7, "length": 5},
}
HPARAMS = {
    **{"sequence_width": 8, "sequence_depth": 2, "sequence_dropout": 0.0},
    **{"head_depth": 1, "head_width": 5, "head_dropout": 0.0, "mlp_dropout": 0.0},
    **{"resnet18": True, "resnet_dropout": 0.0, "weights": "none"},
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_network_maps_each_sample_to_features(name: str) -> None:
    shape = SHAPES[name]
    hparams = HPARAMS | {"featurizer": name}
    if shape != (3, 32, 32):
        del hparams["weights"]
    torch.manual_seed(0)
    network = networks.Featurizer(shape, hparams)
    x = torch.randint(7, (4, 5)) if name == "Transformer" else torch.rand(4, *shape)
    z = network.eval()(x)
    assert z.shape == (4, network.n_outputs)
    assert (z.dtype, z.isfinite().all().item()) == (torch.float32, True)
    torch.testing.assert_close(network(x[1:3]), z[1:3], rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    twin = networks.Featurizer(shape, hparams).eval()
    assert torch.equal(twin(x), z)
    assert getattr(NETWORKS[name], "options", {}) == {}


def test_every_network_is_tested_and_nothing_else_is_registered() -> None:
    own = [name for name, each in NETWORKS.items() if each.__module__.startswith("domainbed.")]
    assert sorted(own) == sorted(SHAPES)
    with pytest.raises(ValueError, match="'text' is no network: register a class or a function"):
        NETWORKS.register("text", name="text")
