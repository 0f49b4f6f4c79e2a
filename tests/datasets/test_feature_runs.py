"""Runs on frozen features: their protocol, their identity, and what each algorithm does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from image_files import write_folder

from domainbed import datasets
from domainbed.algorithms import ALGORITHMS
from domainbed.config.protocols import get_protocol
from domainbed.config.run_fields import FeatureSource, RunOptions
from domainbed.datasets import image_domains, listing
from domainbed.errors import UserError
from domainbed.hparams import default_hparams, random_hparams, search_space
from domainbed.networks import Featurizer
from domainbed.reporting import load_records
from domainbed.reporting.tables import mixtures, protocol_of
from domainbed.runs.predictions import read_predictions
from domainbed.runs.results_file import features_of
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.training import load_model, predictions, run
from domainbed.training.experiment import build

SMALL = {"backbone": "squeezenet1_1", "weights": "none", "views": 1}
TRAINED = [name for name in ALGORITHMS if not ALGORITHMS[name].needs_features]
ON_FEATURES = [name for name in TRAINED if not ALGORITHMS[name].needs_images]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains with eight images each, whose features are computed when first needed."""
    return write_folder(tmp_path_factory.mktemp("shared") / "images", sizes=((64, 64),))


@pytest.fixture
def folder(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINBED_CACHE_DIR", str(shared.parent / "cache"))
    return shared


def spec_of(folder: Path, algorithm: str = "ERM", **changes: Any) -> RunSpec:
    values = {"features": SMALL, "steps": 4, "checkpoint_freq": 2, **changes}
    return RunSpec.create(f"folder:{folder}", algorithm, [0], **values)


def test_features_imply_their_protocol(folder):
    spec = spec_of(folder)
    assert spec.protocol == "frozen-features"
    assert spec.hparams["featurizer"] == "Projection"
    assert "resnet18" not in spec.hparams
    assert RunSpec.create(f"folder:{folder}", "ERM", [0]).protocol == "default"
    named = RunSpec.create(f"folder:{folder}", "ERM", [0], protocol="frozen-features")
    assert named.features == FeatureSource()
    short = RunSpec.create(f"folder:{folder}", "ERM", [0], features="efficientnet_lite0")
    assert short.run_id == named.run_id


def test_a_worker_reads_features_and_looks_at_their_files_once(folder, tmp_path, monkeypatch):
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: calls.append(name) or function(*a, **k))

    counted(image_domains, "open_features")
    counted(image_domains, "content_digests")
    counted(listing, "content_digests")
    datasets._shared.clear()
    for trial in range(3):
        run(spec_of(folder, trial_seed=trial), tmp_path / str(trial), RunOptions(keep="none"))
    assert calls == ["content_digests", "open_features"]
    facts = [json.loads((tmp_path / n / "environment.json").read_text())["data"] for n in "02"]
    assert facts[0] == facts[1]


def test_what_features_are_made_of_is_part_of_the_run(folder, tmp_path):
    def run_id(**changes: Any) -> str:
        return spec_of(folder, features={**SMALL, **changes}).run_id

    file = tmp_path / "weights.pt"
    file.write_bytes(b"one")
    ids = [run_id(), run_id(views=0), run_id(precision="bf16"), run_id(weights=str(file))]
    file.rename(tmp_path / "moved.pt")
    assert run_id(weights=str(tmp_path / "moved.pt")) == ids[-1]
    (tmp_path / "moved.pt").write_bytes(b"two")
    ids.append(run_id(weights=str(tmp_path / "moved.pt")))
    assert len(set(ids)) == 5
    assert spec_of(folder).identity()["features"] == SMALL
    assert "features" not in RunSpec.create(f"folder:{folder}", "ERM", [0]).identity()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "default"}, "features is set under the protocol 'default': leave"),
        ({"protocol": "frozen-features", "features": None}, "features is not set under"),
        ({"hparams": {"resnet18": True}}, "unknown hyper-parameter 'resnet18' of ERM"),
        ({"hparams": {"backbone": "resnet50"}}, "unknown hyper-parameter 'backbone' of ERM"),
        ({"algorithm": "ARM"}, "ARM needs images, and does not work on features of them"),
    ],
)
def test_what_does_not_go_together(changes, said, folder):
    with pytest.raises(UserError, match=said):
        spec_of(folder, **changes)


def test_features_are_of_image_files():
    with pytest.raises(UserError, match="ColoredDigits has none: leave 'features' out"):
        RunSpec.create("ColoredDigits", "ERM", [0], features=SMALL)


def test_a_sweep_leaves_out_what_needs_images(folder, tmp_path):
    fields = {
        "datasets": [f"folder:{folder}"],
        "algorithms": ["ERM", "ARM", "CORAL"],
        "features": {"backbone": "squeezenet1_1"},
        "selection": ["training-domain"],
        "trials": 2,
        "hparams_seeds": 1,
    }
    config = load_config(None, fields)
    assert {entry["why"] for entry in config.left_out} == {
        "ARM needs images, and does not work on features of them"
    }
    runs = config.plan()
    assert len(runs) == 2 * 2 * 3
    assert {r.protocol for r in runs} == {"frozen-features"}
    file = tmp_path / "sweep.yaml"
    file.write_text(f"datasets: ['folder:{folder}']\nalgorithms: ERM\nfeatures: {{view: 1}}\n")
    with pytest.raises(UserError, match=r"sweep\.yaml, line 3.*Did you mean 'views'"):
        load_config(file)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_algorithm_takes_features(name, depth):
    """Three updates on vectors; on features as they are, methods may have nothing to align."""
    hparams = {
        **default_hparams(name, "PACS", features=True),
        **get_protocol("frozen-features").options,
        "head_depth": depth,
        "head_width": 16,
    }
    torch.manual_seed(0)
    if (name, depth) == ("SagNet", 0):
        with pytest.raises(UserError, match="nothing to train: set the hyper-parameter"):
            ALGORITHMS[name]((24,), 3, 3, hparams)
        return
    algorithm = ALGORITHMS[name]((24,), 3, 3, hparams)
    before = [p.detach().clone() for p in algorithm.parameters()]
    for _ in range(3):
        minibatches = [(torch.rand(8, 24), torch.randint(3, (8,))) for _ in range(3)]
        metrics = algorithm.update(minibatches)
        assert all(math.isfinite(value) for value in metrics.values())
    changed = [(old != new).any() for old, new in zip(before, algorithm.parameters())]
    assert any(changed)
    assert algorithm.eval().predict(torch.rand(8, 24)).shape == (8, 3)


def test_rates_are_those_of_what_begins_anew():
    """Wherever an Adam of the network has a rate, under whatever name."""
    for name, rate in [("ERM", "lr"), ("RDM", "rdm_lr"), ("EQRM", "eqrm_lr"),
                       ("ERMPlusPlus", "linear_lr"), ("DANN", "lr_g")]:  # fmt: skip
        space = search_space(name, "PACS", features=True)
        assert space[rate].default == 1e-3
        drawn = [random_hparams(name, "PACS", seed, features=True)[rate] for seed in range(50)]
        assert 10**-4.5 <= min(drawn) < 2e-4
        assert 1e-3 < max(drawn) < 10**-2.5


def test_a_projection_of_no_depth_is_its_input():
    hparams = {"featurizer": "Projection", "head_depth": 0, "head_width": 9, "head_dropout": 0.5}
    network = Featurizer((5,), hparams)
    x = torch.rand(4, 5)
    assert network.n_outputs == 5
    assert torch.equal(network.eval()(x), x)
    dropped = network.train()(x)
    assert set((dropped / x).round(decimals=3).unique().tolist()) == {0.0, 2.0}


def test_a_run_from_images_to_predictions(folder, tmp_path):
    spec = spec_of(folder)
    experiment = build(spec)
    assert experiment.dataset.input_shape == (512,)
    ((x, _), (x2, _)) = next(experiment.minibatches(range(1)))
    assert x.shape == x2.shape == (64, 512)
    run(spec, tmp_path / "run", RunOptions(device="cpu", save_predictions=True))
    records = load_records(tmp_path / "run")
    assert protocol_of(records.runs) == (
        "frozen-features (version 1), features of squeezenet1_1, weights none, 1 views"
    )
    assert len(records) == 3
    # A file of an image is predicted as what was stored of it.
    model = load_model(tmp_path / "run", "cpu")
    head, *rows = predictions(*_of_run(tmp_path / "run"), None, 0, "in")
    files = sorted((folder / "a").glob("*/*.png"))
    kept, _ = read_predictions(tmp_path / "run" / "predictions.parquet", domain=0)
    assert sorted(kept["image"]) == [file.as_posix() for file in files]
    assert head[:4] == ["position", "file", "label", "class"]
    for position, file, _, predicted, *probabilities in rows:
        assert file == str(files[position])
        x = model.preprocess(files[position])[None]
        found = model.probabilities(x)[0]
        assert model.classes[int(found.argmax())] == predicted
        assert found.tolist() == pytest.approx(probabilities, abs=2e-3)


def _of_run(folder: Path) -> tuple[Any, RunOptions]:
    from domainbed.runs.folder import RunFolder

    return RunFolder(folder), RunOptions(device="cpu")


def test_a_killed_run_goes_on_with_the_same_views(folder, tmp_path):
    spec = spec_of(folder, record_last_step=True, steps=6)
    run(spec, tmp_path / "whole")

    def kill(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "cut", on_step=kill)
    run(spec, tmp_path / "cut")
    lines = [(tmp_path / name / "results.jsonl").read_text().splitlines() for name in
             ("whole", "cut")]  # fmt: skip
    for one, other in zip(*lines, strict=True):
        one, other = json.loads(one), json.loads(other)
        assert [one[k] for k in ("step", "loss", "env0_in_acc")] == [
            other[k] for k in ("step", "loss", "env0_in_acc")
        ]


def test_the_config_of_make_laptop_has_all_algorithms():
    config = load_config(Path(__file__).parents[2] / "configs" / "laptop.yaml")
    assert list(config.algorithms) == list(ALGORITHMS)
    of_images = {"ARM", "ZeroShot", "MIRO", "MixStyle", "EFDMix", "DSU", "FACT"}
    assert {entry["algorithm"] for entry in config.left_out} == of_images
    runs = config.plan()
    assert len(runs) == (len(ALGORITHMS) - len(of_images)) * 4 * 3
    for each in runs:  # no method begins its penalty after the last update
        switches = [v for k, v in each.hparams.items() if k.endswith("iters")]
        assert all(v < each.steps for v in switches), each.algorithm


def test_mixtures_are_told():
    def row(protocol: str, features: Any) -> dict[str, Any]:
        facts = {"dataset": "PACS", "protocol_version": "1", "torch": "2.4", "precision": "float32"}
        return {"protocol": protocol, "features": features_of({"features": features}), **facts}

    other = {"backbone": "resnet50", "weights": "imagenet", "views": 4, "precision": "float32"}
    rows = [row("frozen-features", SMALL), row("frozen-features", other), row("default", None)]
    (told,) = mixtures(pd.DataFrame(rows))
    assert told.startswith(
        "the tables of PACS mix protocols: frozen-features (version 1), features of squeezenet1_1"
    )
    assert "features of resnet50, 4 views in 1 run" in told
    assert told.endswith("default (version 1) in 1 run")
    assert mixtures(pd.DataFrame(rows[:1] * 2)) == []
