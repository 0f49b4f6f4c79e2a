"""What a sweep does with its runs' folders, in this process."""

import errno
import itertools
import json
import os
import random
import re
import shutil
import sys
import threading

import pytest
import torch

from domainbed.algorithms import ERM
from domainbed.cli.launching import launch_sweep
from domainbed.core.files import write_text
from domainbed.errors import UserError
from domainbed.reporting import load_records, planned_gaps
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, MISSING
from domainbed.sweeps.config import load_config
from domainbed.sweeps.launch import RunJob, common_of, prepare
from domainbed.sweeps.status import failure_lines, status_json, status_of
from domainbed.sweeps.store import Store, remove

TINY = {
    "datasets": ["ColoredDigits"],
    "algorithms": ["ERM"],
    "test_envs": [[0], [1]],
    "trials": 1,
    "hparams_seeds": 1,
    "steps": 2,
    "hparams": {"batch_size": 2},
    "skip_model_save": True,
    "device": "cpu",
    "launcher": "debug",
}


def config(tmp_path, **fields):
    return load_config(None, {**TINY, "output_dir": str(tmp_path / "sweep"), **fields})


def break_run(launch, position=0):
    """Makes a run fail: its folder says that it belongs to another run."""
    run_id = list(launch.runs)[position]
    folder = launch.store.folder(run_id)
    folder.path.mkdir(parents=True)
    folder.spec.write_text("{}")
    folder.results.write_text("{}\n")
    return folder


def test_a_sweep_is_done_once(tmp_path):
    launch = prepare(config(tmp_path))
    assert set(launch.states.values()) == {MISSING}
    assert not launch.store.root.exists()  # looking leaves no trace
    launch.execute()
    records = {i: launch.store.folder(i).results.read_text() for i in launch.runs}
    again = prepare(config(tmp_path))
    assert set(again.states.values()) == {DONE}
    assert again.todo == []
    again.execute()
    assert records == {i: launch.store.folder(i).results.read_text() for i in launch.runs}
    plan = json.loads((tmp_path / "sweep" / "plan.json").read_text())
    assert plan["version"] == 1
    assert plan["runs"] == {
        i: {
            **{"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": list(run.test_envs)},
            **{"hparams_seed": 0, "trial_seed": 0, "steps": run.steps},
        }
        for i, run in launch.runs.items()
    }


def test_plans_of_several_launches_are_joined(tmp_path):
    for envs in ([[0]], [[1]]):
        launch = prepare(config(tmp_path, test_envs=envs))
        launch.store.write_plan(launch.config, launch.planned)
    assert [run["test_envs"] for run in launch.store.planned().values()] == [[0], [1]]
    launch.store.plan.write_text("{torn")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        launch.store.planned()


def test_a_failed_run_leaves_its_error_and_is_done_by_a_retry_alone(tmp_path):
    launch = prepare(config(tmp_path))
    folder = break_run(launch)
    launch.execute()
    states = list(prepare(config(tmp_path)).states.values())
    assert states == [FAILED, DONE]
    text = folder.errors.read_text()
    assert "Traceback (most recent call last)" in text
    assert folder.last_error().startswith(f"{folder.path} holds another run")
    folder.spec.unlink()
    folder.results.unlink()
    assert prepare(config(tmp_path)).todo == []
    retried = prepare(config(tmp_path), retry=True)
    assert len(retried.todo) == 1
    retried.execute()
    assert folder.state() == DONE
    assert not folder.errors.exists()


def test_status_counts_and_quotes(tmp_path):
    launch = prepare(config(tmp_path, algorithms=["ERM", "IRM"]))
    break_run(launch, 0)
    launch.execute()
    more = prepare(config(tmp_path, algorithms=["ERM", "IRM"], test_envs=[[0], [1], [2]]))
    unfinished = more.store.folder(next(i for i, s in more.states.items() if s == MISSING))
    unfinished.path.mkdir()
    unfinished.spec.write_text("{}")
    status = status_of(more.store, {i: run.identity() for i, run in more.runs.items()})
    assert status.counts["ColoredDigits", "ERM"] == {FAILED: 1, DONE: 1, INTERRUPTED: 1}
    assert status.counts["ColoredDigits", "IRM"] == {DONE: 2, MISSING: 1}
    content = json.loads(status_json(status))
    assert content["total"] == {
        "done": 3,
        "running": 0,
        "pending": 0,
        "failed": 1,
        "interrupted": 1,
        "missing": 1,
    }
    (failure,) = content["failures"]
    assert "holds another run" in failure["error"]
    assert failure["what"].startswith("ERM on ColoredDigits, test domain 0")


def test_a_running_run_is_counted_as_such_and_kept(tmp_path):
    launch = prepare(config(tmp_path))
    folder = launch.store.folder(launch.todo[0])
    with folder.exclusive():
        folder.spec.write_text("{}")
        assert list(prepare(config(tmp_path)).states.values()) == ["running", MISSING]
        assert launch.store.incomplete() == []
        assert not remove(folder)
    assert [f.path for f in launch.store.incomplete()] == [folder.path]
    assert remove(folder)
    assert not folder.path.exists()


def test_only_incomplete_runs_are_removed(tmp_path):
    launch = prepare(config(tmp_path, test_envs=[[0]]))
    launch.execute()
    folder = launch.store.folder(launch.todo[0])
    (launch.store.root / "notes").mkdir()  # not a run's
    assert launch.store.incomplete() == []
    assert not remove(folder)
    assert folder.state() == DONE


def test_another_launchs_failure_is_not_repeated(tmp_path):
    launch = prepare(config(tmp_path))
    folder = launch.store.folder(launch.todo[0])
    folder.path.mkdir(parents=True)
    folder.errors.write_text("it failed since\n")
    launch.execute()
    assert folder.errors.read_text() == "it failed since\n"
    assert not folder.results.exists()
    assert launch.store.folder(launch.todo[1]).state() == DONE


def test_options_reach_the_run(tmp_path):
    options = config(tmp_path, data_dir="d", num_workers=0).run_options()
    assert (options.data_dir, options.num_workers) == ("d", 0)
    assert options.skip_model_save
    assert options.device == "cpu"


def test_plugins_are_imported_by_the_job(tmp_path):
    plugin = tmp_path / "says_hello.py"
    plugin.write_text("import os\nos.environ['HELLO_FROM_PLUGIN'] = 'yes'\n")
    launch = prepare(config(tmp_path, test_envs=[[0]]))
    launch.store.write_plan(launch.config, launch.planned)
    job = RunJob(str(launch.store.root), launch.config.run_options(), (str(plugin),))
    try:
        job(launch.runs[launch.todo[0]], lambda step: None)
        assert os.environ.pop("HELLO_FROM_PLUGIN") == "yes"
    finally:
        os.environ.pop("HELLO_FROM_PLUGIN", None)


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    launch = prepare(config(tmp_path, output_dir=str(tmp_path / "file" / "sweep")))
    with pytest.raises(UserError, match="cannot be written"):
        launch.execute()


def test_a_folder_without_a_plan(tmp_path):
    with pytest.raises(UserError, match=r"holds no plan\.json"):
        Store(tmp_path).planned()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"steps": 3}, "steps is 2 there and 3 here"),
        ({"hparams": {"batch_size": 4}}, "hparams.batch_size is 2 there and 4 here"),
        ({"hparams": {"ERM": {"batch_size": 4}}}, "hparams.ERM is not set there and"),
        ({"precision": "bf16"}, "precision is not set there and bf16 here"),
        ({"protocol": "domainbed-2024"}, "protocol is not set there and domainbed-2024"),
    ],
)
def test_other_settings_in_a_sweeps_folder_are_refused(tmp_path, other, says):
    first = prepare(config(tmp_path, test_envs=[[0]]))
    first.store.write_plan(first.config, first.planned)
    kept = first.store.plan.read_text(), first.store.config.read_text()
    changed = config(tmp_path, **other)
    for attempt in (
        lambda: prepare(changed),
        lambda: first.store.write_plan(
            changed, {run.run_id: run.planned() for run in changed.plan()}
        ),
    ):
        with pytest.raises(UserError, match=re.escape(says)) as error:
            attempt()
        assert "choose another output_dir" in str(error.value)
    assert (first.store.plan.read_text(), first.store.config.read_text()) == kept


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"steps": 3}, "steps is 2 there and 3 here"),
        ({"hparams": {"ERM": {"batch_size": 4}}}, "hparams.batch_size is 2 there and 4 here"),
        ({"holdout_fraction": 0.3}, "holdout_fraction is not set there and 0.3 here"),
        ({"augment_validation": True}, "augment_validation is not set there and True here"),
        ({"initial_weights": "shared"}, "initial_weights is not set there and shared here"),
        ({"data_seed": "run"}, "data_seed is not set there and run here"),
        ({"task": "domain_adaptation", "uda_holdout_fraction": 0.5}, "task is not set there"),
    ],
)
def test_further_trials_with_other_settings_are_refused(tmp_path, other, says):
    first = prepare(config(tmp_path, trials=[0]))
    first.store.write_plan(first.config, first.planned, (), common_of(first.runs))
    prepare(config(tmp_path, trials=[1], metrics=["accuracy", "loss"], eval_splits="all"))
    prepare(config(tmp_path, trials=[1], algorithms=["IRM"], **other))  # a row of its own
    with pytest.raises(UserError, match=re.escape(says)):
        prepare(config(tmp_path, trials=[1], **other))


def test_more_of_the_same_settings_is_welcome_in_a_sweeps_folder(tmp_path):
    first = prepare(config(tmp_path, test_envs=[[0]]))
    first.store.write_plan(first.config, first.planned)
    more = {"algorithms": ["ERM", "IRM"], "trials": 2, "hparams_seeds": 2}
    more |= {"hparams": {"batch_size": 2, "IRM": {"irm_lambda": 1}}}
    grown = prepare(config(tmp_path, datasets=["ColoredDigits", "RotatedDigits"], **more))
    grown.store.write_plan(grown.config, grown.planned)
    assert len(grown.store.planned()) == len(grown.runs) == 2 * 2 * 2 * 2 * 2


def test_a_single_runs_folder_is_no_sweeps(tmp_path):
    launch = prepare(config(tmp_path, test_envs=[[0]]))
    launch.execute()
    alone = launch.store.folder(launch.todo[0]).path
    with pytest.raises(UserError, match="is the folder of a single run"):
        prepare(config(tmp_path, output_dir=str(alone)))


def test_a_plan_that_lacks_what_it_should_hold_is_damaged(tmp_path):
    for runs in ({"a": {}}, {"a": 3}, {"a": {"dataset": "x", "test_envs": 3}}):
        (tmp_path / "plan.json").write_text(json.dumps({"version": 1, "runs": runs}))
        with pytest.raises(UserError, match=r"plan\.json is damaged"):
            Store(tmp_path).planned()
    (tmp_path / "plan.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        Store(tmp_path).planned()


def test_a_run_folder_that_is_a_link_is_left_alone(tmp_path, caplog):
    launch = prepare(config(tmp_path))
    launch.store.write_plan(launch.config, launch.planned)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text("{}")
    (elsewhere / "model.1.tmp").write_text("mine")
    linked = launch.store.folder(launch.todo[0])
    linked.path.symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    assert launch.store.incomplete() == []
    again = prepare(config(tmp_path))
    assert set(again.runs) == {launch.todo[1]}
    again.execute()
    assert sorted(elsewhere.iterdir()) == before
    assert f"{linked.path} is a link: not followed" in caplog.text


def test_a_retry_does_what_is_marked_as_done_without_its_records(tmp_path):
    launch = prepare(config(tmp_path, test_envs=[[0]]))
    launch.execute()
    folder = launch.store.folder(launch.todo[0])
    folder.results.write_text("")
    assert prepare(launch.config).todo == []
    ((_, _, error),) = status_of(
        launch.store, {i: run.identity() for i, run in launch.runs.items()}
    ).failures
    assert "its records are not whole" in error
    prepare(launch.config, retry=True).execute()
    assert folder.state() == DONE


def test_an_empty_err_file_stands_in_no_launchs_way(tmp_path):
    launch = prepare(config(tmp_path, test_envs=[[0]]))
    folder = launch.store.folder(launch.todo[0])
    folder.path.mkdir(parents=True)
    folder.errors.touch()
    launch.execute()
    assert folder.state() == DONE


def test_who_decides_that_a_run_failed_writes_it_down_once(tmp_path):
    launch = prepare(config(tmp_path))
    launch.store.write_plan(launch.config, launch.planned)
    job = RunJob(str(launch.store.root), launch.config.run_options())
    first, second = launch.runs.values()
    folder = launch.store.folder(first.run_id)
    job.on_failure(first, "2 workers died at it\n")
    job.on_failure(first, "the job ended\n")
    assert (folder.state(), folder.last_error()) == (FAILED, "2 workers died at it")
    prepare(launch.config, retry=True).execute()
    job.on_failure(first, "2 workers died at it\n")
    assert (folder.state(), folder.errors.exists()) == (DONE, False)
    shutil.rmtree(launch.store.root)
    with pytest.raises(FileNotFoundError):
        job.on_failure(second, "2 workers died at it\n")
    assert not launch.store.root.exists()


def test_a_full_disk_fails_runs_and_stops_no_launch(tmp_path, monkeypatch):
    launch = prepare(config(tmp_path))
    first, second = launch.todo
    broken = launch.store.folder(first).path

    def full(file, text):
        if file.parent == broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write_text(file, text)

    for module in ("domainbed.sweeps.launch", "domainbed.training.artifacts"):
        monkeypatch.setattr(f"{module}.write_text", full)
    unwritten = launch.execute()
    assert list(unwritten) == [first]
    assert "No space left on device" in unwritten[first]
    assert launch.store.folder(second).state() == DONE


def removing(monkeypatch, folder):
    """The folder is removed at the second update."""
    updates, update = itertools.count(1), ERM.update

    def removed(self, *minibatches):
        if next(updates) == 2:
            shutil.rmtree(folder)
        return update(self, *minibatches)

    monkeypatch.setattr(ERM, "update", removed)


def test_a_run_whose_folder_is_removed_fails_and_is_done_anew(tmp_path, monkeypatch):
    launch = prepare(config(tmp_path))
    first, second = map(launch.store.folder, launch.todo)
    removing(monkeypatch, first.path)
    assert launch.execute() == {}
    assert second.state() == DONE
    assert first.last_error().startswith(f"{first.path} was removed while its run was under way")
    prepare(config(tmp_path), retry=True).execute()
    assert first.state() == DONE


def test_a_sweep_whose_folder_is_removed_makes_it_no_more(tmp_path, monkeypatch):
    launch = prepare(config(tmp_path, test_envs=[[0], [1], [2]]))
    removing(monkeypatch, launch.store.root)
    unwritten = launch.execute()
    assert list(unwritten) == list(launch.runs)
    first, *others = unwritten.values()
    assert "was removed while its run was under way: launch it again" in first
    for reason in others:
        assert f"{launch.store.root} was removed while its runs were in progress" in reason
    assert not launch.store.root.exists()


def test_plans_are_joined_where_there_are_no_locks_of_files(tmp_path, monkeypatch):
    def refused(*of_lock):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    launches = [prepare(config(tmp_path, test_envs=[[env]])) for env in range(3)]
    threads = [
        threading.Thread(target=launch.store.write_plan, args=(launch.config, launch.planned))
        for launch in launches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert launches[0].store.planned().keys() == {i for each in launches for i in each.runs}


def test_errors_and_names_reach_no_terminal_with_control_characters():
    lines = failure_lines([("\x1b[2Ja", "b\x9b", "c\x1b]0;x\x07\n")])
    assert lines == ["  a  b", "    c "]


def test_a_dry_run_tells_of_missing_data_and_devices(tmp_path, monkeypatch):
    here = prepare(config(tmp_path))
    assert here.obstacles() == []
    elsewhere = prepare(
        config(tmp_path, datasets=["PACS"], data_dir=str(tmp_path), device="cuda:99")
    )
    device, data = elsewhere.obstacles()
    assert device.startswith("device 'cuda:99' cannot be used")
    assert "domainbed data download PACS" in data
    absent = prepare(config(tmp_path, datasets=["PACS"], data_dir=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"PACS is not in '.*nowhere': get it with"):
        absent.submit()  # one error now, not one in each run
    assert not (tmp_path / "sweep" / "plan.json").exists()
    assert "by itself" not in data
    (fetched,) = prepare(
        config(tmp_path, datasets=["ColoredMNIST"], data_dir=str(tmp_path))
    ).obstacles()
    assert f"ColoredMNIST --data_dir {tmp_path}` (a first run does so by itself), or" in fetched


def test_the_work_of_a_look_grows_with_the_runs_and_no_faster(tmp_path):
    """Counted in function calls, which do not depend on how busy the machine is."""

    def calls(runs):
        wanted = config(tmp_path / str(runs), test_envs=[[0]], hparams_seeds=runs)
        launch = prepare(wanted)
        launch.store.write_plan(wanted, launch.planned)
        for run_id, spec in launch.runs.items():
            finish(launch.store.folder(run_id), spec)
        return {
            "status": counted(lambda: status_of(launch.store, launch.store.planned())),
            "launch": counted(lambda: prepare(wanted).costs()),
            "collect": counted(lambda: load_records(launch.store.root)),
        }

    calls(2)  # what is imported and cached once
    few, more, most = calls(20), calls(40), calls(80)
    for name in few:
        assert most[name] - more[name] < 2.2 * (more[name] - few[name]), name


def finish(folder, spec):
    folder.path.mkdir()
    folder.spec.write_text(json.dumps(spec.as_json()))
    accuracies = {f"env{e}_{split}_acc": 0.5 for e in range(3) for split in ("in", "out")}
    args = {**spec.as_json(), "hparams": None, "run_id": spec.run_id}
    record = {"step": 0, "args": args, "hparams": {}, **accuracies}
    folder.results.write_text(json.dumps(record) + "\n")
    folder.environment.write_text(json.dumps({"seconds": 1.0}))
    folder.done.write_text("done")


def counted(function):
    """How many functions a call of `function` calls."""
    calls = itertools.count()
    sys.setprofile(lambda frame, event, argument: event.endswith("call") and next(calls))
    try:
        function()
    finally:
        sys.setprofile(None)
    return next(calls)


def test_what_is_left_out_is_said_and_written_down(tmp_path, capsys):
    """Of MLDG's runs the one with two test domains of three."""
    fields = {"algorithms": ["MLDG", "ERM"], "test_envs": [[0], [0, 1]], "trials": 2}
    why = "MLDG needs at least 2 training domains, and 2 of the 3 of ColoredDigits are held out"
    launch_sweep(config(tmp_path, **fields), dry_run=True)
    printed = capsys.readouterr().out
    assert "6 runs, 0 done" in printed
    assert f"2 runs left out: {why}" in printed
    launch = prepare(config(tmp_path, **fields))
    for _ in range(2):
        launch.store.write_plan(launch.config, launch.planned, launch.left_out)
    assert json.loads(launch.store.plan.read_text())["left_out"] == [
        {"dataset": "ColoredDigits", "algorithm": "MLDG", "test_envs": [0, 1], "why": why}
    ]
    assert planned_gaps(launch.store.root) == {("ColoredDigits", "MLDG", (0, 1)): why}


def test_damage_to_what_a_launch_wrote_is_named(tmp_path, caplog):
    """A bit of the plan would name other runs, one of the config other settings."""
    launch = prepare(config(tmp_path))
    launch.store.write_plan(launch.config, launch.planned, launch.left_out)
    store, rng = launch.store, random.Random(0)
    assert store.planned() == launch.planned
    assert load_config(store.config, {}) == launch.config
    readers = {
        store.plan: lambda: store.planned(),
        store.config: lambda: load_config(store.config, {}),
    }
    for file, read in readers.items():
        whole = file.read_bytes()
        start = whole.index(b"\n") + 1 if file == store.config else 0
        for _ in range(40):
            changed = bytearray(whole)
            changed[rng.randrange(start, len(whole))] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(UserError, match=rf"{file} is damaged|{file.name}' cannot be read"):
                read()
            if file == store.plan:
                caplog.clear()
                assert planned_gaps(store.root) == {}
                assert f"{file} is damaged" in caplog.text
        file.write_bytes(whole)
        read()


def test_too_small_a_gpu_is_told_with_the_batch_size(tmp_path, monkeypatch):
    def run(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("domainbed.sweeps.launch.run", run)
    launch = prepare(config(tmp_path, test_envs=[[0]], hparams={"batch_size": 48}))
    launch.execute()
    assert launch.store.folder(launch.todo[0]).last_error() == (
        "there is not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB): choose a "
        "smaller batch_size, or fewer workers; batch_size is 48"
    )
