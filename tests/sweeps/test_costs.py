"""What runs will take, by hand."""

import json

import pytest

from domainbed.core.files import sealed_json
from domainbed.spec import RunSpec
from domainbed.sweeps import outlook, status
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.launch import prepare
from domainbed.sweeps.outlook import RECORD_BYTES, Timing, _hours, measured_costs
from domainbed.sweeps.status import Estimate, finished_costs
from domainbed.sweeps.store import Store


@pytest.fixture
def runs():
    """Two of ERM and two of IRM, of 100 steps."""
    specs = [
        RunSpec.create("ColoredDigits", name, [env], steps=100, checkpoint_freq=50)
        for name in ("ERM", "IRM")
        for env in (0, 1)
    ]
    return {spec.run_id: spec.planned() for spec in specs}


def finish(folder, **facts):
    folder.path.mkdir(parents=True)
    folder.environment.write_text(json.dumps(facts).ljust(1000))


def test_finished_runs_tell_by_group_and_else_on_average(tmp_path, runs):
    store, (erm, other_erm, irm, other_irm) = Store(tmp_path), runs
    assert finished_costs(store, runs, []) is None
    finish(store.folder(erm), seconds=50.0, threads=2, device="cpu")
    found = finished_costs(store, runs, [erm])
    assert found.basis == 1
    # An ERM by itself, two IRMs by the mean; two threads each.
    total = found.of([other_erm, irm, other_irm])
    assert (total.seconds, total.cores, total.gpus, total.disk) == (150, 300, 0, 3000)
    finish(store.folder(irm), seconds=20.0, threads=4, device="NVIDIA H100")
    (store.folder(irm).path / "model.pkl").write_bytes(b"." * 500)
    total = finished_costs(store, runs, [erm, irm]).of([other_erm, other_irm])
    assert (total.seconds, total.cores, total.gpus, total.disk) == (70, 100, 20, 2500)


def test_a_damaged_environment_is_named_and_left_out(tmp_path, caplog, runs):
    store, (erm, _, irm, _) = Store(tmp_path), runs
    for run_id, seconds in ((erm, 50.0), (irm, 20.0)):
        folder = store.folder(run_id)
        folder.path.mkdir(parents=True)
        folder.environment.write_text(sealed_json({"seconds": seconds}))
    file = store.folder(erm).environment
    file.write_text(file.read_text().replace("50.0", "90.0"))
    found = finished_costs(store, runs, [erm, irm])
    assert found.basis == 1
    assert found.of([erm]).seconds == 20
    assert f"{file} is damaged" in caplog.text


def test_a_sample_of_finished_runs_is_looked_at(tmp_path, monkeypatch, runs):
    monkeypatch.setattr(status, "LOOKED_AT", 1)
    store = Store(tmp_path)
    for seconds, run_id in enumerate(runs):
        finish(store.folder(run_id), seconds=float(seconds))
    found = finished_costs(store, runs, runs)
    assert found.basis == 2
    assert [found.of_run[run_id].seconds for run_id in runs] == [0, 0, 2, 2]


def test_measured_runs(monkeypatch, tmp_path):
    config = SweepConfig(
        datasets=("ColoredDigits",), algorithms=("ERM", "IRM"), output_dir=str(tmp_path),
        launcher={"name": "local", "workers": 1}, test_envs=((0,), (1,)), trials=(0,),
        hparams_seeds=(0,), device="cpu", steps=100, checkpoint_freq=50,
    )  # fmt: skip
    launch = prepare(config)
    monkeypatch.setattr(outlook, "usable_cores", lambda: 3)
    times = {"ERM": 0.01, "IRM": 0.02}

    def measure(spec, options, threads):
        speed = times[spec.algorithm]
        return Timing(speed, 0.001, 2, 300, "cpu", threads, model_bytes=4000)

    monkeypatch.setattr(outlook, "measure", measure)
    lines = []
    found = measured_costs(launch, lines.append)
    assert lines == [
        "measuring ERM on ColoredDigits (1 of 2)",
        "measuring IRM on ColoredDigits (2 of 2)",
    ]
    batch = next(iter(launch.runs.values())).hparams["batch_size"]
    seconds = 100 * 2 * batch * (2 * 0.01 + 2 * 0.02) + 4 * 2 * 300 * 0.001
    total = found.of(launch.todo)
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
