"""Winograd's method predicts what other convolutions do, and has no part in training."""

import pytest
import torch

from domainbed.networks import MNIST_CNN

CALLED = "_nnpack_spatial_convolution"


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = MNIST_CNN((2, 28, 28))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def calls(monkeypatch):
    """What goes to NNPACK."""
    found, of_torch = [], getattr(torch, CALLED)

    def counted(x, *others):
        found.append(tuple(x.shape))
        return of_torch(x, *others)

    monkeypatch.setattr(torch, CALLED, counted)
    return found


@pytest.mark.parametrize("size", [(64, 28), (1, 28), (3, 23)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_predictions_are_the_same_up_to_rounding(network, calls, size, layout):
    batch, side = size
    x = torch.rand(batch, 2, side, side).contiguous(memory_format=layout)
    network.to(memory_format=layout)
    expected = network.double()(x.double())
    with torch.no_grad():
        predicted = network.float().eval()(x)
    assert calls == [(batch, 128, (side + 1) // 2, (side + 1) // 2)] * 2
    torch.testing.assert_close(predicted, expected.float(), rtol=1e-4, atol=1e-5)


def test_an_image_s_prediction_does_not_depend_on_the_others(network):
    x = torch.rand(64, 2, 28, 28)
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(x)[5:9], network(x[5:9]))


def test_training_goes_through_pytorch_s_own(network, calls):
    x = torch.rand(4, 2, 28, 28)
    network(x)
    network.eval()
    network(x).sum().backward()
    with torch.no_grad():
        network.train()(x)
        with torch.autocast("cpu", torch.bfloat16):
            network.eval()(x)
        network.double()(x.double())
        network.float()(x[:, :, :22, :22])
    assert calls == []
