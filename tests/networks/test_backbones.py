"""Backbones: the features of their source, frozen batch norm, channels, names and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from domainbed import networks
from domainbed.algorithms import ERM
from domainbed.errors import UserError
from domainbed.hparams import default_hparams, options
from domainbed.networks import pretrained

RESNET = {"resnet18": True, "resnet_dropout": 0.0, "weights": "none"}
SCRATCH = {"resnet18": False, "resnet_dropout": 0.0, "weights": "none"}

# One model per family: the last layer, and an image size that it takes.
FAMILIES = {
    "alexnet": ("classifier.6", 64),
    "convnext_tiny": ("classifier.2", 32),
    "densenet121": ("classifier", 32),
    "efficientnet_b0": ("classifier.1", 32),
    "googlenet": ("fc", 32),
    "inception_v3": ("fc", 75),
    "maxvit_t": ("classifier.5", 224),
    "mnasnet0_5": ("classifier.1", 32),
    "mobilenet_v3_small": ("classifier.3", 32),
    "regnet_y_400mf": ("fc", 32),
    "resnet18": ("fc", 40),
    "shufflenet_v2_x0_5": ("fc", 32),
    "squeezenet1_1": ("classifier.1", 32),
    "swin_t": ("head", 32),
    "vgg11": ("classifier.6", 32),
    "vit_b_16": ("heads.head", 224),
}
LARGE = ("maxvit_t", "vgg11")


def backbone(name: str, shape=(3, 32, 32), **changes) -> networks.Backbone:
    return networks.Backbone(shape, {**SCRATCH, "backbone": name, **changes})


def norms(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def family(name: str):
    return pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())


@pytest.mark.parametrize("name", [family(name) for name in FAMILIES])
def test_features_are_those_of_torchvision(name):
    last, side = FAMILIES[name]
    network = backbone(name, (3, side, side)).eval()
    reference = models.get_model(name, **_without_warning(name)).eval()
    width, parent, child = _last_layer(reference, last)
    setattr(parent, child, nn.Identity())
    _, unexpected = reference.load_state_dict(network.network.state_dict(), strict=False)
    assert unexpected == []
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network(x)
        torch.testing.assert_close(features, reference(x))
    assert features.shape == (2, width)
    assert features.std() > 0
    assert network.n_outputs == width


def _last_layer(network, name):
    parent, _, child = name.rpartition(".")
    layer = network.get_submodule(name)
    assert layer.weight.shape[0] == 1000
    return layer.weight.shape[1], network.get_submodule(parent), child


def _without_warning(name):
    told = {"init_weights": False, "transform_input": True}
    return told if name in ("googlenet", "inception_v3") else {}


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(models))
def test_every_torchvision_model(name, monkeypatch):
    """Its last layer is the one of 1000 classes, and one image becomes that layer's inputs."""
    shapes = []
    remove = pretrained._remove_last_layer

    def spy(network):
        shapes.append(next(p.shape for p in network.parameters() if p.shape[0] == 1000))
        return remove(network)

    monkeypatch.setattr(pretrained, "_remove_last_layer", spy)
    for initialise in ("trunc_normal_", "normal_", "kaiming_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, initialise, lambda tensor, *a, **k: tensor.data.fill_(1e-3))
    network = backbone(name, (3, 224, 224))
    assert network.n_outputs == shapes[0][1]
    assert not [p for p in network.parameters() if p.shape[0] == 1000]


def test_resnet_names_and_widths():
    network = networks.Featurizer((3, 64, 64), SCRATCH)
    assert network.n_outputs == 2048
    names = set(network.state_dict())
    assert {"network.conv1.weight", "network.layer4.2.bn3.running_var"} <= names
    assert not any("fc" in name for name in names)
    assert networks.Featurizer((3, 64, 64), RESNET).n_outputs == 512
    assert networks.ResNet is networks.Backbone


def test_building_draws_what_torchvision_draws():
    """The try on a blank image neither draws nor moves the running statistics."""
    torch.manual_seed(3)
    network = backbone("resnet18", freeze_bn=False)
    after = torch.rand(1)
    torch.manual_seed(3)
    reference = models.resnet18(weights=None)
    assert torch.equal(torch.rand(1), after)
    for name, value in network.network.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name])
    assert all(m.training for m in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_batch_norm_stays_frozen(name):
    network = backbone(name)
    before = [m.running_mean.clone() for m in norms(network)]
    wrapped = nn.Sequential(network).train()
    wrapped(torch.rand(2, 3, 32, 32)).sum().backward()
    assert len(before) == {"resnet18": 20, "mobilenet_v3_small": 34}[name]
    assert not any(m.training for m in norms(network))
    assert all(torch.equal(m.running_mean, old) for m, old in zip(norms(network), before))
    assert network.dropout.training
    assert norms(network)[0].weight.grad is not None


def test_batch_norm_trains_where_wanted():
    network = backbone("resnet18", freeze_bn=False)
    network(torch.rand(2, 3, 32, 32))
    assert all(m.training for m in norms(network))
    assert all(m.num_batches_tracked == 1 for m in norms(network))
    assert not any(m.training for m in norms(network.eval()))


def test_batch_norm_of_every_kind_is_frozen():
    network = backbone("resnet18")
    kinds = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)])
    network.network.more = kinds
    network.train()
    assert kinds.training
    assert [m.training for m in kinds] == [False] * 3


def test_dropout_on_the_features():
    network = backbone("resnet18", (3, 64, 64), resnet_dropout=0.5)
    x = torch.rand(1, 3, 64, 64)
    plain = network.network(x).detach()
    dropped = network(x).detach()
    zeros = (dropped == 0).float().mean().item()
    assert 0.4 < zeros < 0.9  # half, and those that ReLU has put to zero
    assert torch.allclose(dropped[dropped != 0], 2 * plain[dropped != 0])
    torch.testing.assert_close(network.eval()(x), network.network(x))


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small"])
def test_dropout_of_the_head_is_off(name):
    """Without stochastic depth, two passes in training mode agree; dropout of 0.5 would show."""
    network = backbone(name, (3, 64, 64)).train()
    assert [m.p for m in network.network.modules() if isinstance(m, nn.Dropout)]
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_repeat_the_weights(channels, tmp_path):
    source = models.resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    weights = str(tmp_path / "weights.pt")
    network = backbone("resnet18", (channels, 64, 64), weights=weights)
    weight = network.network.conv1.weight
    assert weight.shape == (64, channels, 7, 7)
    assert weight.requires_grad
    for channel in range(channels):
        assert torch.equal(weight[:, channel], source.conv1.weight[:, channel % 3])
    assert network(torch.rand(1, channels, 64, 64)).shape == (1, 512)


@pytest.mark.parametrize(
    ("name", "first", "side"),
    [
        pytest.param("vit_b_16", "conv_proj", 224, marks=pytest.mark.slow),
        ("googlenet", "conv1.conv", 32),
    ],
)
def test_other_channels_of_other_models(name, first, side):
    network = backbone(name, (2, side, side))
    assert network.network.get_submodule(first).weight.shape[1] == 2
    assert network.eval()(torch.rand(1, 2, side, side)).shape == (1, network.n_outputs)


def test_small_images_use_the_backbone_that_is_named():
    hparams = default_hparams("ERM", "RotatedMNIST") | {"weights": "none"}
    assert isinstance(networks.Featurizer((1, 28, 28), hparams), networks.MNIST_CNN)
    hparams["backbone"] = "shufflenet_v2_x0_5"
    algorithm = ERM((1, 28, 28), 10, 2, hparams)
    assert algorithm.featurizer.n_outputs == 1024
    batches = [(torch.rand(3, 1, 28, 28), torch.tensor([0, 1, 2]))] * 2
    before = algorithm.featurizer.network.conv1[0].weight.clone()
    algorithm.train().update(batches)
    assert not torch.equal(algorithm.featurizer.network.conv1[0].weight, before)


@pytest.mark.parametrize(("name", "side"), [("vit_b_16", 28), ("alexnet", 28)])
def test_a_size_that_a_model_cannot_take(name, side, recwarn):
    with pytest.raises(UserError, match=f"'{name}' cannot take images of 3×{side}×{side} \\(.+\\)"):
        networks.Featurizer((3, side, side), {**SCRATCH, "backbone": name})
    assert list(recwarn) == []


@pytest.mark.parametrize(
    ("name", "hint"), [("resnet19", " Did you mean 'resnet1"), ("ViT_b_16", " Did you mean 'vit_b")]
)
def test_unknown_names_get_the_nearest_and_no_long_list(name, hint):
    with pytest.raises(UserError, match=f"unknown backbone '{name}'.{hint}") as caught:
        backbone(name)
    assert len(str(caught.value)) < 250
    assert "models.list_models" in str(caught.value)


def test_two_choices_of_a_model():
    with pytest.raises(UserError, match=r"'backbone' \('vit_b_16'\) and 'resnet18' \(True\)"):
        networks.Backbone((3, 224, 224), {**RESNET, "backbone": "vit_b_16"})
    network = networks.Backbone((3, 64, 64), {**RESNET, "backbone": "resnet18"})
    assert network.n_outputs == 512


def test_vectors_have_no_backbone():
    with pytest.raises(UserError, match=r"takes images, but the inputs have the shape \(7,\)"):
        networks.Featurizer((7,), {**SCRATCH, "backbone": "resnet18"})


def test_every_model_has_published_weights():
    """`IMAGENET1K_V1` where there is one; else the default, of which there is always one."""
    chosen = {name: models.get_model_weights(name) for name in models.list_models(models)}
    without = [name for name, choices in chosen.items() if "IMAGENET1K_V1" not in dir(choices)]
    assert without == ["regnet_y_128gf", "vit_h_14"]
    assert all("DEFAULT" in choices.__members__ for choices in chosen.values())


def test_the_resnet_50_of_augmix(monkeypatch):
    """Where neither of the other choices of a model is made."""
    chosen = []

    def built(name, weights):
        chosen.append((name, weights))
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    monkeypatch.setattr("domainbed.networks.featurizer.headless_model", built)
    augmix = {**SCRATCH, "resnet50_augmix": True}
    networks.Backbone((3, 32, 32), augmix)
    networks.Backbone((3, 32, 32), {**augmix, "weights": "imagenet"})
    networks.Backbone((3, 32, 32), {**augmix, "resnet18": True})
    networks.Backbone((3, 32, 32), {**augmix, "backbone": "swin_t"})
    networks.Backbone((3, 32, 32), SCRATCH)
    names = ["timm:resnet50.ram_in1k"] * 2 + ["resnet18", "swin_t", "resnet50"]
    assert [name for name, _ in chosen] == names
    assert [weights for _, weights in chosen][:2] == ["none", "imagenet"]


def test_options_are_declared_where_they_are_read():
    expected = "featurizer backbone weights freeze_bn resnet50_augmix mlp_width mlp_depth"
    assert list(networks.NETWORK_OPTIONS) == [*expected.split(), "mlp_dropout"]
    assert options("ERM").items() >= networks.NETWORK_OPTIONS.items()
