"""The diagnosis of real, tiny runs, against what is computed from their files by other means."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import edit_json
from PIL import Image
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS, get_algorithm_class, register_algorithm
from domainbed.algorithms.base import Algorithm
from domainbed.core.files import read_sealed_json
from domainbed.core.seeding import seed_everything, seed_hash
from domainbed.core.settings import load
from domainbed.datasets import ColoredDigits
from domainbed.diagnostics import DiagnosisOptions, diagnose
from domainbed.diagnostics.rendering import to_json, to_table
from domainbed.errors import UserError
from domainbed.hparams import default_hparams
from domainbed.networks import NETWORKS
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, run
from domainbed.training.sampling import split_indices

EPSILON, DAMPING, IMAGES = 0.2, 0.01, 100
OPTIONS = DiagnosisOptions(
    device="cpu",
    curvatures=("variance", "hessian", "full_hessian"),
    epsilon=EPSILON,
    damping=DAMPING,
    samples=IMAGES,
    landscape=(),
)
TINY = {"steps": 4, "checkpoint_freq": 4, "hparams": {"batch_size": 8, "lr": 0.01}}


def train(folder, algorithm="Fishr", test_envs=(1,), dataset="ColoredDigits", **changes):
    spec = RunSpec.create(dataset, algorithm, list(test_envs), **{**TINY, **changes})
    run(spec, folder, RunOptions(device="cpu"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "fishr")


@pytest.fixture(scope="module")
def diagnosis(folder):
    return diagnose(folder, OPTIONS)


@pytest.fixture(scope="module")
def found(diagnosis):
    """The diagnosis as a program reads it."""
    return json.loads(to_json(diagnosis))


@pytest.fixture
def copied(folder, tmp_path):
    """The trained run, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copied")


def rebuilt(folder, trained):
    """The algorithm, without the code that is tested."""
    hparams = default_hparams("Fishr", "ColoredDigits") | TINY["hparams"]
    seed_everything(seed_hash("ColoredDigits", "Fishr", [1], 0, 0))
    algorithm = get_algorithm_class("Fishr")((2, 8, 8), 2, 2, hparams)
    if trained:
        saved = torch.load(folder / "model.pkl", weights_only=True)
        algorithm.load_state_dict(saved["model_dict"])
    return algorithm.eval()


def in_splits():
    """The images that are to be looked at, by domain."""
    dataset = ColoredDigits("", [1], {}, trial_seed=0)
    for number, domain in enumerate(dataset):
        _, inside = split_indices(len(domain), 0.2, seed_hash(0, number))
        order = np.random.RandomState(seed_hash(0, number)).permutation(len(inside))
        yield [tensor[np.array(inside)[order[:IMAGES]]] for tensor in domain.tensors]


def quantities(algorithm, x, y):
    """Risk, accuracy, mean and variance of gradients, diagonal Hessian of a linear classifier."""
    with torch.no_grad():
        z = algorithm.featurizer(x).double().numpy()
        logits = algorithm.predict(x).double()
    p = logits.softmax(dim=1).numpy()
    z1 = np.hstack([z, np.ones((len(z), 1))])
    delta = p - np.eye(2)[y.numpy()]
    g = np.hstack(
        [(delta[:, :, None] * z[:, None, :]).reshape(len(z), -1), delta]
    )  # weights, biases
    spread = p * (1 - p)
    diagonal = np.concatenate([(spread.T @ z**2 / len(z)).ravel(), spread.mean(axis=0)])
    full = np.einsum("nck,ni,nj->cikj", p[:, :, None] * (np.eye(2) - p[:, None, :]), z1, z1)
    accuracy = (logits.argmax(dim=1) == y).double().mean().item()
    return {
        "risk": F.cross_entropy(logits, y).item(),
        "accuracy": accuracy,
        "mean": g.mean(axis=0),
        "variance": g.var(axis=0),
        "hessian": diagonal,
        "full": full.reshape(2 * z1.shape[1], -1) / len(z),
    }


@pytest.mark.parametrize("stage", ["before", "after"])
def test_numbers_of_a_run(folder, found, stage):
    algorithm = rebuilt(folder, trained=stage == "after")
    expected = [quantities(algorithm, x, y) for x, y in in_splits()]
    measured = found[stage]
    assert measured["risks"] == pytest.approx([e["risk"] for e in expected], rel=1e-5)
    assert measured["accuracies"] == pytest.approx([e["accuracy"] for e in expected])
    for name, key in (("gradient_means", "mean"), ("gradient_variances", "variance")):
        a, b = expected[0][key], expected[2][key]
        distance, cosine = np.linalg.norm(a - b), a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert measured[name]["distances"][0][2] == pytest.approx(distance, rel=1e-3)
        assert measured[name]["cosines"][2][0] == pytest.approx(cosine, rel=1e-4)
        assert measured[name]["norms"][1] == pytest.approx(
            np.linalg.norm(expected[1][key]), rel=1e-4
        )
    assert_inconsistency(measured["inconsistency"], expected)
    closeness = measured["closeness_to_hessian"]["variance"]
    v, h = expected[1]["variance"], expected[1]["hessian"]
    assert closeness["correlation"][1] == pytest.approx(np.corrcoef(v, h)[0, 1], rel=1e-3)
    relative = np.linalg.norm(v - h) / np.linalg.norm(h)
    assert closeness["relative_distance"][1] == pytest.approx(relative, rel=1e-3)


def assert_inconsistency(measured, expected):
    """By brute force over ordered pairs; domain 1 is the test domain."""
    for kind, key in (("variance", "variance"), ("hessian", "hessian"), ("full_hessian", "full")):
        added = DAMPING * np.mean([np.diag(e[key]) if key == "full" else e[key] for e in expected])
        totals = {}
        for pair in measured[kind]["pairs"]:
            a, b = expected[pair["a"]], expected[pair["b"]]
            if key == "full":
                identity = np.eye(len(a[key]))
                solved = np.linalg.solve(a[key] + added * identity, b[key] + added * identity)
                ratio = np.linalg.eigvals(solved).real.max()
            else:
                ratio = ((b[key] + added) / (a[key] + added)).max()
            assert pair["curvature_ratio"] == pytest.approx(ratio, rel=1e-3)
            assert pair["risk_difference"] == pytest.approx(b["risk"] - a["risk"], abs=1e-5)
            totals[pair["a"], pair["b"]] = b["risk"] - a["risk"] + EPSILON * ratio
        assert len(totals) == 6
        training = max(totals[0, 2], totals[2, 0])
        assert measured[kind]["score"] == pytest.approx(training, rel=1e-3)
        assert measured[kind]["score_with_test"] == pytest.approx(max(totals.values()), rel=1e-3)


def test_facts_of_a_run(folder, found):
    assert found["run"] == "Fishr on ColoredDigits, test domain 1, hparams seed 0, trial 0"
    written = read_sealed_json(folder / "run.json")
    assert {**found["spec"], "run_id": written["run_id"]} == {
        name: value for name, value in written.items() if name != "identity"
    }
    assert found["parameters"] == 2 * 128 + 2
    assert found["domains"] == [
        {"number": 0, "name": "+90%", "is_training": True, "images": IMAGES},
        {"number": 1, "name": "+80%", "is_training": False, "images": IMAGES},
        {"number": 2, "name": "-90%", "is_training": True, "images": IMAGES},
    ]


def test_landscape_of_a_run(folder, found):
    landscape = found["landscape"]
    assert landscape["domains"] == [0, 2]
    line, plane = landscape["line"], landscape["plane"]
    assert (line["positions"][0], line["positions"][-1]) == (-0.5, 1.5)
    start, end = line["positions"].index(0), line["positions"].index(1)
    x0, x1, y0 = plane["x"].index(0), plane["x"].index(1), plane["y"].index(0)
    before, after = rebuilt(folder, trained=False), rebuilt(folder, trained=True)
    images = list(in_splits())
    for i, domain in enumerate(landscape["domains"]):
        assert line["risks"][i][start] == pytest.approx(found["before"]["risks"][domain], rel=1e-5)
        assert line["risks"][i][end] == pytest.approx(found["after"]["risks"][domain], rel=1e-5)
        grid = plane["risks"][i]
        assert grid[y0][x1] == pytest.approx(found["after"]["risks"][domain], rel=1e-6)
        x, y = images[domain]
        with torch.no_grad():
            logits = before.classifier(after.featurizer(x))
        assert grid[y0][x0] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
        assert grid[-1][x1] != pytest.approx(grid[0][x1], rel=1e-5)


def test_accuracies_of_all_images_are_those_of_the_last_record(folder):
    found = diagnose(folder, DiagnosisOptions(device="cpu", samples=0))
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    assert found.after.accuracies == pytest.approx([last[f"env{i}_in_acc"] for i in range(3)])
    assert [domain.images for domain in found.domains] == [480, 480, 480]
    assert list(found.after.inconsistency) == [
        "variance",
        "empirical_fisher",
        "true_fisher",
        "hessian",
    ]
    assert found.landscape is None


def test_nothing_in_the_folder_changes(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    diagnose(folder, DiagnosisOptions(device="cpu", samples=20))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_table_shows_the_numbers(diagnosis):
    words = [line.split() for line in to_table(diagnosis).splitlines()]
    after = diagnosis.after
    assert any(row[:1] == ["1"] and f"{after.risks[1]:.4f}" in row for row in words)
    score = after.inconsistency["full_hessian"].score
    assert any(row[:1] == ["full_hessian"] and f"{score:.4g}" in row for row in words)
    pair = after.inconsistency["variance"].pairs[1]  # the first domain against the third
    row = ["+90%", "-90%", f"{pair.risk_difference:+.4f}", f"{pair.curvature_term:.4g}"]
    assert any(found[:4] == row for found in words)


def test_nonlinear_classifier(tmp_path):
    hparams = {**TINY["hparams"], "nonlinear_classifier": True}
    folder = train(tmp_path / "run", "ERM", hparams=hparams)
    found = diagnose(folder, DiagnosisOptions(device="cpu", samples=20))
    assert found.parameters == 128 * 64 + 64 + 64 * 32 + 32 + 32 * 2 + 2
    same = found.after.inconsistency["true_fisher"].score
    assert found.after.inconsistency["hessian"].score == pytest.approx(same)
    with pytest.raises(UserError, match="at most 4,000 parameters"):
        diagnose(folder, DiagnosisOptions(device="cpu", curvatures=["full_hessian"]))


def test_one_training_domain_has_no_score_of_its_own(tmp_path):
    folder = train(tmp_path / "run", "ERM", test_envs=(0, 1))
    found = diagnose(folder, DiagnosisOptions(device="cpu", samples=20, landscape=()))
    assert found.after.inconsistency["variance"].score is None
    assert found.after.inconsistency["variance"].score_with_test > 0
    assert found.landscape.domains == [2, 0]
    assert "-" in to_table(found).split("variance")[1].split()[:2]


@pytest.mark.parametrize("algorithm", ["CORAL", "Fish", "DANN"])
def test_other_algorithms(algorithm, tmp_path):
    folder = train(tmp_path / "run", algorithm)
    found = diagnose(folder, DiagnosisOptions(device="cpu", samples=0))
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    assert found.after.accuracies == pytest.approx([last[f"env{i}_in_acc"] for i in range(3)])
    assert found.before.risks != found.after.risks


class FourColours(nn.Sequential):
    """The mean colours of the quarters of an image; many are dropped in training mode."""

    n_outputs = 12

    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5))


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    """A run on a user's own images, and where they are."""
    root = tmp_path_factory.mktemp("images") / "animals"
    random = np.random.RandomState(0)
    for file in (root / d / c / f"{i}.png" for d in "abc" for c in "xy" for i in range(3)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
    dataset = f"folder:{root}"
    hparams = {"featurizer": "FourColours", "batch_size": 2}
    NETWORKS.register(lambda input_shape, hparams: FourColours(), name="FourColours")
    yield train(root.parent / "run", "ERM", (2,), dataset, steps=1, hparams=hparams), dataset
    del NETWORKS._entries["FourColours"]


def test_images_in_folders(image_run):
    folder, dataset = image_run
    found = diagnose(folder, DiagnosisOptions(dataset=dataset, device="cpu", samples=0))
    last = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    assert found.after.accuracies == pytest.approx([last[f"env{i}_in_acc"] for i in range(3)])
    again = diagnose(folder, DiagnosisOptions(dataset=dataset, device="cpu", samples=0))
    assert again.after.risks == found.after.risks
    assert [domain.name for domain in found.domains] == ["a", "b", "c"]
    fewer = diagnose(folder, DiagnosisOptions(dataset=dataset, device="cpu", samples=2))
    assert [domain.images for domain in fewer.domains] == [2, 2, 2]


def test_own_images_are_found_where_the_run_had_them(image_run):
    folder, *_ = image_run
    found = diagnose(folder, DiagnosisOptions(device="cpu", samples=2))
    assert [domain.images for domain in found.domains] == [2, 2, 2]
    with pytest.raises(UserError, match="'ColoredDigits' is not animals"):
        diagnose(folder, DiagnosisOptions(dataset="ColoredDigits", device="cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvatures": ["hesian"]}, r"curvatures.* expected one of variance, .*, found 'hesian'"),
        ({"epsilon": 0.0}, "epsilon: expected a number above 0, found 0.0"),
        ({"epsilon": float("nan")}, "epsilon: .*, found nan"),
        ({"damping": 0}, "damping: expected a number above 0, found 0"),
        ({"samples": -1}, "samples: expected a whole number from 0 on, found -1"),
        ({"num_workers": -1}, "num_workers: .*, found -1"),
        ({"landscape": [1]}, r"landscape: expected two domains, found \[1\]"),
        ({"landscape": [0, 3]}, "landscape of domain 3: expected numbers between 0 and 2"),
        ({"device": "nonsense"}, "device 'nonsense'"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(UserError, match=message):
        diagnose(folder, load(DiagnosisOptions, None, {"device": "cpu", **options}))


def damage(name):
    """What to do to a run's folder, by the part of the error that tells of it."""

    def change_model(folder, change):
        saved = torch.load(folder / "model.pkl", weights_only=True)
        change(saved["model_dict"])
        torch.save(saved, folder / "model.pkl")
        (folder / "model.pkl.sha256").unlink()

    def tear(folder):
        (folder / "model.pkl").write_bytes(b"torn")
        (folder / "model.pkl.sha256").unlink()

    return {
        "holds no run.json": lambda folder: (folder / "run.json").unlink(),
        "is interrupted: train it to its end": lambda folder: (folder / "done").unlink(),
        "holds no model.pkl: .* without --skip_model_save": lambda folder: (
            folder / "model.pkl"
        ).unlink(),
        "model.pkl is damaged": lambda folder: (folder / "model.pkl").write_bytes(b"torn"),
        "model.pkl cannot be read": tear,
        "does not fit Fishr": lambda folder: change_model(
            folder, lambda weights: weights.pop("classifier.bias")
        ),
        "training diverged": lambda folder: change_model(
            folder, lambda weights: weights["classifier.bias"].fill_(float("nan"))
        ),
        "of another version": lambda folder: edit_json(folder / "run.json", later=1),
    }[name]


@pytest.mark.parametrize(
    "message",
    [
        "holds no run.json",
        "is interrupted: train it to its end",
        "holds no model.pkl: .* without --skip_model_save",
        "model.pkl is damaged",
        "model.pkl cannot be read",
        "does not fit Fishr",
        "training diverged",
        "of another version",
    ],
)
def test_folders_that_cannot_be_diagnosed(copied, message):
    damage(message)(copied)
    with pytest.raises(UserError, match=message) as caught:
        diagnose(copied, OPTIONS)
    assert "\n" not in str(caught.value)


def test_an_algorithm_without_a_classifier(tmp_path):
    @register_algorithm(name="Headless")
    class Headless(Algorithm):
        uses_optimizer = False

        def __init__(self, input_shape, num_classes, num_domains, hparams):
            super().__init__(input_shape, num_classes, num_domains, hparams)
            self.featurizer = nn.Linear(128, 2)

        def update(self, minibatches, unlabeled=None):
            return {"loss": 0.0}

        def predict(self, x):
            return self.featurizer(x.flatten(1))

    try:
        folder = train(tmp_path / "run", "Headless", hparams={"batch_size": 8})
        with pytest.raises(UserError, match="Headless has no attribute `classifier`"):
            diagnose(folder, OPTIONS)
    finally:
        del ALGORITHMS._entries["Headless"]
