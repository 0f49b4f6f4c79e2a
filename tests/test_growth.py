"""Growing the package: one of each kind is added in the places that docs/architecture.md names."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from torch.utils.data import TensorDataset

from domainbed.algorithms import ALGORITHMS, ERM, LR_SCHEDULES, OPTIMIZERS, ForwardPass
from domainbed.cli import main as command
from domainbed.config import protocols
from domainbed.config.dimensions import LogUniform
from domainbed.config.run_fields import RunFields
from domainbed.core.flags import add_flags, docs_table, json_schema, read_flags
from domainbed.core.settings import load
from domainbed.datasets import DATASETS, MultipleDomainDataset
from domainbed.launchers import LAUNCHERS
from domainbed.metrics import LABEL_TYPES, METRICS
from domainbed.networks import NETWORKS
from domainbed.reporting.section import SECTION_RENDERERS
from domainbed.runs.trackers import TRACKERS
from domainbed.selection import SELECTION_METHODS
from domainbed.spec import RunSpec
from domainbed.training import run


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


class Flattest(ERM):
    """ERM with a penalty on the squared logits. Its file, and its import: two places."""

    paper = "none"
    search_space = {"flatness": LogUniform(0.1, -3, 0, "weight of the squared logits")}

    def objective_of(self, forward: ForwardPass) -> tuple[torch.Tensor, dict[str, Any]]:
        penalty = forward.logits.square().mean()
        loss = forward.pooled_risk() + self.hparams["flatness"] * penalty
        return loss, {"penalty": penalty.detach()}


class Blobs(MultipleDomainDataset):
    """Two shifted Gaussians. Its class, and its import: two places."""

    ENVIRONMENTS = ("left", "middle", "right")
    N_STEPS, CHECKPOINT_FREQ, small_images = 6, 5, True

    def __init__(self, root: str, test_envs: Any, hparams: Any, trial_seed: int = 0) -> None:
        source = torch.Generator().manual_seed(trial_seed)
        self.input_shape, self.num_classes = (1, 8, 8), 2
        self.datasets = [self.domain(shift, source) for shift in (-1.0, 0.0, 1.0)]

    def domain(self, shift: float, source: torch.Generator) -> TensorDataset:
        y = torch.randint(2, (50,), generator=source)
        x = torch.randn(50, 1, 8, 8, generator=source) + (y + shift)[:, None, None, None]
        return TensorDataset(x, y)


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._entries, "Flattest", Flattest)
    monkeypatch.setitem(DATASETS._entries, "Blobs", Blobs)


@pytest.mark.usefixtures("grown")
@pytest.mark.parametrize("name", ["Flattest", "Fishr+Flattest"])
def test_an_algorithm_and_a_dataset(name: str, tmp_path: Path) -> None:
    spec = RunSpec.create("Blobs", name, [1], hparams_seed=1)
    assert 1e-3 <= spec.hparams["flatness"] < 1
    run(spec, tmp_path)
    last = records(tmp_path)[-1]
    assert last["step"] == 5
    assert last["penalty"] > 0
    assert last["args"]["environments"] == ["left", "middle", "right"]


def test_a_field_of_a_run() -> None:
    """One declaration gives the flag, the field of YAML files, the schema and the docs."""

    class Grown(RunFields):
        averaging: Literal["none", "ema"] = Field("none", description="of the weights")

    parser = argparse.ArgumentParser()
    add_flags(parser, Grown)
    assert "of the weights (default: none)" in parser.format_help()
    given = read_flags(parser.parse_args(["--averaging", "ema"]), Grown)
    assert load(Grown, None, given).averaging == "ema"
    assert "| `averaging` | one of none, ema | none | of the weights |" in docs_table(Grown)
    assert json_schema(Grown)["properties"]["averaging"]["enum"] == ["none", "ema"]


def test_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file."""
    folder = shutil.copytree(protocols._FOLDER, tmp_path / "protocols")
    content = (folder / "default.yaml").read_text()
    content = content.replace("name: default", "name: longer").replace(
        "steps: {}", "steps: {PACS: 15001}"
    )
    (folder / "longer.yaml").write_text(content)
    monkeypatch.setattr(protocols, "_FOLDER", folder)
    assert "longer" in protocols.protocol_names()
    assert RunSpec.create("PACS", "ERM", [0], protocol="longer").steps == 15001
    assert RunSpec.create("VLCS", "ERM", [0], protocol="longer").steps == 5001


PAGES = Path(__file__).parents[1] / "docs"
REGISTRIES = (
    *(DATASETS, NETWORKS, METRICS, LABEL_TYPES, SELECTION_METHODS, SECTION_RENDERERS),
    *(OPTIMIZERS, LR_SCHEDULES, LAUNCHERS, TRACKERS),
)


class Shell:
    """Commands in a folder of their own, which holds plug-ins; what these register goes after."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> str:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command(list(words))
        printed, warned = self._capsys.readouterr()
        assert ended.value.code == 0, warned
        return printed

    def launch(self, **fields: Any) -> None:
        """Launches a sweep into the folder `grown`."""
        usual = {"trials": 1, "hparams_seeds": 1, "num_workers": 0, "output_dir": "grown"}
        Path("grown.yaml").write_text(json.dumps({**usual, "launcher": "debug", **fields}))
        self("sweep", "launch", "grown.yaml")

    def means(self, *words: str) -> dict[tuple[str, ...], float]:
        """What `collect` says of each dataset, algorithm, domain and selection method."""
        printed = self("collect", "grown", *words, "--format", "csv")
        keys = ("dataset", "algorithm", "domain", "selection")
        return {
            tuple(row[key] for key in keys): float(row["mean"])
            for row in csv.DictReader(printed.splitlines())
            if row["table"] == "dataset" and row["domain"] != "Avg" and row["mean"]
        }


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    monkeypatch.chdir(tmp_path)
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_modules", dict(registry._modules))
    return Shell(capsys)


def from_page(page: str, file: str) -> str:
    """Writes a file that a page of the docs shows; returns its name."""
    after = (PAGES / page).read_text().partition(f"<!-- file: {file} -->")[2]
    Path(file).write_text(after.partition("```python\n")[2].partition("```")[0])
    return file


def all_records() -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """The records of the runs in `grown`, by dataset, algorithm and test domain."""
    found = {}
    for mark in Path("grown").glob("*/done"):
        of_run = records(mark.parent)
        args = of_run[0]["args"]
        found[args["dataset"], args["algorithm"], args["test_envs"][0]] = of_run
    return found


SCANS = """
import torch
from torch.utils.data import Dataset

from domainbed.datasets import DATASETS, MultipleDomainDataset
from domainbed.launchers import LAUNCHERS, DebugLauncher
from domainbed.metrics import LABEL_TYPES, METRICS


class Scanner(Dataset):
    def __init__(self, number):
        source = torch.Generator().manual_seed(number)
        self.y = torch.randint(2, (60,), generator=source)
        self.patient = torch.randint(3, (60,), generator=source)
        noise = torch.randn(60, 6, generator=source)
        self.x = noise + self.y[:, None] * (1 + self.patient[:, None]) / 2 + number

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], self.y[index], {"patient": self.patient[index]}


@DATASETS.register
class Scans(MultipleDomainDataset):
    ENVIRONMENTS = ("first", "second", "third", "fourth")
    N_STEPS, CHECKPOINT_FREQ, small_images = 6, 2, True
    labels, group = "binary", "patient"

    def __init__(self, root, test_envs, hparams):
        self.input_shape, self.num_classes = (6,), 2
        self.datasets = [Scanner(number) for number in range(4)]


@METRICS.register(name="certainty")
class Certainty:
    percent = True

    def __init__(self):
        self.parts = []

    def update(self, outputs, targets, extras):
        self.parts.append(outputs.sigmoid().sub(0.5).abs().mul(2))

    def compute(self):
        return torch.cat(self.parts).mean()


@LAUNCHERS.register
class backwards(DebugLauncher):
    skipped: int = 0

    def submit(self, job, tasks, resources, folder):
        return super().submit(job, [*reversed(tasks[self.skipped :])], resources, folder)
"""


def test_groups_and_what_chooses_reports_executes_and_tracks(shell: Shell) -> None:
    """AUROC by group, and from plug-ins a metric, selection method, format, launcher, tracker."""
    Path("scans.py").write_text(SCANS)
    median, rst = from_page("extending.md", "median_domain.py"), from_page("extending.md", "rst.py")
    lines = from_page("trackers.md", "my_tracker.py")
    shell.launch(
        datasets=["Scans"],
        algorithms=["ERM", "GroupDRO"],
        test_envs=[[0], [3]],
        metrics=["auroc", "auroc_by_group", "certainty"],
        selection_metric="auroc",
        selection=["median-domain", "oracle"],
        plugins=["scans.py", median, lines],
        trackers="lines",
        launcher={"name": "backwards", "skipped": 1},
        hparams={"batch_size": 8},
    )
    found = all_records()
    assert len(found) == 3  # one was skipped
    (of_erm,) = [of_run for key, of_run in found.items() if key[1:] == ("ERM", 3)]
    tracked = Path(of_erm[0]["args"]["output_dir"], "lines.txt").read_text().split()
    assert tracked[::2] == ["0", "2", "4", "5"]

    plugins = ["--plugins", "scans.py", median, rst]
    shown = shell.means(*plugins, "--metric", "auroc_worst_group")
    assert len(shown) == 2 * 3
    names = ("first", "second", "third", "fourth")
    for (dataset, algorithm, env), of_run in found.items():
        others = [d for d in range(4) if d != env]
        medians = [np.median([r[f"env{d}_out_auroc"] for d in others]) for r in of_run]
        chosen = of_run[int(np.argmax(medians))]
        place = (dataset, algorithm, names[env])
        assert shown[(*place, "median-domain")] == pytest.approx(
            100 * chosen[f"env{env}_in_auroc_worst_group"]
        )
        assert shown[(*place, "oracle")] == pytest.approx(
            100 * of_run[-1][f"env{env}_in_auroc_worst_group"]
        )
        assert chosen[f"env{env}_in_auroc_worst_group"] < chosen[f"env{env}_in_auroc"]
        assert 0 < chosen[f"env{env}_in_certainty"] < 1

    asked = ["--metric", "certainty", "--selection", "median-domain"]
    table = shell("collect", "grown", *plugins, *asked, "--format", "rst")
    assert '\n.. csv-table::\n   :header: "Algorithm", "first",' in table
    value = shell.means(*plugins, *asked)["Scans", "ERM", "fourth", "median-domain"]
    assert f'"{value:.1f}"' in table


LABELS = """
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from domainbed.datasets import DATASETS, MultipleDomainDataset
from domainbed.metrics import LabelType, register_label_type


@register_label_type
class Counts(LabelType):
    name, kind = "counts", "regression"
    default_metrics, selection_metric = ("loss", "rmse"), "rmse"

    def check(self, labels, num_classes, position=0):
        assert (labels >= 0).all()

    def losses(self, outputs, targets):
        return F.poisson_nll_loss(outputs.squeeze(1), targets, reduction="none")

    def scores(self, outputs):
        return outputs.exp()

    def decode(self, outputs):
        return outputs.squeeze(1).exp()


@DATASETS.register
class Prices(MultipleDomainDataset):
    ENVIRONMENTS, N_STEPS, CHECKPOINT_FREQ = ("north", "east", "south"), 8, 2
    labels, space = "regression", "small"

    def __init__(self, root, test_envs, hparams):
        source = torch.Generator().manual_seed(0)
        self.input_shape, self.num_classes = (5,), 1
        inputs = [torch.randn(60, 5, generator=source) for _ in self.ENVIRONMENTS]
        self.datasets = [TensorDataset(x, self.label(x.sum(dim=1) / 3)) for x in inputs]

    def label(self, scores):
        return scores


@DATASETS.register
class Visits(Prices):
    labels = "counts"

    def label(self, scores):
        return scores.exp().round()
"""


def test_regression_and_a_label_type(shell: Shell) -> None:
    """Trained, selected by RMSE, in tables, in a comparison and in the report."""
    Path("labels.py").write_text(LABELS)
    shell.launch(
        datasets=["Prices", "Visits"],
        algorithms=["ERM", "CORAL"],
        test_envs=[[0], [2]],
        selection=["training-domain"],
        plugins=["labels.py"],
        hparams={"batch_size": 16, "lr": 0.01},
    )
    found, expected = all_records(), {}
    for (dataset, algorithm, env), of_run in found.items():
        others = [d for d in range(3) if d != env]
        errors = [np.mean([r[f"env{d}_out_rmse"] for d in others]) for r in of_run]
        chosen = of_run[int(np.argmin(errors))]
        place = (dataset, algorithm, ("north", "east", "south")[env], "training-domain")
        expected[place] = pytest.approx(chosen[f"env{env}_in_rmse"])
    assert len(expected) == 8
    plugin = ("--plugins", "labels.py")
    shown = shell.means(*plugin)
    assert shown == expected
    for key in expected:
        assert 0 < shown[key] < 3
    compared = json.loads(shell("compare", "grown", *plugin, "--format", "json"))
    rows = {row["dataset"]: row for row in compared["differences"][0]["rows"]}
    for dataset in ("Prices", "Visits"):
        means = {
            name: np.mean([v for key, v in shown.items() if key[:2] == (dataset, name)])
            for name in ("ERM", "CORAL")
        }
        assert rows[dataset]["difference"] == pytest.approx(means["CORAL"] - means["ERM"])
    shell("report", "grown", *plugin)
    page = Path("grown/report.html").read_text()
    assert "rmse (lower is better)" in page
    assert f"{shown['Visits', 'CORAL', 'south', 'training-domain']:.3f}" in page


def test_token_sequences(shell: Shell) -> None:
    """One file: a dataset with its network, its search space and its collate."""
    shell.launch(
        datasets=["Sentences"],
        algorithms=["ERM", "CORAL", "Fishr"],
        steps=3,
        selection=["oracle"],
        plugins=[from_page("own_network.md", "sentences.py")],
        hparams={"batch_size": 4, "Fishr": {"penalty_anneal_iters": 1}},
    )
    expected = {}
    for (dataset, algorithm, env), of_run in all_records().items():
        place = dataset, algorithm, of_run[-1]["args"]["environments"][env], "oracle"
        expected[place] = pytest.approx(100 * of_run[-1][f"env{env}_in_acc"])
    assert len(expected) == 9
    assert shell.means() == expected


SIGN = """
import torch

from domainbed.algorithms import LR_SCHEDULES, OPTIMIZERS


@OPTIMIZERS.register(name="sign")
class Sign(torch.optim.Optimizer):
    rates = []

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            self.rates.append(group["lr"])
            for weight in group["params"]:
                if weight.grad is not None:
                    weight -= group["lr"] * (weight.grad.sign() + group["weight_decay"] * weight)


@LR_SCHEDULES.register
def halving(progress, options):
    return 0.5 ** (4 * progress)
"""


def test_an_optimizer_and_a_schedule_from_outside(shell: Shell) -> None:
    """A class and a function, for algorithms with one optimizer and with two."""
    Path("sign.py").write_text(SIGN)
    chosen = {"optimizer": "sign", "lr_schedule": "halving", "gradient_clip": 1.0}
    shell.launch(
        datasets=["ColoredDigits"],
        algorithms=["CORAL", "DANN"],
        test_envs=[[0]],
        steps=4,
        selection=["oracle"],
        plugins=["sign.py"],
        hparams={"batch_size": 4, "warmup": 0.25, **chosen},
    )
    factors = [1, 1, 0.5 ** (4 / 3), 0.5 ** (8 / 3)]  # a step in each of the 4 updates
    assert OPTIMIZERS["sign"].rates == pytest.approx([1e-3 * each for each in 2 * factors])
    found = all_records()
    assert chosen.items() <= found["ColoredDigits", "DANN", 0][-1]["hparams"].items()
    assert shell.means() == {
        (*key[:2], "+90%", "oracle"): pytest.approx(100 * of_run[-1]["env0_in_acc"])
        for key, of_run in found.items()
    }
    for file in Path("grown").glob("*/environment.json"):
        assert list(json.loads(file.read_text())["plugins"]) == ["sign.py"]


def test_the_groups_of_entry_points_stay():
    """Installed packages advertise what they add under these names."""
    groups = {
        "algorithms": ALGORITHMS,
        "datasets": DATASETS,
        "launchers": LAUNCHERS,
        "trackers": TRACKERS,
        "networks": NETWORKS,
        "metrics": METRICS,
        "label_types": LABEL_TYPES,
        "selection_methods": SELECTION_METHODS,
        "renderers": SECTION_RENDERERS,
        "optimizers": OPTIMIZERS,
        "lr_schedules": LR_SCHEDULES,
    }
    for kind, registry in groups.items():
        assert registry._group == f"domainbed.{kind}"
