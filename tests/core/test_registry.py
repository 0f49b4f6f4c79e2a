"""The registry: decorators, collisions, suggestions and plug-in packages."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import domainbed
from domainbed.algorithms import ALGORITHMS, ERM, Algorithm, get_algorithm_class, register_algorithm
from domainbed.cli import COMMANDS
from domainbed.core.plugins import import_plugins
from domainbed.core.registry import Registry
from domainbed.datasets import DATASETS, PACS, get_dataset_class
from domainbed.errors import UserError
from domainbed.hparams import Fixed, search_space
from domainbed.launchers import LAUNCHERS
from domainbed.metrics import METRICS
from domainbed.reporting.section import SECTION_RENDERERS
from domainbed.runs.trackers import TRACKERS, Tracker
from domainbed.selection import SELECTION_METHODS
from domainbed.spec import RunSpec

PLUGIN = Path(__file__).parents[1] / "plugin_package"


@pytest.fixture
def shapes():
    registry = Registry("shape")

    @registry.register
    class Circle: ...

    @registry.register(name="Box")
    class Square: ...

    registry.register(int, name="Number")
    return registry


def test_decorator_forms(shapes):
    assert list(shapes) == ["Circle", "Box", "Number"]
    assert len(shapes) == 3
    assert shapes["Circle"].__name__ == "Circle"
    assert shapes["Box"].__name__ == "Square"
    assert shapes["Number"] is int
    assert "Circle" in shapes
    assert "Square" not in shapes


def test_unknown_name(shapes):
    with pytest.raises(UserError) as caught:
        shapes["circel"]
    expected = "unknown shape 'circel'. Did you mean 'Circle'? Known: Circle, Box, Number"
    assert str(caught.value) == expected
    with pytest.raises(UserError, match=r"^unknown shape 'zzzzzz'. Known: Circle"):
        shapes["zzzzzz"]


def test_the_command_that_a_message_names_is_there():
    for name, registry in (("algorithms", ALGORITHMS), ("datasets", DATASETS)):
        with pytest.raises(UserError, match=f"`domainbed list {name}` lists the names"):
            registry["zzzzzz"]
        assert f"list {name}" in COMMANDS
    with pytest.raises(UserError, match=r"unknown metric 'zzzzzz'. Known: accuracy, loss, "):
        METRICS["zzzzzz"]


def test_get_has_a_default(shapes):
    assert shapes.get("Hexagon") is None
    assert shapes.get("Number") is int


def test_duplicate(shapes):
    with pytest.raises(ValueError, match=r"shape 'Number' is registered already, by builtins.int"):
        shapes.register(float, name="Number")
    assert shapes["Number"] is int
    assert shapes.register(int, name="Number") is int


TWICE = """
from domainbed.datasets import DATASETS, MultipleDomainDataset

@DATASETS.register
class Twice(MultipleDomainDataset): ...

{again}
"""
AGAIN = """
@DATASETS.register
class Twice(MultipleDomainDataset): number = 2
"""


def test_a_class_twice_in_one_plugin(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    monkeypatch.setattr(DATASETS, "_modules", dict(DATASETS._modules))
    file = tmp_path / "twice.py"
    file.write_text(TWICE.format(again=""))
    import_plugins([str(file)])
    del sys.modules["domainbed_plugin_twice"]
    import_plugins([str(file)])  # as a worker imports what its parent has imported
    assert not recwarn
    file.write_text(TWICE.format(again=AGAIN))
    del sys.modules["domainbed_plugin_twice"]
    with pytest.warns(UserWarning, match="Twice registers the dataset 'Twice' twice: the later"):
        import_plugins([str(file)])
    assert DATASETS["Twice"].number == 2


def test_what_is_no_dataset_is_refused():
    with pytest.raises(ValueError, match="Plain is no dataset: inherit from"):
        DATASETS.register(type("Plain", (), {}))


def test_own_names_cannot_be_taken():
    class Impostor(ERM): ...

    with pytest.raises(ValueError, match="algorithm 'ERM' is registered already"):
        register_algorithm(Impostor, name="ERM")
    assert get_algorithm_class("ERM") is ERM


def test_built_in_names():
    assert list(ALGORITHMS)[:7] == ["ERM", "CORAL", "IRM", "VREx", "Fish", "Fishr", "DANN"]
    assert get_dataset_class("PACS") is DATASETS["PACS"] is PACS
    with pytest.raises(UserError, match="Did you mean 'RotatedMNIST'"):
        get_dataset_class("RotatedMINST")


def test_hyper_parameters_declared_at_registration(monkeypatch):
    monkeypatch.setattr(ALGORITHMS, "_entries", dict(ALGORITHMS._entries))

    @register_algorithm(name="Theirs", search_space={"strength": Fixed(3)}, paper="A paper")
    class TheirMethod(ERM): ...

    assert get_algorithm_class("Theirs") is TheirMethod
    assert TheirMethod.paper == "A paper"
    assert search_space("Theirs", "PACS")["strength"] == Fixed(3)
    assert "strength" not in search_space("ERM", "PACS")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The plug-in package, installed into a folder of its own from a copy of its source."""
    pytest.importorskip("setuptools", reason="installing the plug-in needs setuptools")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "plugin_methods").mkdir()
    for file in [PLUGIN / "pyproject.toml", *(PLUGIN / "plugin_methods").glob("*.py")]:
        (source / file.relative_to(PLUGIN)).write_bytes(file.read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target"]
    command = [sys.executable, "-m", "pip", "install", *options, str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def run_with_plugin(installed, code):
    package = str(Path(domainbed.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), package])}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


TRAIN = """
import json, sys
from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training.trainer import RunOptions, run

assert "HalfERM" in list(ALGORITHMS) and "TwoBlobs" in list(DATASETS)
assert "plugin_methods" not in sys.modules
spec = RunSpec.create("TwoBlobs", "HalfERM", [2], hparams={"batch_size": 4})
folder = RunFolder(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
run(spec, folder, RunOptions(device="cpu", skip_model_save=True))
for line in folder.results.read_text().splitlines():
    record = json.loads(line)
    print(record["step"], record["hparams"]["slow_down"], record["env0_out_acc"] >= 0)
print(record["hparams"]["featurizer"], "resnet18" in record["hparams"])
"""

BROKEN = """
from domainbed.algorithms import ALGORITHMS
from domainbed.errors import UserError
from domainbed.selection import SELECTION_METHODS
try:
    ALGORITHMS["BrokenMethod"]
except UserError as error:
    print(error)
"""


def test_plugin_trains(installed, tmp_path):
    lines = run_with_plugin(installed, f"FOLDER = {str(tmp_path / 'run')!r}\n{TRAIN}")
    assert lines == ["0 2.0 True", "10 2.0 True", "20 2.0 True", "flat False"]


SWEEP = """
import json, sys
from pathlib import Path
from domainbed.cli import main

Path("sweep.yaml").write_text(json.dumps({
    "datasets": ["TwoBlobs"], "algorithms": ["HalfERM"], "test_envs": [[0]], "trials": 1,
    "hparams_seeds": 1, "steps": 2, "labels": "grades", "selection": ["first-step"],
    "trackers": "silent", "launcher": "backwards", "output_dir": "out",
}))
for words in ("sweep launch sweep.yaml", "collect out --format titles"):
    try:
        main(words.split())
    except SystemExit as ended:
        assert not ended.code
print(sorted(json.loads(Path("out/plan.json").read_text())["plugins"]))
(environment,) = Path("out").glob("*/environment.json")
print(sorted(json.loads(environment.read_text())["plugins"]))
"""


def test_a_sweep_of_names_that_a_package_advertises(installed, tmp_path, monkeypatch):
    """Dataset, algorithm, labels, metric, selection method, tracker, launcher and format."""
    monkeypatch.chdir(tmp_path)
    *_, title, averages, planned, of_run = run_with_plugin(installed, SWEEP)
    assert title == (
        "Dataset: TwoBlobs, distance (lower is better), model selection method: the first step"
    )
    assert averages.startswith("Averages")
    assert planned == of_run == "['plugin_methods']"


def test_a_name_that_two_packages_advertise(monkeypatch):
    points = [EntryPoint("square", f"{package}:Square", "shapes") for package in ("one", "two")]
    monkeypatch.setattr("domainbed.core.registry.entry_points", lambda **_: points)
    said = r"shape 'square' comes from several installed packages \(one:Square, two:Square\)"
    with pytest.raises(UserError, match=said):
        Registry("shape", entry_point_group="shapes")["square"]


def test_broken_plugin(installed):
    (message,) = run_with_plugin(installed, BROKEN)
    assert message.startswith(
        "algorithm 'BrokenMethod' comes from the plug-in 'plugin_methods.broken:BrokenMethod', "
        "which cannot be imported (ModuleNotFoundError: No module named 'a_package"
    )
    assert "uninstall that package" in message


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (lambda x: x, "is no algorithm: inherit from domainbed.algorithms.Algorithm"),
        (type("Mine", (), {}), "Mine is no algorithm"),
        (type("Mine", (Algorithm,), {"update": print}), "Mine has no 'predict'"),
        (type("Mine", (Algorithm,), {"predict": print}), "neither 'objective' nor 'update'"),
    ],
)
def test_what_cannot_be_an_algorithm(entry, says):
    with pytest.raises(ValueError, match=says):
        register_algorithm(entry, name="Mine")
    assert "Mine" not in ALGORITHMS


def test_what_is_no_launcher_tracker_format_or_method_is_refused():
    for registry, says in (
        (LAUNCHERS, "print is no launcher: inherit from domainbed.launchers.base.Launcher"),
        (TRACKERS, "print is no tracker: inherit from domainbed.runs.trackers.Tracker"),
        (SELECTION_METHODS, "print> is no domainbed.selection.SelectionMethod"),
    ):
        with pytest.raises(ValueError, match=says):
            registry.register(print, name="mine")
    with pytest.raises(ValueError, match="3 is no format"):
        SECTION_RENDERERS.register(3, name="mine")
    with pytest.raises(ValueError, match="tracker Mine has no begin, end, record"):
        TRACKERS.register(type("Mine", (Tracker,), {}))


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"search_space": {"a": 3}}, "search_space of Mine: 'a' is 3, expected Fixed"),
        ({"search_space": ["a"]}, r"search_space of Mine is \['a'\]: expected names"),
        ({"options": {"a": Fixed(1)}}, "options of Mine: 'a' is .*, expected Option"),
    ],
)
def test_declarations_that_are_none(attributes, says, monkeypatch):
    monkeypatch.setitem(ALGORITHMS._entries, "Mine", type("Mine", (ERM,), attributes))
    with pytest.raises(UserError, match=says):
        RunSpec.create("PACS", "Mine", [0])


def test_of_many_names_the_nearest_is_told_alone():
    many = Registry("algorithm")
    for number in range(13):
        many.register(object(), name=f"Method{number:02}")
    with pytest.raises(
        UserError, match=r"^unknown algorithm 'method3'. Did you mean 'Method\d+'\?$"
    ):
        many["method3"]
    with pytest.raises(UserError, match=r"'zzz'. `domainbed list algorithms` lists the names"):
        many["zzz"]


def test_a_word_of_a_title_is_enough_for_a_suggestion():
    with pytest.raises(UserError, match=r"'val'. Did you mean 'training-domain'\? Known: training"):
        SELECTION_METHODS["val"]
