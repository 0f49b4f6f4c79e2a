"""Data that is not what a run was trained on: noticed where it resumes, is read and is used."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from domainbed.datasets import DATASETS, MultipleDomainDataset, load_dataset
from domainbed.datasets import listing as listing_module
from domainbed.datasets.base import domains_of
from domainbed.datasets.listing import content_digests, data_facts
from domainbed.diagnostics import diagnose
from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.sweeps.finished import adapt_runs, average_runs
from domainbed.training import RunOptions, predictions, run
from domainbed.training.artifacts import difference


class Letters(MultipleDomainDataset):
    """Three domains of two classes, whose names a test changes."""

    ENVIRONMENTS = ("a", "b", "c")
    names = ("x", "y")

    def __init__(self, root, test_envs, hparams):
        generator = torch.Generator().manual_seed(0)
        self.input_shape, self.num_classes, self.classes = (4,), 2, self.names
        self.datasets = [
            TensorDataset(torch.randn(20, 4, generator=generator), torch.arange(20) % 2)
            for _ in self.ENVIRONMENTS
        ]


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setattr(Letters, "ENVIRONMENTS", ("a", "b", "c"))
    monkeypatch.setattr(Letters, "names", ("x", "y"))
    DATASETS.register(Letters)
    yield Letters
    del DATASETS._entries["Letters"]


def write_images(root, domains="ab", per_class=2, seed=0):
    """Files of one size, whatever the seed."""
    random = np.random.RandomState(seed)
    for domain in domains:
        for name in ("cat", "dog"):
            (root / domain / name).mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                pixels = random.randint(0, 256, (8, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{i}.bmp")
    return root


def facts_of(root, data_dir):
    dataset = load_dataset.__globals__["get_dataset_class"](f"folder:{root}")("", [0], {})
    return data_facts(dataset, domains_of(dataset), dataset.domain_names, str(data_dir))


def test_facts_change_with_any_image_label_and_name_and_not_with_the_place(tmp_path):
    root = write_images(tmp_path / "pets")
    facts = facts_of(root, tmp_path)
    assert facts["domains"] == ["a", "b"]
    assert facts["classes"] == ["cat", "dog"]
    assert facts["images"] == [4, 4]
    elsewhere = facts_of(write_images(tmp_path / "elsewhere" / "x"), tmp_path)
    assert difference(facts, elsewhere) == ""
    write_images(root, seed=1)
    assert difference(facts, facts_of(root, tmp_path)) == "other images or labels"
    (root / "a/cat/0.bmp").rename(root / "a/dog/9.bmp")
    (root / "a/dog/0.bmp").rename(root / "a/cat/0.bmp")
    assert difference(facts, facts_of(root, tmp_path)) == "other images or labels"
    (root / "b").rename(root / "c")
    assert difference(facts, facts_of(root, tmp_path)) == "domains were a, b, and are a, c"


def test_contents_are_read_again_only_where_they_changed(tmp_path, monkeypatch):
    root = write_images(tmp_path / "pets")
    files = sorted(root.glob("*/*/*"))
    before, _ = content_digests(files, tmp_path / "cache")
    read, usual = [], listing_module._seen
    monkeypatch.setattr(listing_module, "_seen", lambda path: read.append(path) or usual(path))
    again, _ = content_digests(files, tmp_path / "cache")
    assert read == []
    assert (again == before).all()
    files[3].write_bytes(files[0].read_bytes())
    changed, _ = content_digests(files, tmp_path / "cache")
    assert read == [str(files[3])]
    assert (changed != before).any(axis=1).tolist() == [False] * 3 + [True] + [False] * 4
    (kept,) = (tmp_path / "cache/contents").iterdir()
    kept.write_bytes(kept.read_bytes()[:-30])
    assert (content_digests(files, tmp_path / "cache")[0] == changed).all()
    assert len(read) == 9


def test_a_run_does_not_resume_on_other_data(tmp_path, letters):
    spec = RunSpec.create("Letters", "ERM", [0], steps=3, hparams={"batch_size": 4})
    run(spec, tmp_path / "run")
    kept = json.loads((tmp_path / "run/environment.json").read_text())["data"]
    assert kept["domains"] == ["a", "b", "c"]
    (tmp_path / "run/done").unlink()
    letters.names = ("y", "x")
    with pytest.raises(UserError, match=r"other data \(classes were x, y, and are y, x\)"):
        run(spec, tmp_path / "run")
    letters.names = ("x", "y")
    run(spec, tmp_path / "run")
    assert (tmp_path / "run/done").exists()


def test_what_is_made_of_finished_runs_refuses_renamed_data(tmp_path, letters):
    spec = RunSpec.create("Letters", "ERM", [0], steps=2, hparams={"batch_size": 4})
    folder = tmp_path / spec.run_id
    run(spec, folder)
    made = {
        "predict": lambda: list(predictions(RunFolder(folder), RunOptions(), None, 1, "out")),
        "average": lambda: list(average_runs(tmp_path, "ensemble")),
        "adapt": lambda: list(adapt_runs(tmp_path)),
        "diagnose": lambda: diagnose(folder),
    }
    changes = {"names": ("x", "z"), "ENVIRONMENTS": ("b", "a", "c")}
    for attribute, value in changes.items():
        usual = getattr(letters, attribute)
        setattr(letters, attribute, value)
        for name in made:
            with pytest.raises(UserError, match=r"was trained on the (domains|classes)"):
                made[name]()
        setattr(letters, attribute, usual)


def test_two_datasets_of_a_name_are_two_in_tables(tmp_path, letters, caplog):
    for trial, names in enumerate([("x", "y"), ("x", "y"), ("x", "z")]):
        letters.names = names
        spec = RunSpec.create(
            "Letters", "ERM", [0], steps=1, trial_seed=trial, hparams={"batch_size": 4}
        )
        run(spec, tmp_path / str(trial))
    (tmp_path / "1/environment.json").unlink()  # as of an earlier version
    caplog.set_level(logging.WARNING)
    labels = load_records(tmp_path).runs["dataset"].tolist()
    assert labels[0] == labels[1] != labels[2]
    assert all(label.startswith("Letters [data ") for label in labels)
    assert "2 datasets are called Letters, and are told apart" in caplog.text
