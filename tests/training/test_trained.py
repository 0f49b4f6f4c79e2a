"""Trained runs as others use them: from Python, and from the shell."""

from __future__ import annotations

import csv
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed import load_model
from domainbed.cli import main
from domainbed.diagnostics import DiagnosisOptions, diagnose
from domainbed.errors import UserError
from domainbed.networks.pretrained import load_plain
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import RunOptions, predictions, run
from domainbed.training.trained import Model, rebuild


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    run(RunSpec.create("ColoredDigits", "ERM", [1], steps=30, hparams={"batch_size": 8}), folder)
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> list[list[str]]:
    with pytest.raises(SystemExit) as exit:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert exit.value.code == 0, err
    return list(csv.reader(out.splitlines()))


@pytest.mark.parametrize("split", ["in", "out"])
def test_predictions_are_those_that_were_recorded(
    split: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *rows = printed(capsys, "predict", digits, "--domain", 1, "--split", split)
    assert head == ["position", "label", "class", "p(digit 5 to 9)", "p(digit 0 to 4)"]
    record = json.loads((digits / "results.jsonl").read_text().splitlines()[-1])
    hits = [label == predicted for _, label, predicted, *_ in rows]
    assert np.mean(hits) == pytest.approx(record[f"env1_{split}_acc"], abs=1e-12)
    assert 0.4 < np.mean(hits) < 1


def test_a_model_without_its_dataset(digits: Path) -> None:
    model = load_model(digits, device="cpu")
    assert (model.module.training, model.preprocess) == (False, None)
    _, *rows = predictions(RunFolder(digits), RunOptions(), None, 1, "out")
    domain = rebuild(RunFolder(digits)).domains[1]
    x, _ = next(iter(domain.evaluation_batches([position for position, *_ in rows[:20]])))
    assert tuple(x.shape[1:]) == model.input_shape
    found = model.probabilities(x)
    predicted = [model.classes[k] for k in found.argmax(dim=1)]
    assert predicted == [name for _, _, name, *_ in rows[:20]]
    expected = torch.tensor([row[3:] for row in rows[:20]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_files_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.RandomState(0)
    for place in ("a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/dog/1.png"):
        for name in ("1.png", "2.png"):
            file = (tmp_path / "photos" / place).with_name(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.randint(0, 256, (9, 12, 3), dtype=np.uint8)).save(file)
    hparams: dict[str, Any] = {"batch_size": 2, "resnet18": True, "weights": "none"}
    spec = RunSpec.create(
        f"folder:{tmp_path / 'photos'}", "ERM", [1], steps=1, hparams=hparams, holdout_fraction=0.5
    )
    run(spec, tmp_path / "run", RunOptions(num_workers=0, device="cpu"))
    file = (tmp_path / "photos/a/cat/1.png").rename(tmp_path / "1.png")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    head, row = printed(capsys, "predict", tmp_path / "run", file, "--device", "cpu")
    model = load_model(tmp_path / "run", "cpu")
    assert model.preprocess is not None
    found = model.probabilities(model.preprocess(file)[None])[0]
    assert head == ["file", "class", "p(cat)", "p(dog)"]
    cells = [str(round(probability, 4)) for probability in found.tolist()]
    assert row == [str(file), model.classes[int(found.argmax())], *cells]
    assert sum(map(float, cells)) == pytest.approx(1, abs=2e-4)
    assert model.classes == ["cat", "dog"]


def test_files_are_predicted_in_batches_of_64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a method that looks at a batch: they are printed in the order given, with a word on it."""

    class Rank(torch.nn.Module):
        predicts_batches = True

        def predict(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return torch.stack([x, -x], dim=1)

        def predictor(self) -> Any:
            return self.predict

    sizes: list[int] = []
    spec = RunSpec.create("ColoredDigits", "ARM", [0])
    rank = Rank()
    rank.register_parameter("own", torch.nn.Parameter(torch.zeros(())))
    model = Model(rank, ["low", "high"], (), lambda file: torch.tensor(float(file.name)), spec)  # type: ignore[arg-type]
    monkeypatch.setattr("domainbed.training.load_model", lambda folder, *_: model)
    with pytest.raises(SystemExit):
        main(["model", "predict", "run", *map(str, range(70))])
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == list(map(str, range(70)))
    assert "ARM looks at all images of a batch to predict each" in err
    assert sizes == [64, 6]


@pytest.mark.parametrize("algorithm", ["MTL", "ARM"])
def test_images_given_to_a_method_that_looks_at_batches_are_one_domain(
    algorithm: str, tmp_path: Path
) -> None:
    """A model predicts as the run did: the noise of MTL is the same, classes are mixed."""
    spec = RunSpec.create("ColoredDigits", algorithm, [1], steps=1, hparams={"batch_size": 8})
    run(spec, tmp_path / "run")
    model, domain = load_model(tmp_path / "run", "cpu"), rebuild(RunFolder(tmp_path / "run"))
    inside = domain.splits[1].inside[:64]
    ((x, y),) = domain.domains[1].evaluation_batches(inside)
    _, *rows = predictions(RunFolder(tmp_path / "run"), RunOptions(), None, 1, "in")
    own = model.module.predict(x).softmax(dim=1)
    expected = torch.tensor([row[3:] for row in rows[:64]])
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)
    batches = model.together(150)
    assert [len(batch) for batch in batches] == [64, 64, 22]
    assert sorted(i for batch in batches for i in batch) == list(range(150))
    by_class = x[y.argsort()].repeat(2, 1, 1, 1)
    order = model.together(128)
    found = model.probabilities(by_class)
    for batch in order:
        single = model.module.predict(by_class[batch]).softmax(dim=1)
        torch.testing.assert_close(found[batch], single)
    with pytest.raises(UserError, match=f"{algorithm} cannot be diagnosed: its predictions"):
        diagnose(tmp_path / "run", DiagnosisOptions(device="cpu", samples=10))


def test_a_file_that_holds_no_weights_gives_no_advice_of_pytorch(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(pickle.dumps({"model_dict": Path(tmp_path)}))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(pickle.UnpicklingError):
            load_plain(tmp_path / "weights.pt")
    assert not seen
