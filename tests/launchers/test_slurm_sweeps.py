"""Sweeps on a real SLURM cluster: what becomes of runs whose jobs are ended before their time."""

import json
import sys
from functools import partial

import pytest
from slurm_cluster import HELD_BY, ask, start, until, until_queued_again
from submission import in_hand

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.launchers import SlurmLauncher
from domainbed.runs.packed import packs_in
from domainbed.runs.states import DONE, INTERRUPTED, MISSING, PENDING, RUNNING
from domainbed.sweeps.store import Store

PLUGIN = "held_algorithms"
CONFIG = f"""\
plugins: [{PLUGIN}]
datasets: [ColoredDigits]
algorithms: [HeldERM, HeldIRM]
test_envs: [[0], [1]]
trials: 1
hparams_seeds: 1
selection: [training-domain, oracle]
steps: 30
checkpoint_freq: 29
hparams: {{batch_size: 4}}
device: cpu
launcher: {{name: slurm, cores: 1, tasks_per_job: 2}}
"""
JOBS = 2  # of two runs each


@pytest.fixture(autouse=True, scope="module")
def registered_here():
    """No other file's tests see the plug-in's algorithms."""
    with pytest.MonkeyPatch.context() as patch:
        for kept in ("_entries", "_modules"):
            patch.setattr(ALGORITHMS, kept, dict(getattr(ALGORITHMS, kept)))
        yield
    sys.modules.pop(PLUGIN, None)


class Sweep:
    """A sweep as somebody launches it who has a shell; its jobs are held until they are let go."""

    def __init__(self, folder, monkeypatch):
        self.holding = folder / "held"
        self.holding.mkdir()
        monkeypatch.setenv(HELD_BY, str(self.holding))
        for job in range(JOBS):
            (self.holding / str(job)).touch()
        self.config = folder / "sweep.yaml"
        self.config.write_text(CONFIG)
        self.store = Store(folder / "sweep")

    def command(self, action, *flags):
        """The exit status of `domainbed sweep ACTION`."""
        target = [str(self.config), "--output_dir", str(self.store.root)]
        where = target if action == "launch" else [str(self.store.root)]
        with pytest.raises(SystemExit) as ended:
            cli.main(["sweep", action, *where, *flags, "--plugins", PLUGIN])
        return ended.value.code

    def let_go(self, job):
        (self.holding / str(job)).unlink()

    def states(self):
        return self.store.states(self.store.planned())

    def count(self, state):
        return list(self.states().values()).count(state)

    def folders(self):
        """Of the runs in the order in which jobs get them."""
        return [self.store.folder(run_id) for run_id in self.store.planned()]

    def jobs(self):
        """The ids of the jobs that have the runs in the queue."""
        return [self.folders()[2 * job].status().job for job in range(JOBS)]

    def records(self):
        """By run, what does not depend on where and when it was done."""
        lines = {f.path.name: f.results.read_text().splitlines() for f in self.folders()}
        return {run_id: list(map(_without_times, lines[run_id])) for run_id in lines}


def has_begun(folder):
    """Whether a run is past its first update."""
    return folder.results.exists() and folder.results.read_text().endswith("\n")


def was_stopped(folder):
    """Whether a run wrote down where to go on."""
    return "Stopping at step" in folder.out.read_text()


def assert_told(words, capsys):
    told = capsys.readouterr().out
    assert [word for word in words if word not in told] == []


def _without_times(line):
    record = json.loads(line)
    return {k: v for k, v in record.items() if k not in ("step_time", "args", "mem_gb")}


def tables(sweep, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["collect", str(sweep.store.root), "--plugins", PLUGIN])
    return capsys.readouterr().out.replace(str(sweep.store.root), "SWEEP")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same sweep as the launcher `debug` does it."""
    with pytest.MonkeyPatch.context() as patch:
        sweep = Sweep(tmp_path_factory.mktemp("debug"), patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        assert sweep.command("launch", "--launcher", "debug") == 0
    return sweep


def test_runs_go_on_after_a_requeue_and_after_a_time_limit(
    slurm, undisturbed, tmp_path, monkeypatch, capsys
):
    sweep = Sweep(tmp_path, monkeypatch)
    assert sweep.command("launch", "--minutes", "60") == 0
    first, second = jobs = sweep.jobs()
    assert_told(jobs, capsys)
    assert sweep.count(DONE) == 0

    until(lambda: has_begun(sweep.folders()[0]) and has_begun(sweep.folders()[2]))
    ask("scontrol", "requeue", first)
    ask("scontrol", "update", f"JobId={second}", "EndTime=now+1minute")  # SLURM warns it before
    for job, name in enumerate(jobs):
        until_queued_again(name)
        sweep.let_go(job)
        start(name)
    until(lambda: sweep.count(DONE) == 4)

    assert [was_stopped(folder) for folder in sweep.folders()] == [True, False, True, False]
    assert all("Starting with JobEnvironment" in f.log.read_text() for f in sweep.folders())
    assert sweep.folders()[0].log.samefile(sweep.folders()[1].log)  # one job did both
    assert not sweep.folders()[0].log.samefile(sweep.folders()[2].log)
    assert sweep.records() == undisturbed.records()
    assert tables(sweep, capsys) == tables(undisturbed, capsys)
    assert sweep.command("launch") == 0
    assert "0 to do" in capsys.readouterr().out


def test_a_sweep_is_looked_at_and_cancelled(slurm, tmp_path, monkeypatch, capsys):
    sweep = Sweep(tmp_path, monkeypatch)
    assert sweep.command("launch", "--max_jobs", "1") == 0
    jobs = sweep.jobs()
    capsys.readouterr()
    assert sweep.command("status") == 0
    assert_told(["Pending", *jobs], capsys)
    assert sweep.command("launch") == 0  # another one, by mistake
    assert "0 to do" in capsys.readouterr().out
    assert sweep.command("cancel") == 0
    assert_told(["cancelled 2 jobs", *jobs], capsys)
    until(lambda: in_hand(SlurmLauncher(), jobs) == set())
    assert not {PENDING, RUNNING, DONE} & set(sweep.states().values())


@pytest.mark.slow  # the launcher `debug` is compared with above
def test_a_cancelled_sweep_is_launched_again_and_waited_for(
    slurm, undisturbed, tmp_path, monkeypatch, capsys
):
    sweep = Sweep(tmp_path, monkeypatch)
    smaller = ("--algorithms", "HeldERM", "--tasks_per_job", "1", "--max_jobs", "1")
    assert sweep.command("launch", *smaller) == 0
    begun, waiting = sweep.folders()
    until(lambda: has_begun(begun))
    assert (begun.state(), waiting.state()) == (RUNNING, PENDING)
    assert sweep.command("cancel") == 0
    until(lambda: (begun.state(), waiting.state()) == (INTERRUPTED, MISSING))
    assert was_stopped(begun)
    for job in range(JOBS):
        sweep.let_go(job)
    capsys.readouterr()
    assert sweep.command("launch", "--wait", *smaller) == 0
    assert "All runs are done (2)" in capsys.readouterr().out
    records = sweep.records()
    assert records == {run_id: undisturbed.records()[run_id] for run_id in records}


def test_a_last_job_packs_the_runs_and_does_what_the_config_says(slurm, tmp_path, capsys):
    """Nobody waits for it, and it begins when the others have ended; their files are gone then."""
    said, root = tmp_path / "said", tmp_path / "sweep"
    words = f"{said}.tmp && mv {said}.tmp {said}"
    config = tmp_path / "sweep.yaml"
    config.write_text(
        "{datasets: [ColoredDigits], algorithms: [ERM], test_envs: [[0], [1]], trials: 1, steps: 1,"
        " hparams_seeds: 1, selection: [oracle], keep: none, device: cpu, pack: true, hparams:"
        f" {{batch_size: 4}}, on_finish: 'echo $DOMAINBED_DONE $DOMAINBED_FAILED > {words}',"
        f" output_dir: {root}, launcher: {{name: slurm, cores: 1, tasks_per_job: 2}}}}"
    )
    with pytest.raises(SystemExit):
        cli.main(["sweep", "launch", str(config)])
    store = Store(root)
    assert "submitted 2 runs as 1 jobs" in capsys.readouterr().out
    until(said.exists)
    assert said.read_text() == "2 0\n"
    assert set(store.states(store.planned()).values()) == {DONE}
    assert {path.name for path in root.iterdir()} == {
        *(".launcher", ".plan", "packed", "plan.json", "sweep.yaml")
    }
    assert len(packs_in(root)) == 1
    [of_last] = store.launcher_folder.iterdir()
    assert len(list(of_last.glob("*_submitted.pkl"))) == 1


def test_a_refused_sweep_can_be_launched_elsewhere(slurm, tmp_path, monkeypatch, capsys):
    sweep = Sweep(tmp_path, monkeypatch)
    assert sweep.command("launch", "--partition", "nope") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: SLURM refuses the jobs: invalid partition specified: nope; Batch job submission "
        "failed: Invalid partition name specified"
    ]
    assert sweep.count(MISSING) == 4


LITTLE = """\
datasets: [ColoredDigits]
algorithms: [ERM]
test_envs: [[0], [1]]
trials: 1
hparams_seeds: 1
selection: [oracle]
steps: 2
device: cpu
launcher: {name: slurm, cores: 1, tasks_per_job: 2}
"""


@pytest.fixture
def told(slurm, tmp_path, monkeypatch, capsys):
    """What `domainbed sweep` prints, in a folder with a config whose name has a space."""
    (tmp_path / "a sweep.yaml").write_text(LITTLE)
    monkeypatch.chdir(tmp_path)

    def told(*words):
        with pytest.raises(SystemExit):
            cli.main(["sweep", *words])
        return "".join(capsys.readouterr())

    return told


def test_what_status_says_of_jobs_that_wait_or_have_ended(told, monkeypatch):
    launch = partial(told, "launch", "a sweep.yaml", "--output_dir")
    large = launch("large", "--cores", "64")
    assert "error: a job asks for 64 cores, and SLURM's largest node has 2" in large
    launch("broken", "--setup", "echo no such module >&2", "exit 3")
    stuck = launch("is stuck", "--sbatch", "{hold: true}")
    assert "`domainbed sweep status 'is stuck'` shows their states" in stuck
    [job] = {each.job for each in Store("is stuck").statuses(Store("is stuck").planned()).values()}
    assert f"2 runs, slurm jobs {job}: cannot start: JobHeldUser" in told("status", "is stuck")
    monkeypatch.setenv("DOMAINBED_SILENCE_SECONDS", "1")
    waited = told("launch", "is stuck", "--wait")
    assert f"2 runs, slurm jobs {job}: cannot start: JobHeldUser" in waited
    assert "Nothing is running, and no engine will start a run.\n0 of 2 runs are done" in waited
    ask("scancel", job)
    until(lambda: f"2 runs, slurm jobs {job}: CANCELLED" in told("status", "is stuck"))
    failed = "ended before the run began: FAILED (no such module)"
    until(lambda: failed in told("status", "broken"))


@pytest.mark.slow  # it trains
def test_a_setup_may_change_the_folder(told):
    told("launch", "a sweep.yaml", "--output_dir", "there", "--setup", "cd /")
    store = Store("there")
    until(lambda: set(store.states(store.planned()).values()) == {DONE})
