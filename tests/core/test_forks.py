"""Forks of DomainBed as plug-ins; their files are written here, in the style of each family."""

from __future__ import annotations

import os
import pickle
import sys
from textwrap import dedent

import numpy as np
import pytest
import torch

import domainbed
from domainbed.algorithms import ALGORITHMS, ERM, get_algorithm_class
from domainbed.algorithms.foreign_code import batch_of
from domainbed.cli import main
from domainbed.config.run_facts import LentValue
from domainbed.core import forks, plugins
from domainbed.core.plugins import changed, import_plugins, located, named
from domainbed.core.seeding import seed_hash
from domainbed.datasets import DATASETS, domains_of, load_dataset
from domainbed.errors import UserError
from domainbed.hparams import default_hparams, random_hparams
from domainbed.spec import RunSpec
from domainbed.training import run
from domainbed.training.trial import trial

OF_DOMAINBED = {
    "domainbed/__init__.py": "",
    "domainbed/lib/__init__.py": "",
    "domainbed/lib/misc.py": """
        import hashlib

        def seed_hash(*args):
            return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % (2**31)
        """,
    "domainbed/networks.py": """
        import torch

        class Flat(torch.nn.Linear):
            def forward(self, x):
                return super().forward(x.flatten(1))
        """,
    "domainbed/lazy.py": """
        import sys, types
        sys.modules[__name__] = types.SimpleNamespace(part=3)
        """,
    "domainbed/algorithms.py": """
        import numpy as np
        import torch
        from domainbed import lazy
        import absent_package.parts
        from absent_package import layers, Base
        from torch import no_such_name
        if layers.version(torch) < layers.version("1.7"):
            raise AssertionError
        from domainbed import networks
        from domainbed import never_committed
        try:
            import absent_tools
        except ImportError:
            absent_tools = None

        class Algorithm(torch.nn.Module):
            def __init__(self, input_shape, num_classes, num_domains, hparams):
                super().__init__()
                self.hparams = hparams

            def update(self, minibatches, unlabeled=None):
                raise NotImplementedError

            def predict(self, x):
                raise NotImplementedError

        class ERM(Algorithm):
            def __init__(self, input_shape, num_classes, num_domains, hparams):
                super().__init__(input_shape, num_classes, num_domains, hparams)
                size = input_shape[0] * input_shape[1] * input_shape[2]
                self.network = networks.Flat(size, num_classes)
                self.optimizer = torch.optim.SGD(self.network.parameters(), lr=hparams["lr"])

            def loss(self, x, y):
                return torch.nn.functional.cross_entropy(self.predict(x), y)

            def update(self, minibatches, unlabeled=None):
                loss = sum(self.loss(x, y) for x, y in minibatches)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                return {"loss": loss.item()}

            def predict(self, x):
                return self.network(x)

            def train(self):
                self.network.train()

            def eval(self):
                self.network.eval()

        class Tilted(ERM):
            def __init__(
                self, input_shape, num_classes, num_domains, hparams, args, fast, n_step, start=None
            ):
                super().__init__(input_shape, num_classes, num_domains, hparams)
                assert (start, fast, n_step) == ("warm", False, hparams["steps"])
                self.rate, self.names = args.tilt, hparams.class_names
                if args.dataset == "RotatedDigits":
                    assert hparams.rotation == hparams["rotation"] == "bilinear"

            def loss(self, x, y):
                from domainbed.lib.misc import seed_hash
                assert seed_hash(self.rate) > 0 and absent_tools is None
                return super().loss(x, y) * self.hparams["tilt_weight"]

        class Warm(ERM):
            def __init__(self, input_shape, num_classes, num_domains, hparams, start=None):
                super().__init__(input_shape, num_classes, num_domains, hparams)
                self.start = start

        class AsWarm(Warm):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)

        class AbstractMatch(ERM):
            def __init__(self, input_shape, num_classes, num_domains, hparams, gaussian):
                super().__init__(input_shape, num_classes, num_domains, hparams)

            def loss(self, x, y):
                assert self.hparams["image_size"] == 28
                factor = self.hparams["tilt_weight"] * self.hparams.width * self.hparams["scale"]
                if self.hparams["form"] == "doubled" and self.hparams["limit"] is None:
                    factor = np.float(factor * self.hparams["twice"])
                return super().loss(x, y) * factor

        class Match(AbstractMatch):
            def __init__(self, input_shape, num_classes, num_domains, hparams):
                super().__init__(input_shape, num_classes, num_domains, hparams, True)

        class OfAbsent(ERM):
            def __init__(self, *args):
                super().__init__(*args)
                self.layer = layers.Dense(3)

        class OfAbsentBase(Base, ERM):
            pass
        """,
    "domainbed/hparams_registry.py": """
        import numpy as np
        from domainbed.lib import misc

        def _hparams(algorithm, dataset, random_seed):
            hparams = {}

            def _hparam(name, default_val, random_val_fn):
                random_state = np.random.RandomState(misc.seed_hash(random_seed, name))
                hparams[name] = (default_val, random_val_fn(random_state))

            rate = 1e-3 if dataset == "RotatedMNIST" else 5e-5
            _hparam("lr", rate, lambda r: 10**r.uniform(-5, -3))
            _hparam("batch_size", 8, lambda r: int(2**r.uniform(2, 4)))
            _hparam("image_size", 28, lambda r: 28)
            if "ColoredMNIST" in dataset:
                _hparam("width", 3, lambda r: 3)
            if algorithm == "Tilted":
                _hparam("tilt_weight", 0.5, lambda r: 10**r.uniform(-1, 1))
            return hparams

        def default_hparams(algorithm, dataset):
            return {a: b for a, (b, c) in _hparams(algorithm, dataset, 0).items()}

        def random_hparams(algorithm, dataset, seed):
            return {a: c for a, (b, c) in _hparams(algorithm, dataset, seed).items()}
        """,
    "domainbed/datasets.py": """
        import numpy as np
        import torch
        from PIL import Image
        from wilds_of_nobody import get_dataset

        class MultipleDomainDataset:
            N_STEPS = 5001
            ENVIRONMENTS = None

            def __getitem__(self, index):
                return self.datasets[index]

            def __len__(self):
                return len(self.datasets)

        class Views(torch.utils.data.Dataset):
            targets = [0, 1, 0, 1]

            def __len__(self):
                return 4

            def __getitem__(self, index):
                image = np.full((40, 30, 3), 60 * index, dtype=np.uint8)
                return Image.fromarray(image), index % 2, 10 * index

        class OfMNIST(MultipleDomainDataset):
            def __init__(self, root, environments, shape):
                pass

        class Pictures(MultipleDomainDataset):
            ENVIRONMENTS = np.array([2010, 2020])
            N_STEPS = 7

            def __init__(self, root, test_envs, hparams):
                self.datasets = [Views(), Views()]
                self.input_shape, self.num_classes = [3, 224, 224], 2
                assert hparams.data_augmentation
        """,
    "domainbed/scripts/arguments.py": """
        parser.add_argument('--scale', type=float, default=0.5)
        parser.add_argument('--tilt', type=float, default=7)
        """,
    "domainbed/scripts/train.py": """
        parser.add_argument('--tilt', type=float, default=0.25)
        parser.add_argument('--fast', action='store_true')
        parser.add_argument('--start_from', type=str, default='warm')
        parser.add_argument('--cap', type=float)
        hparams["limit"], hparams["lr"] = 3, 4
        hparams["limit"] = args.cap
        hparams["twice"] = float(args.tilt) * 8
        hparams["computed"] = len(dataset)
        algorithm = algorithm_class(dataset.input_shape, start=args.start_from)
        """,
}

OF_SWAD = {  # its `domainbed` has no __init__.py
    "domainbed/optimizers.py": """
        import torch

        def get_optimizer(name, params, **kwargs):
            return {"adam": torch.optim.Adam}[name](params, **kwargs)
        """,
    "domainbed/algorithms/__init__.py": "from .algorithms import *",
    "domainbed/algorithms/algorithms.py": """
        import torch
        from domainbed.optimizers import get_optimizer

        class Mean(torch.nn.Module):
            def __init__(self, input_shape, num_classes, num_domains, hparams):
                super().__init__()
                size = input_shape[0] * input_shape[1] * input_shape[2]
                self.linear = torch.nn.Linear(size, num_classes)
                name, self.rate = hparams["optimizer"], hparams.lr
                self.optimizer = get_optimizer(name, self.parameters(), lr=self.rate)

            def update(self, x, y, **kwargs):
                loss = torch.nn.functional.cross_entropy(self.predict(torch.cat(x)), torch.cat(y))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                return {"loss": loss.item()}

            def predict(self, x):
                return self.linear(x.flatten(1))
        """,
    "domainbed/hparams_registry.py": """
        import numpy as np

        def _hparams(algorithm, dataset, random_state):
            return {
                "optimizer": ("adam", "adam"),
                "lr": (1e-3, 10 ** random_state.uniform(-4.5, -2.5)),
                "batch_size": (8, 8),
            }

        def default_hparams(algorithm, dataset):
            hparams = _hparams(algorithm, dataset, np.random.RandomState(0))
            return {a: b for a, (b, c) in hparams.items()}

        def random_hparams(algorithm, dataset, seed):
            hparams = _hparams(algorithm, dataset, np.random.RandomState(seed))
            return {a: c for a, (b, c) in hparams.items()}
        """,
    "domainbed/datasets/__init__.py": "from domainbed.datasets.datasets import Dots",
    "domainbed/datasets/datasets.py": """
        import torch
        from torch.utils.data import TensorDataset

        class MultipleDomainDataset:
            ENVIRONMENTS = None

            def __getitem__(self, index):
                return self.datasets[index]

            def __len__(self):
                return len(self.datasets)

        class Dots(MultipleDomainDataset):
            INPUT_SHAPE = (3, 28, 28)
            ENVIRONMENTS = ["a", "b"]

            def __init__(self, root):
                self.input_shape, self.num_classes = self.INPUT_SHAPE, 2
                draws = [torch.randn(16, *self.INPUT_SHAPE) for _ in "ab"]
                self.datasets = [TensorDataset(x, (x[:, 0, 0, 0] > 0).long()) for x in draws]
        """,
}


QUIET = pytest.mark.filterwarnings("ignore:(algorithms|datasets) of")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for registry in (ALGORITHMS, DATASETS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_modules", dict(registry._modules))
    for module, name in ((forks, "FORKS"), (plugins, "_imported"), (plugins, "_roots")):
        monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(os, "environ", os.environ.copy())


def written(folder, files) -> str:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(content))
    return str(folder)


def test_classes_have_their_own_names_and_the_package_stays_what_it_is(tmp_path):
    fork = written(tmp_path / "tilts", OF_DOMAINBED)
    before = {name for name in sys.modules if name.startswith("domainbed.")}
    with pytest.warns(UserWarning, match="of tilts whose names are taken have a prefix: tilts-ERM"):
        import_plugins([fork])
    import_plugins([fork])  # which says and does nothing
    assert get_algorithm_class("ERM") is ERM
    tilted = get_algorithm_class("Tilted")
    assert get_algorithm_class("tilts-ERM").foreign is not ERM
    assert get_algorithm_class("tilts-ERM").foreign in tilted.foreign.__mro__
    assert not {"Algorithm", "AbstractMatch"} & ALGORITHMS.keys()
    assert "Match" in ALGORITHMS
    assert {"Pictures"} <= DATASETS.keys()
    assert "OfMNIST" not in DATASETS
    assert sys.modules["domainbed"] is domainbed
    assert {name for name in sys.modules if name.startswith("domainbed.")} == before
    assert not list((tmp_path / "tilts").rglob("__pycache__"))


@QUIET
def test_the_registry_of_the_fork_is_the_search_space(tmp_path):
    import_plugins([written(tmp_path / "tilts", OF_DOMAINBED)])
    defaults = default_hparams("Tilted", "PACS")
    assert (defaults["lr"], defaults["batch_size"], defaults["tilt_weight"]) == (5e-5, 8, 0.5)
    assert default_hparams("Tilted", "RotatedDigits")["lr"] == 1e-3
    assert "tilt_weight" not in default_hparams("tilts-ERM", "PACS")
    for seed in (3, 4):
        source = np.random.RandomState(seed_hash(seed, "tilt_weight"))
        assert random_hparams("Tilted", "PACS", seed)["tilt_weight"] == 10 ** source.uniform(-1, 1)
    with pytest.raises(
        UserError, match=r"'tilt_weight' of Tilted cannot be 'a': expected a number"
    ):
        RunSpec.create("Debug28", "Tilted", [0], hparams={"tilt_weight": "a"})


@QUIET
def test_values_that_the_registry_does_not_give_an_algorithm_come_from_elsewhere_in_the_fork(
    tmp_path,
):
    import_plugins([written(tmp_path / "tilts", OF_DOMAINBED)])
    assert "image_size" not in default_hparams("Match", "Debug28")
    result, note = trial("Match")
    assert result == "runs with", note
    assert note.split(", hyper-") == [
        "hyper-parameter 'tilt_weight' is 0.5, which the fork's registry has for Tilted",
        "parameter 'width' is 3, which the fork's registry has for ColoredMNIST",
        "parameter 'scale' is 0.5, as the fork's scripts set it",
        "parameter 'form' is 'doubled', which the fork compares it with",
        "parameter 'limit' is None, as the fork's scripts set it",
        "parameter 'twice' is 2.0, as the fork's scripts set it",
    ]
    assert not hasattr(np, "float")
    hparams = get_algorithm_class("Match")((3, 4, 4), 2, 2, {"lr": 0.1}).model.hparams
    with pytest.warns(LentValue):
        assert pickle.loads(pickle.dumps(hparams))["width"] == 3
    assert not hasattr(hparams, "nowhere")
    for read in (lambda: hparams["nowhere"], lambda: hparams.nowhere):
        with pytest.raises(UserError, match="'nowhere' has no value"):
            read()


@QUIET
def test_what_the_environment_lacks_is_named_where_it_is_used(tmp_path):
    import_plugins([written(tmp_path / "tilts", OF_DOMAINBED)])
    shapes = ((3, 4, 4), 2, 2, {"lr": 0.1, "batch_size": 8})
    assert get_algorithm_class("AsWarm")(*shapes).model.start == "warm"
    for name, lacking in (("OfAbsent", "absent_package.layers.Dense"), ("OfAbsentBase", "Base")):
        with pytest.raises(UserError, match=rf"tilts needs .*{lacking}, .*\(No module named"):
            get_algorithm_class(name)(*shapes)


@QUIET
def test_runs_of_forks_resume_and_know_their_version(tmp_path):
    fork = written(tmp_path / "tilts", OF_DOMAINBED)
    import_plugins([fork, written(tmp_path / "swad", OF_SWAD)])
    for name, dataset in (("Tilted", "RotatedDigits"), ("Mean", "Dots")):
        spec = RunSpec.create(dataset, name, [0], steps=4, checkpoint_freq=2)
        whole, parts = tmp_path / name, tmp_path / f"{name}-again"
        run(spec, whole)
        with pytest.raises(InterruptedError):
            run(spec, parts, on_step=interrupt_at_3)
        run(spec, parts)
        records = [(each / "results.jsonl").read_text().count("\n") for each in (whole, parts)]
        assert records == [3, 3]
        texts = [(each / "environment.json").read_text() for each in (whole, parts)]
        assert all(f'"{"tilts" if name == "Tilted" else "swad"}/": "sha256:' in t for t in texts)
    kept = named([fork])
    assert list(kept) == ["tilts/"]
    (tmp_path / "tilts" / "domainbed" / "networks.py").open("a").write("Wide = Flat\n")
    assert changed(kept.items()) == []
    import_plugins([fork])
    assert changed(kept.items()) == ["tilts/"]
    assert hasattr(sys.modules["domainbed_fork_tilts.domainbed.networks"], "Wide")


def interrupt_at_3(step: int) -> None:
    if step == 3:
        raise InterruptedError


def test_samples_become_inputs_labels_and_extras(tmp_path):
    fork = written(tmp_path / "tilts", OF_DOMAINBED)
    import_plugins([f"{fork}/domainbed/datasets.py"])
    dataset = load_dataset("Pictures", "", [0], {"data_augmentation": True}, 0)
    assert (dataset.ENVIRONMENTS, dataset.N_STEPS, dataset.input_shape) == (
        ["2010", "2020"],
        7,
        (3, 224, 224),
    )
    (batch,) = domains_of(dataset)[1].evaluation_batches([2, 3])
    x, y = batch
    grey = (torch.tensor([120.0, 180.0]) / 255 - 0.485) / 0.229
    torch.testing.assert_close(x[:, 0, 0, 0], grey)
    assert (x.shape, y.tolist()) == ((2, 3, 224, 224), [0, 1])
    assert batch.extras["extra0"].tolist() == [20, 30]


@QUIET
def test_forks_of_one_name_live_side_by_side(tmp_path):
    one = written(tmp_path / "one" / "DomainBed", OF_DOMAINBED)
    two = {**OF_DOMAINBED}
    two["domainbed/networks.py"] += "\n        width = 2\n"
    two = written(tmp_path / "two" / "DomainBed", two)
    import_plugins([one, f"{two}/domainbed/algorithms.py"])
    first, second = (get_algorithm_class(n) for n in ("Tilted", "two-DomainBed-Tilted"))
    assert first.foreign is not second.foreign
    assert not hasattr(sys.modules["domainbed_fork_DomainBed.domainbed.networks"], "width")
    assert sys.modules["domainbed_fork_two-DomainBed.domainbed.networks"].width == 2
    pickled = pickle.dumps(first.foreign)
    forks.FORKS.clear()  # as in a process that was spawned
    for name in [name for name in sys.modules if name.startswith("domainbed_fork_")]:
        del sys.modules[name]
    assert pickle.loads(pickled).__module__ == "domainbed_fork_DomainBed.domainbed.algorithms"


def test_what_is_no_fork_is_refused_in_a_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no algorithms\.py: give the file"):
        import_plugins([str(tmp_path / "empty")])
    broken = written(tmp_path / "broken", {"algorithms.py": "import torch\nraise ValueError(3)\n"})
    with pytest.raises(UserError, match=r"broken' cannot be imported \(ValueError: 3\)"):
        import_plugins([broken])
    assert located(["./fork", "module", "a.py"], "/there") == [
        "/there/fork",
        "module",
        "/there/a.py",
    ]


def test_the_command_says_of_each_class_whether_it_runs(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["list", "plugin", written(tmp_path / "swad", OF_SWAD)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        "Mean  runs",
        "Dots  is a dataset of 2 domains",
    ]


class StepFirst:
    def by_halves(self, minibatches):  # which `update` never calls
        _first, _second = minibatches

    def update(self, step, minibatches, unlabeled=None):
        return sum(x.mean() for x, y, env in minibatches)

    def predict(self, x):
        return x


def test_minibatches_may_come_after_the_step():
    assert batch_of(StepFirst) == (("x", "y", "domain"), False)
