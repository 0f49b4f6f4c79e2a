"""What a folder from elsewhere names: no process is ended, and no address contacted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from domainbed.cli import main
from domainbed.errors import UserError
from domainbed.launchers import LocalLauncher
from domainbed.runs.ownership import Process, process_stat, shown_job
from domainbed.sweeps.config import load_config
from domainbed.sweeps.engines import cancel, in_hand
from domainbed.sweeps.launch import common_of, prepare
from domainbed.sweeps.store import Store


@pytest.fixture
def bystander():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def named(pid):
    here = Process.here()
    return replace(here, pid=pid, started=process_stat(pid)[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc")
def test_a_signal_goes_to_the_very_process_that_was_written_down(bystander):
    right, host = named(bystander.pid), socket.gethostname()
    wrong = [
        f"{host}:{bystander.pid}",
        replace(right, started="1").name(),
        replace(right, boot="another").name(),
        replace(right, namespace="another").name(),
        f"{'0' * 16}@{host}:{bystander.pid}",
        *(f"{host}:{number}" for number in ("0", "-1", "1", "x", "")),
    ]
    for job in wrong:
        assert not LocalLauncher().reaches(job)
        LocalLauncher().cancel([job])
    time.sleep(0.1)
    assert bystander.poll() is None
    with pytest.raises(UserError, match="runs on elsewhere: stop it there"):
        LocalLauncher().cancel([replace(right, host="elsewhere").name()])
    LocalLauncher().cancel([right.name()])
    assert bystander.wait(10) == -signal.SIGTERM
    assert shown_job(right.name()) == f"{host}:{bystander.pid}"


@pytest.fixture
def folder(tmp_path):
    """A sweep's folder whose pending run and config name a cluster; who connects is counted."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    address = f"127.0.0.1:{server.getsockname()[1]}"
    fields = {
        "datasets": ["ColoredDigits"],
        "algorithms": ["ERM"],
        "trials": 1,
        "hparams_seeds": 1,
        "selection": ["oracle"],
        "output_dir": str(tmp_path / "sweep"),
    }
    launch = prepare(load_config(None, fields))
    launch.store.write_plan(launch.config, launch.planned, (), common_of(launch.runs))
    first = next(iter(launch.runs))
    launch.store.folder(first).mark_pending("ray", f"ray-0123456789ab_0@{address}", {})
    yield launch.store.root, address, server
    server.close()


def nobody_connected(server):
    with pytest.raises(TimeoutError):
        server.accept()


def test_no_address_is_contacted_that_only_a_folder_names(folder, capsys, monkeypatch, caplog):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    root, address, server = folder
    config = load_config(root / "sweep.yaml")
    statuses = Store(root).statuses(Store(root).planned())
    assert in_hand(statuses, config.launcher) == set()
    assert f"ray jobs such as ray-0123456789ab_0@{address} are left alone" in caplog.text
    assert cancel(Store(root), statuses, config.launcher) == {}
    kept = root / "sweep.yaml"
    text = kept.read_text().partition("\n")[2]  # without its digest, as by hand
    kept.write_text(text.replace("name: local", f"{{name: ray, address: '{address}'}}", 1))
    for command in ("launch", "retry", "plan", "cancel", "rerun-best"):
        with pytest.raises(SystemExit) as ended:
            main(["sweep", command, str(root), *(["--dry_run"] if command == "launch" else [])])
        assert ended.value.code == 2
        assert f"if you trust it, add --address {address}" in capsys.readouterr().err
    nobody_connected(server)
    assert load_config(kept, address=address).launcher["address"] == address
