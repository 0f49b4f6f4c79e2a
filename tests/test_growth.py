"""Growing the package: one of each kind is added in the places that docs/architecture.md names."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

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
from domainbed.launchers import LAUNCHERS, Handle, Job, Launcher, OnEvent, Resources, perform
from domainbed.metrics import METRICS
from domainbed.networks import NETWORKS
from domainbed.reporting import RENDERERS, Report
from domainbed.reporting.section import SECTION_RENDERERS
from domainbed.runs.trackers import TRACKERS
from domainbed.selection import SELECTION_METHODS
from domainbed.spec import RunSpec
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import prepare
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


def test_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One registered function."""

    def confidence(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=1).amax(dim=1)

    monkeypatch.setitem(METRICS._entries, "confidence", confidence)
    spec = RunSpec.create(
        "ColoredDigits", "ERM", [0], steps=2, metrics=("accuracy", "loss", "confidence")
    )
    run(spec, tmp_path)
    last = records(tmp_path)[-1]
    assert 0.5 <= last["env0_in_confidence"] <= 1
    assert last["env0_in_loss"] > 0
    assert 0 <= last["env0_in_acc"] <= 1


def test_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One registered class; its fields are its options."""

    class Backwards(Launcher):
        skip: int = 0

        def submit(
            self, job: Job, tasks: Sequence[Any], resources: Resources, folder: Path
        ) -> Handle:
            return Waiting(self.skip, job, tasks)

        def parallelism(self, tasks: int, resources: Resources) -> int:
            return 1

    class Waiting(Handle):
        def __init__(self, skip: int, job: Job, tasks: Sequence[Any]) -> None:
            super().__init__([""] * len(tasks))
            self.skip, self.job, self.tasks = skip, job, tasks

        def wait(self, on_event: OnEvent) -> None:
            for index in reversed(range(self.skip, len(self.tasks))):
                perform(self.job, index, self.tasks[index], self.noting(on_event))

        def cancel(self) -> None:
            self.skip = len(self.tasks)

    monkeypatch.setitem(LAUNCHERS._entries, "backwards", Backwards)
    config = load_config(
        None,
        {
            **{"datasets": ["ColoredDigits"], "algorithms": ["ERM"], "trials": 1, "steps": 1},
            **{"hparams_seeds": 1, "selection": ["oracle"], "output_dir": str(tmp_path)},
            "launcher": {"name": "backwards", "skip": 1},
        },
    )
    launch = prepare(config)
    launch.execute()
    assert sorted(launch.store.states(launch.runs).values()) == ["done", "done", "missing"]


def test_a_renderer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One registered function."""

    def count(report: Report) -> str:
        return f"{len(report.tables)} tables\n"

    monkeypatch.setitem(RENDERERS._entries, "count", count)
    for env in range(3):
        spec = RunSpec.create("ColoredDigits", "ERM", [env], steps=1)
        run(spec, tmp_path / spec.run_id)
    with pytest.raises(SystemExit) as ended:
        command(["collect", str(tmp_path), "--format", "count", "--selection", "oracle"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "2 tables\n"


def test_token_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file: a dataset with its network, its search space and its collate."""
    page = (Path(__file__).parents[1] / "docs" / "own_network.md").read_text()
    code = page.partition("<!-- file: sentences.py -->")[2].partition("```python\n")[2]
    plugin = tmp_path / "sentences.py"
    plugin.write_text(code.partition("```")[0])
    for registry in (DATASETS, NETWORKS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    config = {
        **{"datasets": ["Sentences"], "algorithms": ["ERM", "CORAL", "Fishr"], "trials": 1},
        **{"steps": 3, "hparams_seeds": 1, "selection": ["oracle"], "plugins": [str(plugin)]},
        **{"launcher": "debug", "num_workers": 0, "output_dir": str(tmp_path / "runs")},
        "hparams": {"batch_size": 4, "Fishr": {"penalty_anneal_iters": 1}},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(config))
    launch = ["sweep", "launch", str(tmp_path / "sweep.yaml")]
    collect = [
        "collect",
        str(tmp_path / "runs"),
        "--format",
        "csv",
        "--output",
        str(tmp_path / "t"),
    ]
    for words in (launch, collect):
        with pytest.raises(SystemExit) as ended:
            command(words)
        assert ended.value.code == 0
    shown = {
        (row["algorithm"], row["domain"]): float(row["mean"])
        for row in csv.DictReader((tmp_path / "t").open())
        if row["table"] == "dataset" and row["domain"] != "Avg"
    }
    expected = {}
    for folder in (tmp_path / "runs").glob("*/done"):
        last = records(folder.parent)[-1]
        (env,) = last["args"]["test_envs"]
        name = last["args"]["algorithm"], last["args"]["environments"][env]
        expected[name] = pytest.approx(100 * last[f"env{env}_in_acc"])
    assert shown == expected
    assert len(shown) == 9


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


def test_an_optimizer_and_a_schedule_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class and a function, for algorithms with one optimizer and with two."""
    monkeypatch.chdir(tmp_path)
    for registry in (OPTIMIZERS, LR_SCHEDULES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    Path("sign.py").write_text(SIGN)
    chosen = {"optimizer": "sign", "lr_schedule": "halving", "gradient_clip": 1.0}
    Path("grown.yaml").write_text(
        json.dumps(
            {
                **{"datasets": ["ColoredDigits"], "algorithms": ["CORAL", "DANN"], "trials": 1},
                **{"hparams_seeds": 1, "selection": ["oracle"], "steps": 4, "launcher": "debug"},
                **{"plugins": ["sign.py"], "hparams": {"batch_size": 4, "warmup": 0.25, **chosen}},
                **{"output_dir": "grown", "test_envs": [[0]]},
            }
        )
    )
    for words in (["sweep", "launch", "grown.yaml"], ["collect", "grown"]):
        with pytest.raises(SystemExit) as ended:
            command(words)
        assert ended.value.code == 0
    table = capsys.readouterr().out
    assert "CORAL" in table
    assert "DANN" in table
    factors = [1, 1, 0.5 ** (4 / 3), 0.5 ** (8 / 3)]  # a step in each of the 4 updates
    assert OPTIMIZERS["sign"].rates == pytest.approx([1e-3 * each for each in 2 * factors])
    (last,) = [
        records(file.parent)[-1]
        for file in Path("grown").glob("*/done")
        if "DANN" in (file.parent / "run.json").read_text()
    ]
    assert chosen.items() <= last["hparams"].items()
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
        "selection_methods": SELECTION_METHODS,
        "renderers": SECTION_RENDERERS,
        "optimizers": OPTIMIZERS,
        "lr_schedules": LR_SCHEDULES,
    }
    for kind, registry in groups.items():
        assert registry._group == f"domainbed.{kind}"
