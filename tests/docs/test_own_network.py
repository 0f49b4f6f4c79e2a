"""The dataset of docs/own_network.md: token sequences, with a network and a collate of its own."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import switching_at
from page_files import REPOSITORY

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import concatenate
from domainbed.core.plugins import import_plugins
from domainbed.core.stopping import Interrupted, request_stop, stopping_on
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.hparams import default_hparams, random_hparams, search_space
from domainbed.networks import NETWORKS
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import build, load_model, run
from domainbed.training.trainer import RunOptions

OPTIONS = RunOptions(num_workers=0, device="cpu", save_predictions=True)


@pytest.fixture(autouse=True)
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports the page's files, for one test."""
    for registry in (ALGORITHMS, DATASETS, NETWORKS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    text = (REPOSITORY / "docs" / "own_network.md").read_text()
    files = re.findall(r"<!-- file: (\S+) -->\n+```python\n(.*?)```", text, re.S)
    assert [name for name, _ in files] == ["sentences.py", "fair.py"]
    for name, code in files:
        (tmp_path / name).write_text(code)
        import_plugins([str(tmp_path / name)])


def spec_of(algorithm: str, **hparams: Any) -> RunSpec:
    hparams = {"batch_size": 8, "dropout": 0.1, **hparams}
    return RunSpec.create(
        "Sentences", algorithm, [2], steps=7, checkpoint_freq=3, seed=1, hparams=hparams
    )


def records(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for record in found:
        del record["step_time"], record["args"]["output_dir"]
    return found


@pytest.mark.parametrize("algorithm", ["ERM", "CORAL", "Fishr", "Fair"])
def test_it_trains_and_resumes_exactly(algorithm: str, tmp_path: Path) -> None:
    spec = spec_of(algorithm, **({"penalty_anneal_iters": 2} if algorithm == "Fishr" else {}))
    run(spec, tmp_path / "whole", OPTIONS)

    def stop(taken: int) -> None:
        if taken == 5:
            request_stop()

    with stopping_on([]), pytest.raises(Interrupted):
        run(spec, tmp_path / "pieces", OPTIONS, on_step=stop)
    run(spec, tmp_path / "pieces", OPTIONS)
    whole = records(tmp_path / "whole")
    assert [record["step"] for record in whole] == [0, 3, 6]
    assert records(tmp_path / "pieces") == whole
    assert whole[-1].get("penalty", 1.0) > 0
    model = load_model(tmp_path / "whole", "cpu")
    assert model.input_shape == {"vocabulary": 20}
    (minibatches,) = build(spec, OPTIONS).minibatches(range(1))
    assert model.probabilities(minibatches[0][0]).sum(dim=1).tolist() == pytest.approx([1.0] * 8)


def test_minibatches_carry_what_their_samples_have() -> None:
    experiment = build(spec_of("ERM"), OPTIONS)
    (minibatches,) = experiment.minibatches(range(1))
    assert [each.domain for each in minibatches] == [0, 1]
    for each in minibatches:
        x, y = each
        source = experiment.dataset.datasets[each.domain]
        assert each.index is not None
        assert each.extras is not None
        for row, index in enumerate(each.index.tolist()):
            length = len(source.tokens[index])
            assert x["tokens"][row, :length].tolist() == source.tokens[index].tolist()
            assert x["mask"][row].tolist() == [True] * length + [False] * (
                len(x["mask"][0]) - length
            )
            assert (y[row], each.extras["group"][row]) == (
                source.targets[index],
                source.authors[index],
            )
    lengths = {x["tokens"].shape[1] for x, _ in minibatches}
    x, _ = concatenate(minibatches)
    assert len(lengths) == 2
    assert x["tokens"].shape == x["mask"].shape == (16, max(lengths))
    forward = experiment.algorithm.forward_pass(minibatches)
    assert forward.extras["group"].tolist() == [
        group for each in minibatches for group in each.extras["group"].tolist()
    ]
    apart = [experiment.algorithm.eval().predict(x) for x, _ in minibatches]
    torch.testing.assert_close(experiment.algorithm.predict(x), torch.cat(apart))


def test_its_search_space_is_its_own() -> None:
    space = search_space("DANN", "Sentences")
    assert {"width", "heads", "dropout", "featurizer", "lr"} <= set(space)
    assert not {"resnet18", "resnet_dropout"} & set(space)
    assert space["lr"] == search_space("DANN", "ColoredMNIST")["lr"]
    drawn = [random_hparams("ERM", "Sentences", seed)["width"] for seed in range(1, 9)]
    assert set(drawn) == {16, 32}
    in_sequence = random_hparams("ERM", "Sentences", 3, in_sequence=True)
    assert in_sequence["featurizer"] == "attention"
    for name, message in (
        ("backbone", "unknown hyper-parameter 'backbone' of ERM"),
        ("featurizer", "hyper-parameter 'featurizer': unknown network 'resnet18'"),
    ):
        with pytest.raises(UserError, match=message):
            spec_of("ERM", **{name: "resnet18"})
    assert "resnet_dropout" in spec_of("ERM", featurizer="MLP").hparams


def test_a_network_of_options_for_any_dataset(tmp_path: Path) -> None:
    from domainbed.hparams import Option
    from domainbed.networks import Featurizer

    @NETWORKS.register(name="pixels")
    class Pixels(Featurizer):
        options = {"pixels_bias": Option(0.5, "added to each pixel")}

        def __init__(self, shape: Any, hparams: Any) -> None:
            super().__init__()
            self.n_outputs, self.bias = shape[0] * shape[1] * shape[2], hparams["pixels_bias"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) + self.bias

    chosen = {"featurizer": "pixels", "pixels_bias": 0.25}
    spec = RunSpec.create("ColoredDigits", "ERM", [0], steps=1, hparams=chosen)
    run(spec, tmp_path / "run", RunOptions(device="cpu"))
    assert load_model(tmp_path / "run", "cpu").module.featurizer.bias == 0.25
    with pytest.raises(UserError, match="unknown hyper-parameter 'pixels_bias' of ERM"):
        RunSpec.create("ColoredDigits", "ERM", [0], hparams={"pixels_bias": 0.25})


@pytest.mark.parametrize(
    ("algorithm", "hparams", "message"),
    [
        (
            "Mixup",
            {},
            "Mixup computes with the inputs themselves, and those of Sentences are a dict",
        ),
        ("Fishr+Mixup", {}, r"Fishr\+Mixup computes with the inputs themselves"),
        ("ARM", {}, "ARM computes with the inputs themselves"),
        ("LinearProbe", {}, "LinearProbe computes with the inputs themselves"),
    ],
)
def test_what_computes_with_inputs_is_refused(
    algorithm: str, hparams: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        build(spec_of(algorithm, **hparams), OPTIONS)
    monkeypatch.setattr(DATASETS["Sentences"], "input_shape", None, raising=False)
    with pytest.raises(UserError, match="those of Sentences have no one shape"):
        spec_of(algorithm)


def test_gradients_of_single_samples_below_the_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'fishr_parameters' is 'all', .* not a dict of them"):
        run(spec_of("Fishr", fishr_parameters="all"), RunFolder(tmp_path / "run"), OPTIONS)


def test_every_algorithm_trains_on_it_or_says_that_it_needs_other_inputs() -> None:
    (minibatches,) = build(spec_of("ERM"), OPTIONS).minibatches(range(1))
    refused = []
    for name, cls in ALGORITHMS.items():
        if cls.needs_tensor or cls.needs_images or cls.needs_features or cls.needs_text:
            refused.append(name)
            continue
        hparams = default_hparams(name, "Sentences") | switching_at(0, name)
        small = {"mlp_width": 8, "mlp_depth": 2} if "mlp_width" in hparams else {}
        torch.manual_seed(0)
        algorithm = cls({"vocabulary": 20}, 2, 2, hparams | small)
        for _ in range(2):
            assert all(math.isfinite(value) for value in algorithm.update(minibatches).values())
        assert algorithm.eval().predict(minibatches[0][0]).shape == (8, 2)
    assert {"Mixup", "ARM", "LinearProbe"} <= set(refused)
    assert not {"ERM", "CORAL", "Fishr", "MLDG", "SagNet", "MTL", "Transfer", "RSC"} & set(refused)


def test_test_domains_are_adapted_to_without_labels() -> None:
    spec = spec_of("ERM").model_copy(
        update={"task": "domain_adaptation", "uda_holdout_fraction": 0.2}
    )
    (unlabeled,) = build(spec, OPTIONS).unlabeled(range(1))
    assert [sorted(x) for x in unlabeled] == [["mask", "tokens"]]
    assert len(unlabeled[0]["tokens"]) == 8
