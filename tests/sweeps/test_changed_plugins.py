"""Runs keep the versions of their plug-ins, and a changed one is not passed over in silence."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from domainbed.algorithms import ALGORITHMS
from domainbed.cli import main
from domainbed.core import plugins
from domainbed.metrics import LABEL_TYPES, METRICS
from domainbed.selection import SELECTION_METHODS

MINE = """
from domainbed.algorithms import ERM, register_algorithm
from domainbed.metrics import LABEL_TYPES, METRICS
from domainbed.selection import ORACLE, SelectionMethod, register

@register_algorithm
class Quiet(ERM):
    paper = "{paper}"

register(SelectionMethod("last-word", "the last word", False, lambda r: ORACLE.score(r)))
"""
SWEEP = """
plugins: quiet.py
datasets: Debug28
algorithms: [ERM, Quiet]
test_envs: [0]
trials: 1
hparams_seeds: 1
steps: 1
hparams: {batch_size: 2}
selection: [oracle, last-word]
launcher: debug
"""


class World:
    """A folder with a config, its plug-in, and what commands print."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.config, self.capfd = folder / "configs" / "two.yaml", capfd
        self.root, self.plugin = folder / "results" / "two", folder / "configs" / "quiet.py"
        self.config.parent.mkdir()
        self.write(1)
        self.config.write_text(SWEEP)

    def write(self, version: int) -> None:
        self.plugin.write_text(MINE.format(paper=f"version {version}"))

    def run(self, *words: object, status: int = 0) -> str:
        self.capfd.readouterr()
        plugins.warn_once.cache_clear()
        with warnings.catch_warnings(record=True) as told, pytest.raises(SystemExit) as ended:
            main(list(map(str, words)))
        said = "".join([*self.capfd.readouterr(), *(f"{each.message}\n" for each in told)])
        assert ended.value.code == status, said
        return said

    def runs(self) -> dict[str, Path]:
        planned = json.loads((self.root / "plan.json").read_text())["runs"]
        return {run["algorithm"]: self.root / name for name, run in planned.items()}


@pytest.fixture
def world(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for registry in (ALGORITHMS, SELECTION_METHODS):
        for part in ("_entries", "_modules"):
            monkeypatch.setattr(registry, part, dict(getattr(registry, part)))
    monkeypatch.setattr(plugins, "_imported", {})
    return World(tmp_path, capfd)


def digests(folder: Path) -> dict[str, str]:
    return json.loads((folder / "environment.json").read_text())["plugins"]


def test_a_changed_plugin_is_named_and_nothing_is_lost(world):
    world.run("sweep", "launch", world.config)
    erm, quiet = world.runs()["ERM"], world.runs()["Quiet"]
    first = digests(quiet)
    assert digests(erm) == {}  # the plug-in defines nothing of it
    assert json.loads((world.root / "plan.json").read_text())["plugins"] == first
    world.write(2)
    said = world.run("sweep", "launch", world.config, status=2)
    assert said == (
        "error: 1 run in 'results/two', such as Quiet on Debug28, test domain 0, hparams seed 0, "
        "trial 0, was made with another version of quiet.py: --plugins_changed accept counts and "
        "resumes what is there, --plugins_changed redo does it again and keeps it\n"
    )
    assert digests(quiet) == first
    said = world.run("sweep", "launch", world.config, "--plugins_changed", "accept")
    assert "2 done, 0 failed, 0 running; 0 to do" in said
    before = (quiet / "results.jsonl").read_bytes()
    assert world.run("sweep", "pack", world.root) == "packed 2 runs\n"  # their weights stay
    assert sorted(each.name for each in quiet.iterdir()) == ["model.pkl", "model.pkl.sha256"]
    of_domain = [quiet, "--domain", 0, "--plugins", world.plugin]
    said = world.run("model", "predict", *of_domain)
    assert said.count("results/two were made with another version of quiet.py\n") == 1
    said = world.run("sweep", "launch", world.config, "--plugins_changed", "redo")
    assert "1 run done with other plug-ins: redone" in said
    assert digests(quiet) != first
    assert digests(quiet / "before" / "1") == first
    assert (quiet / "before" / "1" / "results.jsonl").read_bytes() == before
    assert not (erm / "before").exists()
    assert "0 to do" in world.run("sweep", "launch", world.config)
    assert "another version" not in world.run("model", "predict", *of_domain)
    assert "plugins_changed" not in (world.root / "sweep.yaml").read_text()
    assert "Total records: 2" in world.run("collect", world.root, "--selection", "oracle")
    (quiet / "done").unlink()  # what was done before is not deleted with a run that was redone
    deleting = ("sweep", "delete-incomplete", world.root, "--skip_confirmation")
    assert world.run(*deleting) == "no incomplete runs\n"
    assert (quiet / "before" / "1" / "done").is_file()


def test_a_single_run_says_the_same(world):
    words = ["train", "--dataset", "Debug28", "--algorithm", "Quiet", "--steps", 1]
    words += ["--output_dir", "run", "--plugins", world.plugin]
    world.run(*words)
    assert "Was finished before" in world.run(*words)
    world.write(2)
    said = world.run(*words, status=2)
    assert said.startswith("error: the run in run was made with another version of quiet.py: ")
    assert "Was finished before" in world.run(*words, "--plugins_changed", "accept")
    assert "Finished: " in world.run(*words, "--plugins_changed", "redo")
    assert Path("run/before/1/done").is_file()
    assert "Was finished before" in world.run(*words)


def test_a_sweep_is_read_without_its_plugins(world, monkeypatch):
    world.run("sweep", "launch", world.config)
    world.run("sweep", "export", world.root, "two.parquet")
    monkeypatch.delitem(ALGORITHMS._entries, "Quiet")
    monkeypatch.delitem(SELECTION_METHODS._entries, "last-word")
    monkeypatch.setattr(plugins, "_imported", {})
    line = (
        "was planned with last-word, which nothing here registers (--plugins "
        f"{world.plugin} brings it): shown without"
    )
    of_export = line.replace(str(world.plugin), world.plugin.name)  # paths are not exported
    for folder, expected in ((world.root, line), ("two.parquet", of_export)):
        said = world.run("collect", folder)
        assert said.count(expected) == 1
        assert "Quiet" in said
        assert "the last word" not in said
    assert line in world.run("compare", world.root)
    assert line in world.run("report", world.root)
    of_cell = ["--dataset", "Debug28", "--algorithm", "Quiet", "--test_env", 0]
    world.run("top-hparams", "--input_dir", world.root, *of_cell, "--selection", "oracle")
    said = world.run("collect", world.root, "--selection", "last-word", status=2)
    assert said.startswith("error: unknown selection method 'last-word'. Known: ")
    assert said.endswith(f". Made with --plugins {world.plugin}\n")
    assert "Quiet" in world.run("sweep", "status", world.root)
    assert "the last word" in world.run("collect", world.root, "--plugins", world.plugin)


COUNTS = """
from domainbed.metrics import METRICS, register_label_type
from domainbed.metrics.labels import CLASSES

@METRICS.register
class highest:
    def update(self, outputs, targets, extras): self.value = outputs.max().item()
    def compute(self): return self.value

@register_label_type
class Kinds(type(CLASSES)):
    name, default_metrics, selection_metric = "kinds", ("highest", "accuracy"), "highest"
"""


def test_labels_of_a_plugin_are_read_without_it(world, monkeypatch):
    for registry in (LABEL_TYPES, METRICS):
        for part in ("_entries", "_modules"):
            monkeypatch.setattr(registry, part, dict(getattr(registry, part)))
    world.plugin.write_text(COUNTS)
    world.config.write_text(
        SWEEP.replace("Quiet", "CORAL").replace("last-word", "worst-domain") + "labels: kinds\n"
    )
    world.run("sweep", "launch", world.config)
    table = "Dataset: Debug28, highest, model selection method: test-domain validation set (oracle)"
    assert table in world.run("collect", world.root)
    assert list(digests(world.runs()["CORAL"])) == ["quiet.py"]
    monkeypatch.delitem(LABEL_TYPES._entries, "kinds")
    monkeypatch.delitem(METRICS._entries, "highest")
    monkeypatch.setattr(plugins, "_imported", {})
    line = (
        f"are chosen by label type kinds, which nothing here registers (--plugins "
        f"{world.plugin} brings it): chosen by accuracy instead"
    )
    for command in ("collect", "compare", "report"):
        assert line in world.run(command, world.root)
    said = world.run("collect", world.root)
    assert table.replace(" highest,", "") in said
    assert table in world.run("collect", world.root, "--plugins", world.plugin)


def test_a_folder_of_before_names_its_plugins_as_it_did(world):
    """A launch of an earlier version kept paths as they were given, from its working directory."""
    world.run("sweep", "launch", world.config)
    kept = world.root / "sweep.yaml"
    text = kept.read_text().replace(str(world.plugin), "configs/quiet.py")
    kept.write_text(text.partition("\n")[2])  # without the digest, which it did not have
    said = world.run("sweep", "launch", world.root, status=2)
    assert "if you trust it, add --plugins configs/quiet.py\n" in said
    assert "2 done" in world.run("sweep", "launch", world.root, "--plugins", "configs/quiet.py")


def test_what_is_no_list_of_methods_is_damage(world):
    world.run("sweep", "launch", world.config)
    kept = world.root / "sweep.yaml"
    text = kept.read_text().replace("selection:\n- oracle\n- last-word", "selection: 3")
    kept.write_text(text.partition("\n")[2])  # without its digest
    said = world.run("collect", world.root, status=2)
    assert "sweep.yaml is damaged: 3 are no selection methods, repair it" in said
