"""What runs will take, by hand."""

import json

import pytest

from domainbed.cli.sweep.outlook import _hours
from domainbed.config.run_fields import RunOptions
from domainbed.runs.states import DONE, MISSING
from domainbed.spec import RunSpec
from domainbed.sweeps import costs
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.costs import Estimate, finished_costs, measured_costs
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.store import Store
from domainbed.sweeps.timing import RECORD_BYTES, Timing


@pytest.fixture
def runs():
    """Two of ERM and two of IRM, of 100 steps."""
    specs = [
        RunSpec.create("ColoredDigits", name, [env], steps=100, checkpoint_freq=50)
        for name in ("ERM", "IRM")
        for env in (0, 1)
    ]
    return {spec.run_id: spec for spec in specs}


def finish(folder, **facts):
    folder.path.mkdir(parents=True)
    folder.environment.write_text(json.dumps(facts).ljust(1000))


def test_finished_runs_tell_by_group_and_else_on_average(tmp_path, runs):
    store, (erm, other_erm, irm, other_irm) = Store(tmp_path), runs
    states = dict.fromkeys(runs, MISSING)
    assert finished_costs(store, runs, states) is None
    finish(store.folder(erm), seconds=50.0, threads=2, device="cpu")
    states[erm] = DONE
    found = finished_costs(store, runs, states)
    assert found.basis == 1
    # An ERM by itself, two IRMs by the mean; two threads each.
    total = found.of([runs[i] for i in (other_erm, irm, other_irm)])
    assert (total.seconds, total.cores, total.gpus, total.disk) == (150, 300, 0, 3000)
    finish(store.folder(irm), seconds=20.0, threads=4, device="NVIDIA H100")
    (store.folder(irm).path / "model.pkl").write_bytes(b"." * 500)
    states[irm] = DONE
    total = finished_costs(store, runs, states).of([runs[i] for i in (other_erm, other_irm)])
    assert (total.seconds, total.cores, total.gpus, total.disk) == (70, 100, 20, 2500)


def test_a_sample_of_finished_runs_is_looked_at(tmp_path, monkeypatch, runs):
    monkeypatch.setattr(costs, "LOOKED_AT", 1)
    store, states = Store(tmp_path), dict.fromkeys(runs, DONE)
    for seconds, run_id in enumerate(runs):
        finish(store.folder(run_id), seconds=float(seconds))
    found = finished_costs(store, runs, states)
    assert found.basis == 2
    assert [found.of([run]).seconds for run in runs.values()] == [0, 0, 2, 2]


def test_measured_runs(monkeypatch, runs):
    times = {"ERM": 0.01, "IRM": 0.02}

    def measure(spec, options, threads):
        speed = times[spec.algorithm]
        return Timing(speed, 0.001, 2, 300, 9, device="cpu", model_bytes=4000)

    monkeypatch.setattr(costs, "measure", measure)
    lines, specs = [], list(runs.values())
    found = measured_costs(specs, RunOptions(), 3, lines.append)
    assert lines == [
        "measuring ERM on ColoredDigits (1 of 2)",
        "measuring IRM on ColoredDigits (2 of 2)",
    ]
    batch = specs[0].hparams["batch_size"]
    seconds = 100 * 2 * batch * (2 * 0.01 + 2 * 0.02) + 4 * 2 * 300 * 0.001
    total = found.of(specs)
    assert total.seconds == pytest.approx(seconds)
    assert total.cores == pytest.approx(3 * seconds)
    assert total.disk == 4 * (4000 + 2 * RECORD_BYTES)


@pytest.mark.parametrize(
    ("launcher", "share", "hours"),
    [
        ({"name": "local"}, 1.0, "2 core hours + 4 GPU hours"),
        ({"name": "local", "runs_per_gpu": 4}, 0.25, "2 core hours + 1 GPU hours"),
        ({"name": "slurm", "gpus": 0.5}, 0.5, "2 core hours + 2 GPU hours"),
    ],
)
def test_runs_that_share_a_gpu(tmp_path, launcher, share, hours):
    config = SweepConfig(
        datasets=("ColoredDigits",), algorithms=("ERM",), output_dir=str(tmp_path),
        launcher=launcher, test_envs=((0,),), trials=(0,), hparams_seeds=(0,), device="cpu",
    )  # fmt: skip
    assert prepare(config).gpu_share == share
    assert _hours(Estimate(cores=7200, gpus=4 * 3600), share) == hours
