"""Featurizers and heads of small inputs: shapes, names, order of initialisation."""

from __future__ import annotations

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


@pytest.mark.parametrize("shape", [(3, 30, 30), (3, 28, 40), (2, 3, 4, 5), ()])
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


def test_featurizer_is_the_class_of_all_featurizers():
    for network in (networks.Featurizer((2, 8, 8), {}), networks.Featurizer((7,), MLP)):
        assert isinstance(network, networks.Featurizer)
    assert issubclass(networks.Backbone, networks.Featurizer)
    assert isinstance(networks.MNIST_CNN((2, 8, 8)), networks.MNIST_CNN)


def test_the_chosen_network_is_initialised_once(monkeypatch):
    built = []

    class Counted(networks.Featurizer):
        n_outputs = 4

        def __init__(self, input_shape, hparams):
            super().__init__()
            built.append(input_shape)

    monkeypatch.setitem(networks.NETWORKS._entries, "Counted", Counted)
    network = networks.Featurizer((7,), {"featurizer": "Counted"})
    assert type(network) is Counted
    assert built == [(7,)]


def test_a_plain_module_may_be_registered(monkeypatch):
    class Plain(nn.Linear):
        def __init__(self, input_shape, hparams):
            super().__init__(input_shape[0], 4)
            self.n_outputs = 4

    monkeypatch.setitem(networks.NETWORKS._entries, "Plain", Plain)
    hparams = default_hparams("ERM", "ColoredMNIST") | {"featurizer": "Plain"}
    assert ERM((7,), 3, 2, hparams).predict(torch.rand(2, 7)).shape == (2, 3)
