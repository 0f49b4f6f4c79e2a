"""Models that read text: their features, and classifiers made of the names of classes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_folder
from PIL import Image
from torch.nn import functional as F

from domainbed.cli import main
from domainbed.config.run_fields import FeatureSource, RunOptions
from domainbed.datasets.features import FeatureExtractor, open_text_head
from domainbed.datasets.images.dataset_files import read_image
from domainbed.errors import UserError
from domainbed.networks import open_clip_models
from domainbed.networks.open_clip_models import prompt_templates
from domainbed.networks.pretrained import headless_model, preprocessing_of
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.training import build, load_model, run

open_clip = pytest.importorskip("open_clip")

CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {
        **{"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    },
}
CPU = RunOptions(device="cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def tiny(place: Path) -> Iterator[str]:
    """A model of open_clip that is small, and random weights of it in a file."""
    file = place / "tiny-clip.json"
    file.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(file)
    torch.manual_seed(3)
    network = open_clip.create_model("tiny-clip")
    for parameter in network.parameters():  # its own are near zero, and so are its differences
        parameter.data += 0.1 * torch.randn_like(parameter)
    torch.save(network.state_dict(), place / "tiny.pt")
    yield "open_clip:tiny-clip"
    del open_clip.factory._MODEL_CONFIGS["tiny-clip"]


@pytest.fixture
def source(tiny: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureSource:
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(place / "cache"))
    return FeatureSource(backbone=tiny, weights=str(place / "tiny.pt"))


@pytest.fixture(scope="module")
def images(place: Path) -> Path:
    return write_folder(place / "images", sizes=((40, 64), (50, 40)), per_class=6)


def model(place: Path) -> Any:
    network = open_clip.create_model("tiny-clip").eval()
    network.load_state_dict(torch.load(place / "tiny.pt"))
    return network


@torch.no_grad()
def zero_shot(place: Path, classes: list[str], templates: list[str]) -> torch.Tensor:
    """By loops: the classifier's rows, of length 1."""
    network, tokenize, rows = model(place), open_clip.get_tokenizer("tiny-clip"), []
    for name in classes:
        total = torch.zeros(12)
        for template in templates:
            vector = network.encode_text(tokenize([template.replace("{}", name)]))[0]
            total += vector / vector.norm()
        rows.append(total / total.norm())
    return torch.stack(rows)


def spec_of(images: Path, source: FeatureSource, algorithm: str, **changes: Any) -> RunSpec:
    values = {"features": source.model_dump(), "steps": 4, "checkpoint_freq": 2, **changes}
    return RunSpec.create(f"folder:{images}", algorithm, [0], **values)


# ---- the backbone ----


def test_features_are_those_of_open_clip(images, source, place):
    """With its own preprocessing, as it makes it for the model."""
    extractor, network = FeatureExtractor(source), model(place)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=32), is_train=False
    )
    file = sorted(images.glob("*/*/*.png"))[0]
    expected = transform(Image.open(file))
    found = extractor.image(read_image(file))
    assert (found - expected).abs().max() < 3 / 255 / 0.25  # three grey levels
    with torch.no_grad():
        vectors = network.encode_image(found[None])
    assert torch.allclose(extractor.features(found[None]), vectors, atol=1e-5)
    assert extractor.width == 12


def test_preprocessing_is_that_of_the_named_weights(tiny):
    usual = preprocessing_of("open_clip:ViT-B-16")
    assert (usual.size, usual.resized, usual.interpolation, usual.squash) == (
        *(224, 224, "bicubic", False),
    )
    assert usual.mean == preprocessing_of(tiny).mean == (0.48145466, 0.4578275, 0.40821073)
    siglip = preprocessing_of("open_clip:ViT-B-16-SigLIP-256.webli")
    assert (siglip.size, siglip.mean, siglip.squash) == (256, (0.5, 0.5, 0.5), True)


def test_the_named_weights_decide_the_activation(tiny, monkeypatch):
    """OpenAI's were trained with QuickGELU, which the names of models do not say."""
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {
        "openai": open_clip.get_pretrained_cfg("ViT-B-16", "openai"),
        "laion": open_clip.get_pretrained_cfg("ViT-B-16", "laion400m_e31"),
    })  # fmt: skip
    kinds = [str(headless_model(name, "none")) for name in (tiny, f"{tiny}.laion")]
    assert ["QuickGELU" in kind for kind in kinds] == [True, False]


def test_logging_stays_as_it_is(tiny):
    handlers, disabled = logging.root.handlers[:], logging.root.manager.disable
    headless_model(tiny, "none")
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("open_clip:ViT-B-17", "none", "unknown backbone 'open_clip:ViT-B-17'. Did you mean"),
        ("open_clip:ViT-B-16.openia", "none", "no published weights 'openia'. Did you mean"),
        ("open_clip:tiny-clip", "imagenet", "knows no published weights of 'open_clip:tiny-clip'"),
        ("open_clip:tiny-clip", "nowhere.pt", "'nowhere.pt' cannot be read"),
    ],
)
def test_what_cannot_be_loaded(name, weights, said, tiny):
    with pytest.raises(UserError, match=said) as error:
        headless_model(name, weights)
    assert "\n" not in str(error.value)


def test_weights_of_another_model(tiny, tmp_path):
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a state dict of 'open_clip:tiny-clip'") as error:
        headless_model(tiny, str(tmp_path / "other.pt"))
    assert len(str(error.value)) < 600


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(**_: Any) -> str:
        raise LocalEntryNotFoundError("Name or service not known")

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", offline)
    with pytest.raises(UserError) as error:
        headless_model("open_clip:ViT-B-16", "imagenet")
    said = str(error.value)
    assert "of 'open_clip:ViT-B-16' are not available (Failed to download" in said
    assert "Name or service not known" in said
    assert "`hf download timm/vit_base_patch16_clip_224.openai`" in said
    assert "give the file of a state dict as weights" in said


def test_published_weights_are_taken_from_the_cache(tiny, place, monkeypatch, tmp_path):
    """Without a network, and under either name that they have on the hub."""
    from huggingface_hub import constants

    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny-clip", {"own": {"hf_hub": "somebody/tiny/"}}
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--somebody--tiny" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1")
    shutil.copy(place / "tiny.pt", snapshot / "open_clip_pytorch_model.bin")
    state = headless_model(tiny, "imagenet").state_dict()
    for name, value in model(place).visual.state_dict().items():
        assert torch.equal(state[name], value)


def test_the_package_may_be_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install open_clip_torch"):
        headless_model("open_clip:ViT-B-16", "none")


# ---- text ----


@pytest.mark.parametrize("prompts", ["photo", "imagenet-7"])
def test_a_text_head_is_that_of_loops(prompts, source, place, tmp_path, monkeypatch):
    """And is computed once."""
    templates = list(prompt_templates(prompts))
    weight, scale = open_text_head(tmp_path, source, ["cat", "garden_gnome"], prompts)
    expected = zero_shot(place, ["cat", "garden gnome"], templates)
    assert torch.allclose(weight, expected, atol=1e-5)
    assert scale == pytest.approx(model(place).logit_scale.exp().item())
    monkeypatch.setattr(open_clip_models, "_model", None)
    again, _ = open_text_head(tmp_path, source, ["cat", "garden_gnome"], prompts)
    assert torch.equal(again, weight)


def test_prompts(tmp_path):
    assert prompt_templates("photo") == ("a photo of a {}.",)
    assert len(prompt_templates("imagenet-80")) == 80
    assert "itap of a {}." in prompt_templates("imagenet-7")
    file = tmp_path / "prompts.txt"
    file.write_text("a {}.\n\n the {} in art\n")
    assert prompt_templates(str(file)) == ("a {}.", "the {} in art")
    for text, said in [("a dog\n", "have the line 'a dog'"), ("\n", "have no line")]:
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            prompt_templates(str(file))
    with pytest.raises(UserError, match="neither a readable file nor one of photo"):
        prompt_templates("imagenet-8")


def test_zero_shot_is_a_row_of_the_tables(images, source, place, tmp_path, capsys):
    """From the command; and what is measured is what loops over images predict."""
    words = ["model", "zero-shot", f"folder:{images}", "--backbone", source.backbone, "--weights"]
    words += [source.weights, "--output_dir", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    assert "ZeroShot" in said
    assert "features of open_clip:tiny-clip" in said
    found = [json.loads(f.read_text()) for f in tmp_path.glob("*/results.jsonl")]
    assert sorted(record["args"]["test_envs"] for record in found) == [[0], [1], [2]]

    spec = spec_of(images, source, "ZeroShot")
    experiment, rows = build(spec, CPU), zero_shot(place, ["cat", "dog"], ["a photo of a {}."])
    inside = experiment.splits[1].inside
    x, y = experiment.domains[1].x[inside, 0], experiment.domains[1].labels[inside]
    accuracy = ((F.normalize(x, dim=1) @ rows.T).argmax(1) == y).float().mean().item()
    for record in found:
        if record["args"]["test_envs"] == [1] and record["args"]["trial_seed"] == 0:
            assert record["env1_in_acc"] == pytest.approx(accuracy)


def test_zero_shot_needs_text(images):
    with pytest.raises(UserError, match="ZeroShot needs features of a backbone that reads text"):
        RunSpec.create(f"folder:{images}", "ZeroShot", [0], features="squeezenet1_1")
    with pytest.raises(UserError, match="initial_weights is 'text', which needs features of a"):
        RunSpec.create(f"folder:{images}", "ERM", [0], initial_weights="text")
    fields = {
        **{"datasets": [f"folder:{images}"], "algorithms": ["ERM", "ZeroShot"], "trials": 1},
        **{"hparams_seeds": 1, "selection": ["training-domain"]},
    }
    (told,) = {
        e["algorithm"] for e in load_config(None, fields | {"features": "resnet18"}).left_out
    }
    assert told == "ZeroShot"


def test_the_command_wants_a_model_that_reads_text(images, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["model", "zero-shot", f"folder:{images}", "--backbone", "resnet18"])
    assert exit_.value.code == 2
    assert "--backbone 'resnet18' reads no text" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", ["ERM", "CORAL", "ERMPlusPlus"])
def test_training_from_the_text_head(algorithm, images, source, place, tmp_path):
    """With WiSE-FT beside it: α of 0 is zero-shot, and 0.3 is between it and what was trained."""
    hparams = {"lr": 0.1, **({"linear_steps": 1} if algorithm == "ERMPlusPlus" else {})}
    accuracies = {}
    for alpha in (0.0, 0.3):
        folder = tmp_path / str(alpha)
        fields = {"initial_weights": "text", "averages": ("wise",), "wise_alpha": alpha}
        spec = spec_of(images, source, algorithm, hparams=hparams, **fields)
        run(spec, folder, CPU)
        last = load_model(folder, "cpu").module.predicting_parts()[1]
        mixed = load_model(folder, "cpu", "wise").module.predicting_parts()[1]
        scale = model(place).logit_scale.exp().item()
        first = scale * zero_shot(place, ["cat", "dog"], ["a photo of a {}."])
        assert not torch.allclose(last.weight, first, atol=0.05)
        expected = (1 - alpha) * first + alpha * last.weight
        assert torch.allclose(mixed.weight, expected, atol=1e-4)
        assert torch.allclose(mixed.bias, alpha * last.bias, atol=1e-6)
        record = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
        accuracies[alpha] = record["wise_env0_in_acc"]
    run(spec_of(images, source, "ZeroShot"), tmp_path / "zero", CPU)
    zero = json.loads((tmp_path / "zero" / "results.jsonl").read_text())
    assert accuracies[0.0] == zero["env0_in_acc"]


def test_the_text_head_stands_on_features_of_length_1(images, source):
    spec = spec_of(images, source, "ERM", initial_weights="text")
    assert spec.hparams["featurizer"] == "UnitFeatures"
    with pytest.raises(UserError, match="'featurizer' is 'Projection', but initial_weights is"):
        spec_of(images, source, "ERM", initial_weights="text", hparams={"featurizer": "Projection"})


def test_a_run_from_the_text_head_resumes_exactly(images, source, tmp_path):
    """WiSE-FT's first weights, too."""
    fields = {"initial_weights": "text", "averages": ("wise",), "hparams": {"lr": 0.1}}
    spec = spec_of(images, source, "ERM", **fields)
    run(spec, tmp_path / "whole", CPU)

    def kill(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "cut", CPU, on_step=kill)
    run(spec, tmp_path / "cut", CPU)
    for average in (None, "wise"):
        one, other = (load_model(tmp_path / n, "cpu", average).module for n in ("whole", "cut"))
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
