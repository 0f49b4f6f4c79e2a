"""Featurizers and heads: shapes, names, order of initialisation, frozen batch norm."""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
from torch import nn

from domainbed import networks
from domainbed.algorithms import ERM
from domainbed.errors import UserError
from domainbed.hparams import default_hparams

RESNET = {"resnet18": True, "resnet_dropout": 0.0, "weights": "none"}
MLP = {"mlp_width": 5, "mlp_depth": 4, "mlp_dropout": 0.25}


@pytest.mark.parametrize("side", [8, 14, 28])
def test_mnist_cnn_equals_the_layers_by_hand(side):
    network = networks.Featurizer((2, side, side), {})
    x = torch.rand(3, 2, side, side)
    z = x
    for number, stride in enumerate((1, 2, 1, 1), start=1):
        conv = getattr(network, f"conv{number}")
        norm = getattr(network, f"bn{number - 1}")
        z = nn.functional.conv2d(z, conv.weight, conv.bias, stride, padding=1).clamp_min(0)
        z = nn.functional.group_norm(z, 8, norm.weight, norm.bias)
    assert network.n_outputs == 128
    torch.testing.assert_close(network(x), z.flatten(2).mean(2))


def test_mnist_cnn_parameters():
    shapes = {k: tuple(v.shape) for k, v in networks.MNIST_CNN((2, 28, 28)).state_dict().items()}
    convolutions = {f"conv{i}.weight": (128, 128, 3, 3) for i in (3, 4)}
    convolutions |= {"conv1.weight": (64, 2, 3, 3), "conv2.weight": (128, 64, 3, 3)}
    widths = {f"conv{i}.bias": (128,) for i in (2, 3, 4)} | {"conv1.bias": (64,)}
    norms = {f"bn{i}.{p}": (128,) for i in (1, 2, 3) for p in ("weight", "bias")}
    assert shapes == convolutions | widths | norms | {"bn0.weight": (64,), "bn0.bias": (64,)}


def test_classifiers():
    linear = networks.Classifier(8, 3)
    assert isinstance(linear, nn.Linear)
    assert linear.weight.shape == (3, 8)
    layers = list(networks.Classifier(8, 3, is_nonlinear=True))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(4, 8), (2, 4), (3, 2)]


def test_mlp_layout():
    network = networks.MLP(7, 3, MLP)
    linears = [network.input, *network.hiddens, network.output]
    assert [tuple(layer.weight.shape) for layer in linears] == [(5, 7), (5, 5), (5, 5), (3, 5)]
    assert network.n_outputs == 3
    assert network.dropout.p == 0.25
    network.eval()
    x = torch.randn(4, 7)
    z = x
    for layer in linears[:-1]:
        z = torch.relu(z @ layer.weight.T + layer.bias)
    expected = z @ network.output.weight.T + network.output.bias
    torch.testing.assert_close(network(x), expected)


def test_mlp_dropout_before_relu_scales_what_is_kept():
    """With p = 0.5 and an output that sums, every result is a sum of twice some activations."""
    network = networks.MLP(1, 1, {"mlp_width": 200, "mlp_depth": 2, "mlp_dropout": 0.5})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0)
        network.input.bias.fill_(1)
        network.output.weight.fill_(1)
    torch.manual_seed(0)
    kept = network(torch.zeros(1, 1)).item() / 2
    assert kept == round(kept)
    assert 70 < kept < 130
    assert network.eval()(torch.zeros(1, 1)).item() == 200


def test_vectors_go_through_an_mlp():
    network = networks.Featurizer((7,), MLP)
    assert isinstance(network, networks.MLP)
    assert network.n_outputs == 5
    assert network(torch.rand(2, 7)).shape == (2, 5)


@pytest.mark.parametrize("shape", [(3, 30, 30), (3, 28, 40), (3, 4), ()])
def test_no_network_for_a_shape(shape):
    with pytest.raises(UserError, match="no featurizer for inputs of shape"):
        networks.Featurizer(shape, RESNET)


def test_order_of_initialisation():
    """Featurizer, then classifier: the same seed gives the weights of building by hand."""
    hparams = default_hparams("ERM", "ColoredMNIST")
    torch.manual_seed(3)
    algorithm = ERM((2, 8, 8), 4, 2, hparams)
    torch.manual_seed(3)
    convolutions = [nn.Conv2d(a, b, 3) for a, b in ((2, 64), (64, 128), (128, 128), (128, 128))]
    linear = nn.Linear(128, 4)
    for number, convolution in enumerate(convolutions, start=1):
        own = getattr(algorithm.featurizer, f"conv{number}")
        assert torch.equal(own.weight, convolution.weight)
        assert torch.equal(own.bias, convolution.bias)
    assert torch.equal(algorithm.classifier.weight, linear.weight)
    assert algorithm.network[0] is algorithm.featurizer
    assert algorithm.network[1] is algorithm.classifier


def test_resnet18_features_are_those_of_torchvision():
    from torchvision import models

    network = networks.Featurizer((3, 224, 224), RESNET).eval()
    reference = models.resnet18(weights=None)
    reference.load_state_dict(network.network.state_dict(), strict=False)
    reference.fc = nn.Identity()
    x = torch.rand(2, 3, 40, 40)
    assert network.n_outputs == 512
    torch.testing.assert_close(network(x), reference.eval()(x))


def test_resnet50_width_and_names():
    network = networks.ResNet((3, 64, 64), {**RESNET, "resnet18": False})
    assert network.n_outputs == 2048
    names = set(network.state_dict())
    assert {"network.conv1.weight", "network.layer4.2.bn3.running_var"} <= names
    assert not any("fc" in name for name in names)


def test_batch_norm_stays_frozen():
    network = networks.ResNet((3, 64, 64), RESNET)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    wrapped = nn.Sequential(network).train()
    wrapped(torch.rand(2, 3, 64, 64)).sum().backward()
    assert len(norms) == 20
    assert not any(m.training for m in norms)
    assert all(torch.equal(m.running_mean, old) for m, old in zip(norms, before, strict=True))
    assert network.dropout.training
    assert norms[0].weight.grad is not None


def test_resnet_dropout():
    network = networks.ResNet((3, 64, 64), {**RESNET, "resnet_dropout": 0.5})
    assert network.dropout.p == 0.5
    x = torch.rand(1, 3, 64, 64)
    plain = network.network(x).detach()
    dropped = network(x).detach()
    zeros = (dropped == 0).float().mean().item()
    assert 0.4 < zeros < 0.9  # half, and those that ReLU has put to zero
    assert torch.allclose(dropped[dropped != 0], 2 * plain[dropped != 0])
    torch.testing.assert_close(network.eval()(x), network.network(x))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_repeat_the_weights(channels, tmp_path):
    from torchvision import models

    pretrained = models.resnet18(weights=None)
    torch.save(pretrained.state_dict(), tmp_path / "weights.pt")
    hparams = {**RESNET, "weights": str(tmp_path / "weights.pt")}
    network = networks.ResNet((channels, 64, 64), hparams)
    weight = network.network.conv1.weight
    assert weight.shape == (64, channels, 7, 7)
    for channel in range(channels):
        assert torch.equal(weight[:, channel], pretrained.conv1.weight[:, channel % 3])
    assert network(torch.rand(1, channels, 64, 64)).shape == (1, 512)


def test_weights_from_a_file(tmp_path):
    from torchvision import models

    pretrained = models.resnet18(weights=None)
    torch.save(pretrained.state_dict(), tmp_path / "weights.pt")
    network = networks.ResNet((3, 64, 64), {**RESNET, "weights": str(tmp_path / "weights.pt")})
    assert torch.equal(network.network.layer1[0].conv1.weight, pretrained.layer1[0].conv1.weight)
    with pytest.raises(UserError, match=r"'nowhere.pt' cannot be read"):
        networks.ResNet((3, 64, 64), {**RESNET, "weights": "nowhere.pt"})


def test_offline_error_names_the_place(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("offline")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    hparams = {"resnet18": True, "resnet_dropout": 0.0}
    place = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(UserError, match=f"put that file at {place}"):
        networks.ResNet((3, 224, 224), hparams)
