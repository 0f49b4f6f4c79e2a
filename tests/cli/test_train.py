"""`domainbed train`, asked to stop."""

import json
import os
import signal

import pytest

from domainbed.algorithms import ERM
from domainbed.cli import main
from domainbed.datasets import DATASETS

COMMAND = ["train", "--steps", "8", "--checkpoint_freq", "5", "--hparams", '{"batch_size": 8}']


def train(folder, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*COMMAND, "--output_dir", str(folder)])
    return exit.value.code, capsys.readouterr().err


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "results.jsonl").open()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_every_step_and_ends_in_one_line(
    number, status, tmp_path, capsys, monkeypatch
):
    updates, update = [], ERM.update

    def signalling(self, *minibatches):
        updates.append(len(updates))
        if len(updates) == 4:
            os.kill(os.getpid(), number)
        return update(self, *minibatches)

    assert train(tmp_path / "whole", capsys)[0] == 0
    monkeypatch.setattr(ERM, "update", signalling)
    ended, err = train(tmp_path / "pieces", capsys)
    assert ended == status
    assert err.strip() == f"Interrupted; the same command resumes from {tmp_path / 'pieces'}"
    assert len(updates) == 4
    assert train(tmp_path / "pieces", capsys)[0] == 0
    assert len(updates) == 8
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")


def test_domainbeds_readme_abbreviates_a_flag(tmp_path):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--test_env", "2", "--steps", "1", "--output_dir", str(tmp_path)])
    assert exit.value.code == 0
    assert json.loads((tmp_path / "results.jsonl").read_text())["args"]["test_envs"] == [2]


def test_while_data_is_loaded_it_stops_at_once(tmp_path, capsys, monkeypatch, caplog):
    def loading(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(DATASETS["ColoredDigits"], "__init__", loading)
    assert train(tmp_path / "run", capsys)[0] == 143
    assert "error" not in caplog.text
