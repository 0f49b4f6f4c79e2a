"""Backbones of timm, where it is installed; and what is said where it is not."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from domainbed import networks
from domainbed.errors import UserError

HPARAMS = {"resnet18": False, "resnet_dropout": 0.0, "weights": "none"}


def backbone(name, side=32, channels=3, **changes):
    return networks.Backbone((channels, side, side), {**HPARAMS, "backbone": name, **changes})


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "side", "width"),
    [
        ("resnet18", 32, 512),
        ("mobilenetv3_small_050", 32, 1024),
        ("vit_tiny_patch16_224", 224, 192),
        ("deit_tiny_distilled_patch16_224", 224, 192),
        ("convnext_atto", 32, 320),
    ],
)
def test_features_are_those_of_timm(name, side, width, timm):
    network = backbone(f"timm:{name}", side).eval()
    reference = timm.create_model(name, num_classes=0).eval()
    reference.load_state_dict(network.network.state_dict())
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(network(x), reference(x))
    assert network.n_outputs == width


def test_its_batch_norm_is_frozen(timm):
    network = backbone("timm:mobilenetv3_small_050")
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert "BatchNormAct2d" in {type(m).__name__ for m in norms}
    assert not any(m.training for m in network.train().network.modules() if m in norms)
    norms = [m for m in backbone("timm:resnet18", freeze_bn=False).modules() if "bn1" in str(m)]
    assert all(m.training for m in norms)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_other_channels(name, timm):
    side = 224 if name.endswith("224") else 32
    network = backbone(f"timm:{name}", side, channels=2)
    assert network(torch.rand(1, 2, side, side)).shape == (1, network.n_outputs)


def test_weights_with_and_without_the_last_layer(timm, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    full = timm.create_model("resnet18")
    torch.save(full.state_dict(), tmp_path / "full.pt")
    bare = {k: v for k, v in full.state_dict().items() if not k.startswith("fc.")}
    safetensors.save_file(bare, str(tmp_path / "bare.safetensors"))
    for file in ("full.pt", "bare.safetensors"):
        network = backbone("timm:resnet18", weights=str(tmp_path / file)).network
        for name, value in network.state_dict().items():
            assert torch.equal(value, full.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", r"unknown backbone 'timm:resnet81'. Did you mean 'timm:resnet"),
        ("timm:resnet18.nothing", r"Invalid pretrained tag \(nothing\).* resnet18.a1_in1k"),
    ],
)
def test_unknown_names(name, message, timm):
    with pytest.raises(UserError, match=message) as caught:
        backbone(name)
    assert len(str(caught.value)) < 300


def test_offline_error_names_the_cache(timm, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        f"'timm:resnet18' are not available .*{tmp_path} with `hf download timm/resnet18.a1_in1k`"
    )
    with pytest.raises(UserError, match=message) as caught:
        backbone("timm:resnet18", weights="imagenet")
    assert "\n" not in str(caught.value)


def test_a_model_without_published_weights(timm):
    with pytest.raises(UserError, match=r"No pretrained weights exist.*: set the hyper-parameter"):
        backbone("timm:mixer_s32_224", 224, weights="imagenet")


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the package timm: pip install timm"):
        backbone("timm:resnet18")
