"""From a paper's table to a sweep, and to the comparison, without a paper's hours."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from domainbed.cli import main, papers
from domainbed.cli.papers import SCALES as OFFERED
from domainbed.config.run_fields import RunOptions
from domainbed.datasets import DATASETS
from domainbed.errors import UserError
from domainbed.reporting.published import get_source
from domainbed.runs.packed import write_pack
from domainbed.spec import RunSpec
from domainbed.sweeps import outlook
from domainbed.sweeps.outlook import Timing, measure
from domainbed.sweeps.reproduction import SCALES, left_out, reproduction
from domainbed.training.experiment import build

CONFIGS = Path(__file__).parents[2] / "configs"
SEVEN = ("ERM", "CORAL", "IRM", "VREx", "Fish", "Fishr", "DANN")


def test_the_papers_sweep():
    config = reproduction("fishr-2022", "ColoredMNIST")
    assert set(config.algorithms) == set(SEVEN)
    assert config.selection == ("training-domain", "oracle")
    assert (config.protocol, config.precision) == ("fishr-2022", "float32")
    runs = config.plan()
    assert len(runs) == 7 * 3 * 3 * 20  # algorithms, test domains, trials, draws: no pairs
    assert {(run.steps, run.checkpoint_freq, run.data_seed) for run in runs} == {(5001, 100, "run")}
    assert left_out(config, get_source("fishr-2022")) == []
    pairs = reproduction("domainbed-2020", "PACS", algorithms=["ERM"]).plan()
    assert len(pairs) == (4 + 6) * 3 * 20
    assert {run.draws for run in pairs} == {"in-sequence"}


def test_the_small_scale_is_that_of_the_small_config():
    small = yaml.safe_load((CONFIGS / "mnist_small.yaml").read_text())
    others = {name for name, value in SCALES["small"].items() if small.get(name) != value}
    assert others == {"steps", "eval_splits"}
    assert tuple(SCALES) == OFFERED


def test_what_the_small_scale_leaves_out():
    config = reproduction("fishr-2022", "ColoredMNIST", "small", None, ["oracle"])
    assert config.algorithms == ("ERM", "Fishr")
    assert config.output_dir == "results/fishr-2022/ColoredMNIST_small"
    assert len(config.plan()) == 2 * 3
    assert left_out(config, get_source("fishr-2022")) == [
        "left out: 2 of 3 trials, 19 of 20 draws of the hyper-parameters, 4899 of 5001 updates of "
        "each run, CORAL, DANN, IRM, VREx, Fish",
        "done differently: bf16 in place of float32, penalty_anneal_iters of Fishr is 50",
    ]


def test_hyperparameters_that_authors_chose():
    """By dataset, with the averages, intervals and the backbone of the paper's runs."""

    def first(*asked):
        config = reproduction(*asked)
        assert left_out(config, get_source(asked[0])) == []
        return config.plan()[0]

    run = first("miro-2022", "VLCS")
    names = ("miro_lambda", "lr", "resnet_dropout", "weight_decay")
    assert [run.hparams[name] for name in names] == [0.01, 1e-5, 0.5, 1e-6]
    assert (run.checkpoint_freq, run.averages) == (200, ())
    run = first("miro-2022-swad", "VLCS")
    assert [run.hparams[name] for name in names] == [0.01, 5e-5, 0.0, 0.0]
    assert (run.checkpoint_freq, run.averages, run.swad_rule) == (50, ("swad",), "authors")
    run = first("miro-2022-swag", "PACS")
    assert run.hparams["miro_lambda"] == 0.1
    assert run.hparams["backbone"] == "timm:regnety_160.swag_lc_in1k"
    run = first("sagm-2023", "PACS")
    assert (run.hparams["sagm_alpha"], run.checkpoint_freq) == (0.001, 100)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("fishr", "PACS"), "unknown paper 'fishr'"),
        (("fishr-2022", "PASC"), "dataset 'PASC'.*Did you mean 'PACS'"),
        (("fishr-2022", "PACS", "tiny"), "unknown scale 'tiny': expected one of paper, small"),
        (("fishr-2022", "PACS", "small", ["MLDG"]), "algorithm 'MLDG'"),
        (("fishr-2022", "PACS", "small", None, ["leave-one-domain-out"]), "selection 'leave-one"),
        (("fishr-2022", "Avg"), "'Avg'"),
    ],
)
def test_what_cannot_be_reproduced(asked, says):
    with pytest.raises(UserError, match=says):
        reproduction(*asked)


def test_packed_runs_are_compared_with_the_paper(tmp_path, monkeypatch):
    config = reproduction("fishr-2022", "ColoredMNIST", "small")
    compared = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papers, "_tell", lambda config, paper: compared.append(paper))
    Path(config.output_dir, "packed").mkdir(parents=True)
    write_pack(Path(config.output_dir), {run.run_id: {"done": b""} for run in config.plan()})
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "fishr-2022", "--dataset", "ColoredMNIST", "--scale", "small"])
    assert (ended.value.code, compared) == (0, ["fishr-2022"])


def test_the_time_by_hand():
    speed = Timing(0.01, 0.001, 2, 300, device="cpu", threads=1, model_bytes=1)
    run = RunSpec.create("ColoredMNIST", "ERM", [0], steps=101, checkpoint_freq=50)
    # 101 updates of 2 · 64 images, and records at 0, 50 and 100.
    assert speed.estimate(run, RunOptions()).seconds == pytest.approx(
        101 * 128 * 0.01 + 3 * 300 * 0.001
    )


def test_measuring():
    spec = RunSpec.create("ColoredDigits", "ERM", [0], hparams={"batch_size": 4})
    found = measure(spec, RunOptions(device="cpu"), threads=1)
    assert 0 < found.update < 1
    assert 0 < found.evaluation < 1
    assert found.train_domains == 2
    assert found.device == "cpu"
    network = build(spec, RunOptions(device="cpu")).algorithm
    assert found.model_bytes == 4 * sum(weight.numel() for weight in network.parameters())
    whole = 1797  # scikit-learn's digits; the training domains' in-splits are not evaluated
    assert whole * (1 / 3 + 0.2 * 2 / 3) == pytest.approx(found.images, abs=3)


@pytest.fixture
def digits(monkeypatch):
    """ColoredMNIST stands for the digits that come with scikit-learn."""
    monkeypatch.setitem(DATASETS._entries, "ColoredMNIST", DATASETS["ColoredDigits"])


def reproduce(*words):
    with pytest.raises(SystemExit) as exit:
        main(["reproduce", "fishr-2022", "--dataset", "ColoredMNIST", *words])
    return exit.value.code


def test_from_nothing_to_the_comparison(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SCALES["small"], "steps", 2)
    monkeypatch.setitem(SCALES["small"], "checkpoint_freq", 2)
    monkeypatch.setattr(outlook, "UPDATES", 1)
    folder = tmp_path / "sweep"
    words = ("--scale", "small", "--algorithms", "ERM", "--device", "cpu", "--launcher", "debug")
    words = (*words, "--output_dir", str(folder))
    assert reproduce(*words, "--dry_run") == 0
    text = capsys.readouterr().out
    assert "left out: 2 of 3 trials, 19 of 20 draws" in text
    assert "To do: " in text
    assert "(from a few updates of each)" in text
    assert not folder.exists()
    assert reproduce(*words) == 0
    text = capsys.readouterr().out
    assert "All runs are done (3)" in text
    assert "-------- Dataset: ColoredMNIST, model selection method: training-domain" in text
    assert "-------- Averages, model selection method: oracle, beside fishr-2022" in text
    assert "57.8 +/- 0.2" in text
    assert "not compared: steps 2 (published: 5001): all cells" in text
    assert reproduce(*words, "--dry_run") == 0
    assert "To do:" not in capsys.readouterr().out  # nothing is left to do


def test_without_the_data(tmp_path, capsys):
    words = ("--scale", "small", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"))
    assert reproduce(*words, "--dry_run") == 0
    text = capsys.readouterr().out
    assert "warning: ColoredMNIST is not in" in text
    assert "To do:" not in text
    assert reproduce(*words) == 2
    assert "error: ColoredMNIST is not in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
