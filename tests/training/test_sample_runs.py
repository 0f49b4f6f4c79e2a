"""Runs on tables, arrays and sequences: trained, resumed, kept, predicted, collected, compared."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from vectors import records, run_until

from domainbed.cli import main
from domainbed.config.run_fields import RunOptions
from domainbed.errors import UserError
from domainbed.networks import NETWORKS
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import build, predictions, run

SMALL = {"batch_size": 8}


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0


@pytest.fixture
def kinds(tmp_path):
    """By the network's name, a dataset and its type of labels."""
    random = np.random.RandomState(0)
    domain, y = np.repeat(["a", "b", "c"], 20), np.arange(60) % 2
    files = {
        "vectors": {"x": random.randn(60, 4), "y": np.c_[y, 1 - y, y]},
        "series": {"x": random.randn(60, 9, 2), "y": random.randn(60)},
        "tokens": {"x": random.randint(0, 9, (60, 7)), "y": y},
        "images": {"x": random.randint(0, 256, (60, 1, 8, 8)).astype(np.uint8), "y": y},
    }
    for name, content in files.items():
        np.savez(tmp_path / f"{name}.npz", domain=domain, **content)
    return {
        "Penguins": ("Penguins", "classes"),
        "species": ("PenguinsSpecies", "classes"),
        "mass": ("PenguinsMass", "regression"),
        "vectors": (f"arrays:{tmp_path}/vectors.npz", "multilabel"),
        "series": (f"arrays:{tmp_path}/series.npz", "regression"),
        "tokens": (f"arrays:{tmp_path}/tokens.npz", "binary"),
        "images": (f"arrays:{tmp_path}/images.npz", "classes"),
    }


def test_each_kind_trains_and_resumes_exactly(kinds, tmp_path):
    networks = {"vectors": "MLP", "series": "SequenceCNN", "tokens": "Transformer", "images": ""}
    options = RunOptions(keep="none")
    for name, (dataset, labels) in kinds.items():
        fields = {"labels": labels, "steps": 3, "hparams": SMALL}
        for algorithm in ("ERM", "CORAL"):
            built = build(RunSpec.create(dataset, algorithm, [2], **fields))
            for minibatches in built.minibatches(range(2)):
                assert math.isfinite(built.algorithm.update(minibatches)["loss"]), name
        spec = RunSpec.create(dataset, "Fishr", [2], **fields)
        assert spec.hparams.get("featurizer", "") == networks.get(name, "MLP")
        place = tmp_path / name
        run(spec, place / "whole", options)
        run_until(spec, place / "parts", 2, options)
        run(spec, place / "parts", options)
        found = records(place / "whole")
        assert records(place / "parts") == found, name
        assert math.isfinite(found[-1]["loss"]), name
        assert found[-1]["args"]["dataset"] == dataset.split("/")[-1].removesuffix(".npz")


def test_penguins_are_told_apart(tmp_path):
    """Of another island, by measures that were standardised on the training islands."""
    bounds = {"Penguins": ("env1_in_acc", 0.75), "PenguinsMass": ("env1_in_rmse", 0.6)}
    for name, (key, bound) in bounds.items():
        run(RunSpec.create(name, "ERM", [1], steps=150, checkpoint_freq=149), tmp_path / name)
        value = records(tmp_path / name)[-1][key]
        assert value > bound if key.endswith("acc") else value < bound, (name, value)


def test_what_was_learned_is_kept(tmp_path, caplog):
    table = tmp_path / "birds.csv"
    rows = [f"{1000 * e + i},{'xy'[i % 2]},{'abc'[e]}" for e in range(3) for i in range(20)]
    table.write_text("\n".join(["mass,label,domain", *rows]))
    name, folder = f"table:{table}", RunFolder(tmp_path / "run")
    spec = RunSpec.create(name, "ERM", [2], steps=2, hparams=SMALL)
    run(spec, folder)
    built = build(spec)
    kept = json.loads(folder.environment.read_text())
    assert kept["encoding"] == built.dataset.encoding
    content = torch.load(folder.model, weights_only=True)
    assert content["model_encoding"] == built.dataset.encoding
    before = list(predictions(folder, RunOptions(), name, 2, "in"))
    # Other training domains of that name: predictions are by the kept means all the same.
    table.write_text(
        "\n".join(["mass,label,domain", *(f"7{row}" for row in rows[:40]), *rows[40:]])
    )
    assert build(spec).dataset.encoding["mean"] != built.dataset.encoding["mean"]
    assert list(predictions(folder, RunOptions(), name, 2, "in")) == before
    assert "was trained on other images of the same domains and classes" in caplog.text
    table.write_text("\n".join(["size,label,domain", *rows]))
    with pytest.raises(UserError, match="no column 'mass', which is one of the inputs"):
        list(predictions(folder, RunOptions(), name, 2, "in"))
    (folder.path / "done").unlink()
    table.write_text("\n".join(["mass,label,domain", *rows[::-1]]))
    with pytest.raises(UserError, match=r"was started on other data \(other images or labels\)"):
        run(spec, folder)


def test_a_sweep_is_collected_compared_and_reported(tmp_path, capsys):
    np.savez(
        tmp_path / "motion.npz",
        x=np.random.RandomState(0).randn(60, 9, 2),
        y=np.arange(60) % 2,
        domain=np.repeat([1, 2, 3], 20),
    )
    sweep = tmp_path / "sweep"
    (tmp_path / "sweep.yaml").write_text(
        f"datasets: [Penguins, 'arrays:{tmp_path}/motion.npz']\nalgorithms: [ERM, Fishr]\n"
        f"trials: 1\nhparams_seeds: 1\ntest_envs: [[0]]\nsteps: 2\nlauncher: debug\n"
        f"selection: [training-domain]\noutput_dir: {sweep}\nskip_model_save: true\n"
    )
    call("sweep", "launch", tmp_path / "sweep.yaml", "--skip_confirmation")
    capsys.readouterr()
    call("collect", sweep)
    table = capsys.readouterr().out
    assert "Penguins" in table
    assert "motion" in table
    call("compare", sweep)
    assert "Fishr" in capsys.readouterr().out
    call("report", sweep, "--output", tmp_path / "report.html")
    assert "Penguins" in (tmp_path / "report.html").read_text()


def test_hyper_parameters_of_a_table_are_listed_whatever_its_columns_are(tmp_path, capsys):
    (tmp_path / "birds.csv").write_text("sex,island\nmale,Dream\n")
    call("list", "hparams", "CORAL", f"table:{tmp_path / 'birds.csv'}")
    listed = capsys.readouterr().out
    assert "mlp_width" in listed
    assert "resnet18" not in listed


def test_padding_changes_nothing_and_second_derivatives_exist():
    torch.manual_seed(0)
    network = NETWORKS["Transformer"](
        {"vocabulary": 9, "length": 6},
        {"sequence_width": 8, "sequence_depth": 2, "sequence_dropout": 0.0},
    )
    x = torch.tensor([[1, 2, 3, 0, 0, 0], [8, 5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    z = network(x)
    torch.testing.assert_close(network(x[:, :3]), z)
    assert z.isfinite().all()
    assert not torch.allclose(network(x[:, [1, 0, 2, 3, 4, 5]])[0], z[0])  # order counts
    (first,) = torch.autograd.grad(z.square().sum(), network.tokens.weight, create_graph=True)
    first.square().sum().backward()
    assert network.places.weight.grad.abs().sum() > 0
