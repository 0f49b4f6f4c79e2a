"""`domainbed sweep` and scripts/sweep.py as real processes, with real workers."""

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from domainbed import cli
from domainbed.cli.common import execute, guarded
from domainbed.core.files import sealed_yaml
from domainbed.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "sweep.py"
CONFIG = """\
datasets: [ColoredDigits]
algorithms: [ERM]
test_envs: [[0], [1], [0, 1], [1, 2]]
trials: 1
hparams_seeds: 1
steps: 3
checkpoint_freq: 2
hparams: {batch_size: 2}
device: cpu
skip_model_save: true
launcher: {name: local, workers: 2, cores: 1}
"""
MARK = "DOMAINBED_TEST_MARK"


def start(*arguments, program=("-m", "domainbed", "sweep"), mark=""):
    """A process of its own group, so that only it gets our signals."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), MARK: mark},
        # What `nohup` started would ignore the end of a terminal, as it should.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@pytest.fixture
def sweep(capsys):
    """`domainbed sweep` in this process: its output, after a check of its exit status."""

    def sweep(*arguments, status=0, module=None):
        words = [*map(str, arguments)]
        capsys.readouterr()
        if module:
            found = guarded(lambda: execute(module.sweep, words))
        else:
            found = guarded(lambda: cli.run(["sweep", *words]))
        said = "".join(capsys.readouterr())
        assert found == status, said
        return said

    return sweep


@pytest.fixture(scope="module")
def script():
    """scripts/sweep.py as a module."""
    spec = importlib.util.spec_from_file_location("sweep_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(CONFIG + f"output_dir: {tmp_path / 'sweep'}\n")
    return file


def results(root):
    """All records of a sweep by run, without what depends on time and place."""
    found = {}
    for file in sorted(root.glob("*/results.jsonl")):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            del record["step_time"], record["args"]["output_dir"]
        found[file.parent.name] = records
    return found


def marked_processes(mark):
    """The processes that inherited our mark."""
    alive = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if f"{MARK}={mark}".encode() in environment:
                alive.append(int(folder.name))
    return alive


def wait_until(holds, seconds=90):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_launch_status_retry_relaunch_and_delete(config, tmp_path, sweep):
    root = tmp_path / "sweep"
    said = sweep("launch", config, "--dry_run")
    assert "4 runs, 0 done" in said
    assert "`domainbed sweep plan --measure`, with the same arguments, measures them" in said
    assert sweep("plan", config) == said
    for row in (r"training-domain +2 +2 +0", "leave-one-domain-out +4 +4 +2", "oracle +2 +2 +0"):
        assert re.search(rf"\n{row}\n", said), row
    measured = sweep("plan", config, "--measure")
    assert "measuring ERM on ColoredDigits (1 of 1)\n" in measured
    assert re.search(r"To do: \S+ core hours, about \S+ with \d at a time; 16\.0kB", measured)
    assert not root.exists()
    assert json.loads(sweep("status", config, "--json"))["total"]["missing"] == 4
    debug = ("--launcher", "debug")
    said = sweep("launch", config, "--test-envs", "[[0]]", *debug)
    assert "All runs are done (1)" in said
    # A run fails, because its folder claims to be another's.
    (done,) = root.glob("*/done")
    broken = done.parent
    done.unlink()
    (broken / "run.json").write_text("{}")
    said = sweep("launch", config, *debug, status=1)
    assert "3 of 4 runs are done, 1 failed" in said
    assert f"{broken} holds another run" in said
    said = sweep("launch", config, status=1)
    assert "0 to do" in said
    assert "domainbed sweep retry" in said
    assert "holds another run" in sweep("status", root)
    assert re.search(
        r"To do: \S+ core hours, about \d+s with 1 at a time; \S+B on disk \(from 3 runs",
        sweep("retry", root, "--dry_run"),
    )
    assert "give --skip_confirmation" in sweep("delete-incomplete", root, status=2)
    assert "deleted 1 run" in sweep("delete-incomplete", root, "--skip-confirmation")
    assert not broken.exists()
    assert "All runs are done (4)" in sweep("launch", root, *debug)
    assert "0 to do" in sweep("launch", config)


def test_a_launch_on_a_terminal_asks_first(config, tmp_path, sweep, monkeypatch):
    questions = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or "n")
    sweep("launch", config)
    assert questions == ["Launch 4 runs, 2 at a time? [y/N] "]
    assert not (tmp_path / "sweep").exists()


def test_ctrl_c_stops_cleanly_and_a_relaunch_ends_as_if_nothing_had_been(config, tmp_path, sweep):
    mark = uuid.uuid4().hex
    longer = ("--steps", 60, "--checkpoint_freq", 15)
    process = start("launch", config, *longer, mark=mark)
    wait_until(lambda: list((tmp_path / "sweep").glob("*/checkpoint.pt")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert re.search(r"stopped: \d of 4 runs are done", err)
    assert "Traceback" not in err
    wait_until(lambda: not marked_processes(mark), 10)
    total = json.loads(sweep("status", config, "--json"))["total"]
    assert total["failed"] == 0
    assert not list((tmp_path / "sweep").glob("*/err.txt"))
    sweep("launch", config, *longer)
    sweep("launch", config, *longer, "--output_dir", tmp_path / "straight")
    assert len(results(tmp_path / "straight")) == 4
    assert results(tmp_path / "sweep") == results(tmp_path / "straight")
    outs = [file.read_text() for file in (tmp_path / "sweep").glob("*/out.txt")]
    assert any("Resuming at step" in out for out in outs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_is_stopped_by_cancel_and_by_the_end_of_its_terminal(
    config, tmp_path, sweep, number
):
    mark = uuid.uuid4().hex
    process = start("launch", config, "--steps", 100000, "--workers", 1, mark=mark)
    wait_until(lambda: list((tmp_path / "sweep").glob("*/checkpoint.pt")))
    if number == signal.SIGTERM:
        said = sweep("cancel", tmp_path / "sweep")  # as another terminal would
        assert said == f"local: cancelled 1 job ({platform.node()}:{process.pid})\n"
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out + err
    assert sweep("cancel", config) == "nothing of this sweep is queued or running\n"
    assert "stopped: 0 of 4 runs are done" in err
    assert "Traceback" not in err
    wait_until(lambda: not marked_processes(mark), 10)
    total = json.loads(sweep("status", tmp_path / "sweep", "--json"))["total"]
    assert (total["interrupted"], total["missing"]) == (1, 3)
    (out,) = [file.read_text() for file in (tmp_path / "sweep").glob("*/out.txt")]
    assert "Stopping at step" in out


def test_workers_end_when_their_parent_is_killed(config, tmp_path):
    mark = uuid.uuid4().hex
    process = start("launch", config, "--steps", 100000, mark=mark)
    wait_until(lambda: list((tmp_path / "sweep").glob("*/results.jsonl")))
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not marked_processes(mark), 20)


def test_a_run_whose_worker_is_killed_goes_on_with_another(config, tmp_path):
    mark = uuid.uuid4().hex
    runs = ("--workers", 1, "--test_envs", "[[0], [1]]", "--steps", 100, "--checkpoint_freq", 50)
    process = start("launch", config, *runs, mark=mark)
    wait_until(lambda: list((tmp_path / "sweep").glob("*/checkpoint.pt")))
    commands = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in marked_processes(mark)}
    (worker,) = [p for p, command in commands.items() if b"spawn_main" in command]
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "a worker died with signal 9 (SIGKILL): out of memory?: it is replaced" in err
    assert "All runs are done (2)" in out
    outs = [file.read_text() for file in (tmp_path / "sweep").glob("*/out.txt")]
    assert sum("Resuming at step" in out for out in outs) == 1


def test_two_launches_at_once_do_every_run_once(config, tmp_path):
    one_worker = ("--workers", 1, "--algorithms", "ERM", "IRM")
    both = [start("launch", config, *one_worker) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, out + err
    outs = [file.read_text() for file in (tmp_path / "sweep").glob("*/out.txt")]
    assert len(outs) == 8
    for out in outs:
        assert len(re.findall("test domain", out)) == 1
        assert "Resuming" not in out
    assert {len(records) for records in results(tmp_path / "sweep").values()} == {2}


def test_the_script_takes_domainbeds_flags(tmp_path, sweep, script):
    flags = ["--datasets", "ColoredDigits", "--algorithms", "ERM", "--n_hparams_from", 1]
    flags += ["--n_hparams", 3, "--n_trials", 2, "--steps", 2, "--single_test_envs"]
    flags += ["--output_dir", tmp_path, "--command_launcher", "debug", "--skip_confirmation"]
    flags += ["--hparams", '{"batch_size": 2}', "--skip_model_save", "--data-dir", "x"]
    assert "12 runs, 0 done" in sweep("launch", *flags, "--dry_run", module=script)
    launch = ("launch", "--output_dir", tmp_path, "--dry_run", "--n_trials", 1, "--n_hparams", 1)
    # Of every dataset but the Debug sets, single domains and pairs; the three methods that need two
    # training domains go without the pairs of ColoredMNIST and of the Spawrious sets.
    sets = {"small images": 6 + 21, "folders": 4 * 10, "DomainNet": 21, "SVIRO": 55, "WILDS": 36}
    runs = 34 * (sum(sets.values()) + 6 * 3) - 3 * (3 + 6 * 2)
    assert f"{runs} runs" in sweep(*launch, module=script)
    for wrong, says in [
        (
            ["--task", "chess"],
            "--task: expected one of domain_generalization, domain_ad",
        ),
        (["--command_launcher", "x"], "unknown launcher 'x'"),
        (["--n_trials", 0], "leave no seed"),
        (["--hparams", "{"], "is no valid YAML or JSON"),
    ]:
        assert says in sweep("launch", *flags, *wrong, status=2, module=script)
    dummy = sweep("launch", *flags, "--command_launcher", "dummy", "--seed", 7, module=script)
    assert "12 runs, 0 done" in dummy
    assert "--seed has no effect" in dummy
    assert not list(tmp_path.iterdir())


def test_the_script_runs_by_itself(tmp_path):
    flags = ["--datasets", "ColoredDigits", "--algorithms", "ERM", "--n_hparams", 1]
    flags += ["--n_trials", 1, "--steps", 2, "--single_test_envs", "--output_dir", tmp_path]
    flags += ["--command_launcher", "multi_gpu", "--workers", 1]
    process = start("launch", *flags, program=(str(SCRIPT),))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "All runs are done (3)" in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "0"], "error: --steps: expected a whole number from 1 on, found 0"),
        (["--hparams", "{lr: ["], "error: --hparams: '{lr: [' is no valid YAML or JSON"),
        (["--precision", "half"], "error: --precision: "),
        (["--algorithms", "ERN"], "error: --algorithms: unknown algorithm 'ERN'. Did you mean"),
        (["--launcher", "debug", "--workers", "2"], "error: --workers: the launcher 'debug' has"),
    ],
)
def test_a_wrong_flag_is_one_line(config, sweep, flags, says):
    said = sweep("launch", config, *flags, status=2)
    assert says in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("action", ["status", "launch", "plan", "cancel", "rerun-best"])
def test_a_sweep_that_is_not_there(action, tmp_path, sweep):
    said = sweep(action, tmp_path / "nowhere", status=2)
    place = str(tmp_path / "nowhere")
    assert (
        f"{place!r} does not exist: name a sweep folder, a config, or one that comes with" in said
    )


def test_code_that_a_sweeps_folder_names_is_run_only_for_a_user_who_names_it(
    config, tmp_path, sweep
):
    root, code = tmp_path / "sweep", tmp_path / "evil.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').close()\n")
    sweep("launch", config, "--test_envs", "[[0]]", "--launcher", "debug")
    kept = root / "sweep.yaml"
    settings = kept.read_text().partition("\n")[2]
    kept.write_text(sealed_yaml(settings + f"plugins: [{code}]\n"))
    for command in (
        ("launch", root, "--dry_run"),
        ("retry", root),
        ("launch", kept, "--dry_run"),
        ("status", kept),
        ("delete-incomplete", kept),
    ):
        said = sweep(*command, status=2)
        assert f"if you trust it, add --plugins {code}" in said
        assert len(said.splitlines()) == 1
    assert "1" in sweep("status", root)
    assert not (tmp_path / "ran").exists()
    assert "1 run, 1 done" in sweep("launch", root, "--dry_run", "--plugins", code)
    assert (tmp_path / "ran").exists()
    sweep("status", kept, "--plugins", code)


def test_plugins_of_a_users_own_config_need_no_flag(config, tmp_path, sweep):
    code = tmp_path / "own_code.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').close()\n")
    config.write_text(config.read_text() + f"plugins: [{code}]\n")
    assert "4 runs, 0 done" in sweep("launch", config, "--dry_run")
    assert (tmp_path / "ran").exists()


def test_the_config_in_a_sweeps_folder_is_that_folders(config, tmp_path, sweep):
    sweep("launch", config, "--test_envs", "[[0]]", "--launcher", "debug")
    moved = (tmp_path / "sweep").rename(tmp_path / "moved")
    assert f"{moved}: 1 run, 1 done" in sweep("launch", moved / "sweep.yaml", "--dry_run")


def test_other_steps_are_refused_before_anything_is_begun(config, sweep):
    sweep("launch", config, "--test_envs", "[[0]]", "--launcher", "debug")
    for dry_run in ([], ["--dry_run"]):
        said = sweep("launch", config, "--steps", 4, *dry_run, status=2)
        assert "steps is 3 there and 4 here" in said
        assert len(said.splitlines()) == 1


def test_configs_of_the_package_go_by_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["sweep", "plan", "quickstart"]) == 0
    assert capsys.readouterr().out.startswith("results/quickstart: 126 runs, 0 done")
    with pytest.raises(UserError, match=r"'paper/pac' does not exist: .*Did you mean 'paper/pacs'"):
        cli.run(["sweep", "plan", "paper/pac"])
