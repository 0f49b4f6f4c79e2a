"""Weights from files and from the network: what is accepted, and what each refusal says."""

from __future__ import annotations

import re
from urllib.error import URLError

import pytest
import torch
from torchvision import models

from domainbed import networks
from domainbed.errors import UserError

HPARAMS = {"resnet18": True, "resnet_dropout": 0.0}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(1)
    return models.resnet18(weights=None, num_classes=7).state_dict()


def load(tmp_path, content, **changes):
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    return networks.Backbone((3, 32, 32), {**HPARAMS, "weights": str(file), **changes})


def prefixed(state):
    return {f"module.{name}": value for name, value in state.items()}


def headless(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        headless,
        prefixed,
        lambda state: {"state_dict": prefixed(state), "epoch": 3},
        lambda state: {"model": headless(state)},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    ],
    ids=["plain", "headless", "module", "state_dict", "model", "old"],
)
def test_accepted_files(wrap, state, tmp_path):
    """All of them give the same network; the last layer, here of 7 classes, is left out."""
    network = load(tmp_path, wrap(state)).network
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])


def renamed(state):
    return {("first.weight" if k == "conv1.weight" else k): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed, "1 missing (first conv1.weight); 1 unexpected (first first.weight). Give a"),
        (
            lambda state: {**state, "bn1.bias": torch.zeros(3)},
            "1 of another shape (first bn1.bias, (3,) instead of (64,)). Give a file of that",
        ),
        (lambda state: {**prefixed(state), "x": torch.zeros(1)}, "100 missing (first conv1.weight"),
        (lambda state: [1, 2], "expected tensors by name, alone or under the key 'state_dict'"),
        (lambda state: {"state_dict": headless(state), "model": {}}, "expected tensors by name"),
        (lambda state: {"weights": state}, "expected tensors by name"),
        (lambda state: {}, "100 missing (first conv1.weight)"),
    ],
)
def test_refused_files(spoil, message, state, tmp_path):
    with pytest.raises(UserError, match=r"holds no state dict of resnet18: ") as caught:
        load(tmp_path, spoil(state))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model(state, tmp_path):
    with pytest.raises(UserError, match=r"no state dict of shufflenet_v2_x0_5: \d+ missing"):
        load(tmp_path, state, resnet18=False, backbone="shufflenet_v2_x0_5")


def test_auxiliary_heads_in_a_file_are_left_out(tmp_path):
    full = models.googlenet(weights=None, init_weights=False)
    network = load(tmp_path, full.state_dict(), resnet18=False, backbone="googlenet").network
    assert any(name.startswith("aux1.") for name in full.state_dict())
    assert torch.equal(network.conv1.conv.weight, full.conv1.conv.weight)


class Stranger:
    pass


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"'nowhere.pt' cannot be read"):
        networks.Backbone((3, 64, 64), {**HPARAMS, "weights": "nowhere.pt"})
    with pytest.raises(
        UserError, match=r"cannot be read \(it holds more than tensors, or is damaged\)"
    ) as caught:
        load(tmp_path, {"state_dict": Stranger()})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({}, "resnet18-f37072fd.pth"),
        ({"resnet18": False}, "resnet50-0676ba61.pth"),
        ({"resnet18": False, "backbone": "mobilenet_v2"}, "mobilenet_v2-b0353104.pth"),
    ],
)
def test_offline_error_names_the_place(changes, file, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("offline")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    place = re.escape(str(tmp_path / "checkpoints" / file))
    with pytest.raises(UserError, match=f"put that file at {place}"):
        networks.Backbone((3, 224, 224), {**HPARAMS, **changes})


def test_imagenet_weights_come_from_the_cache(state, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(2)
    published = models.resnet18(weights=None).state_dict()
    torch.save(published, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    network = networks.Backbone((3, 32, 32), HPARAMS).network
    assert torch.equal(network.layer1[0].conv1.weight, published["layer1.0.conv1.weight"])


def test_a_cached_file_with_code_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    torch.save({"conv1.weight": print}, file)
    with pytest.raises(UserError, match=f"{file} does not hold the weights of resnet18: delete it"):
        networks.Backbone((3, 32, 32), HPARAMS)
