"""The command `model predict`: what its help names, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from image_files import write_folder
from label_datasets import VectorRegressionVectors

from domainbed.algorithms import ALGORITHMS
from domainbed.cli import main
from domainbed.cli.launching import launch_sweep
from domainbed.config.run_fields import RunOptions
from domainbed.core import plugins
from domainbed.core.names import AVERAGES
from domainbed.datasets import DATASETS
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.sweeps.selected import load_selected
from domainbed.training import load_model
from domainbed.training import run as train


def test_the_help_names_all_averages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["model", "predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"averaged weights of the run: {', '.join(AVERAGES)} (default: the last" in text


@pytest.mark.parametrize("words", [["predict", "--domain", "0"], ["diagnose"]])
def test_a_sweep_is_told_from_a_run_before_anything_is_printed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").touch()
    command, *flags = words
    with pytest.raises(SystemExit) as exit:
        main(["model", command, str(tmp_path), *flags])
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "")
    assert f"{tmp_path} is a sweep and holds no run.json: name one of its runs" in err


def printed(capsys: pytest.CaptureFixture[str], *words: Any) -> list[list[str]]:
    with pytest.raises(SystemExit) as exit:
        main(["model", "predict", *map(str, words)])
    out, err = capsys.readouterr()
    assert exit.value.code == 0, err
    return list(csv.reader(out.splitlines()))


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    with pytest.raises(SystemExit) as exit:
        main(["model", "predict", *map(str, words)])
    out, err = capsys.readouterr()
    assert (exit.value.code, out) == (2, "")
    return err


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on images of 28 × 28, by a relative path; the working folder has changed since."""
    place = tmp_path_factory.mktemp("place")
    write_folder(place / "pets", ((30, 34),), "ab")
    config = {
        "datasets": ["folder:pets"],
        "algorithms": ["ERM", "CORAL"],
        "selection": ["training-domain"],
        "hparams": {"image_size": 28, "batch_size": 4},
        **{"trials": 1, "hparams_seeds": 1, "steps": 2, "launcher": "debug", "keep": "selected"},
        **{"device": "cpu", "num_workers": 0, "output_dir": "results"},
    }
    before = Path.cwd()
    os.chdir(place)
    try:
        launch_sweep(load_config(None, config), skip_confirmation=True)
    finally:
        os.chdir(before)
    return place / "results"


def run_in(sweep: Path, algorithm: str) -> Path:
    planned = json.loads((sweep / "plan.json").read_text())["runs"]
    return next(
        sweep / name
        for name, run in planned.items()
        if run["algorithm"] == algorithm and run["test_envs"] == [0]
    )


def test_folders_globs_and_the_choice_of_a_sweep(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = sweep.parent / "pets"
    folder = run_in(sweep, "CORAL")
    everything = sorted(map(str, pets.glob("*/*/*")))
    head, *rows = printed(capsys, folder, pets)
    assert head == ["file", "class", "p(cat)", "p(dog)"]
    assert [row[0] for row in rows] == everything
    assert all(sum(map(float, row[2:])) == pytest.approx(1, abs=2e-4) for row in rows)
    assert printed(capsys, folder, f"{pets}/**/*.png") == [head, *rows]
    chosen = ("--algorithm", "CORAL", "--selection", "training-domain", "--test_env", 0)
    _, row = printed(capsys, sweep, everything[0], *chosen)
    cell = {"algorithm": "CORAL", "selection": "training-domain", "test_env": 0}
    model = load_selected(sweep, dataset="pets", device="cpu", **cell)
    assert model.preprocess is not None
    expected = model.probabilities(model.preprocess(Path(everything[0]))[None])[0]
    assert list(map(float, row[2:])) == pytest.approx(expected.tolist(), abs=1e-4)
    said = refused(capsys, sweep, pets, *chosen[:2])
    assert "is a sweep, of which --algorithm, --selection and --test_env name a model: give" in said
    assert "give --selection, --test_env\n" in said
    said = refused(capsys, sweep, pets, *chosen, "--average", "ema")
    assert "leave --average out" in said
    said = refused(capsys, sweep, "--domain", 0, *chosen)
    assert "choose a model for files of images: with --domain or --save_predictions, name" in said
    (pets.parent / "empty").mkdir()
    assert "no images in" in refused(capsys, folder, pets.parent / "empty")


def test_where_the_images_were_is_remembered(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pets = run_in(sweep, "ERM"), sweep.parent / "pets"
    monkeypatch.chdir("/")
    head, *rows = printed(capsys, run, "--domain", 1, "--device", "cpu")
    assert head == ["position", "file", "label", "class", "p(cat)", "p(dog)"]
    for position, file, label, *_ in rows:
        assert Path(file) == sorted((pets / "b").glob("*/*"))[int(position)]
        assert label == Path(file).parent.name
    pets.rename(pets.with_name("moved"))
    try:
        said = refused(capsys, run, "--domain", 1, "--device", "cpu")
        assert f"was trained on 'folder:{pets}', which is not there or not registered: say" in said
    finally:
        pets.with_name("moved").rename(pets)


def test_each_output_of_a_regression_has_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS._entries, "VectorRegressionVectors", VectorRegressionVectors)
    spec = RunSpec.create("VectorRegressionVectors", "ERM", [2], hparams={"batch_size": 8})
    train(spec, tmp_path, RunOptions(device="cpu"))
    head, *rows = printed(capsys, tmp_path, "--domain", 1, "--device", "cpu")
    assert head == ["position", "label(0)", "label(1)", "0", "1"]
    x, y = VectorRegressionVectors("", [], {}).datasets[1][:]
    outputs = load_model(tmp_path, "cpu").module.predict(x)
    for position, *cells in rows:
        expected = [*y[int(position)].tolist(), *outputs[int(position)].tolist()]
        assert [float(cell) for cell in cells] == pytest.approx(expected, rel=1e-4)


def test_a_plugin_that_a_model_lacks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from domainbed.algorithms import ALGORITHMS, ERM\n\n\n"
        "@ALGORITHMS.register\nclass Mine(ERM):\n    pass\n"
    )
    monkeypatch.setattr(ALGORITHMS, "_entries", dict(ALGORITHMS._entries))
    monkeypatch.setattr(plugins, "_imported", {})
    plugins.import_plugins([str(plugin)])
    spec = RunSpec.create("Debug28", "Mine", [0], steps=1, hparams={"batch_size": 4})
    train(spec, tmp_path / "run", RunOptions(device="cpu"))
    ALGORITHMS._entries.pop("Mine")
    plugins._imported.clear()
    said = refused(capsys, tmp_path / "run", "--domain", 0)
    assert "unknown algorithm 'Mine'" in said
    assert "Made with --plugins mine.py\n" in said
    assert "?. " not in said
    assert "another version" not in said
