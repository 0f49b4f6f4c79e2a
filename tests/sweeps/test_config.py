"""Configs: what they mean, and that an error names the field, the file and the line."""

import re
import textwrap

import pytest
import yaml

from domainbed.algorithms import ALGORITHMS
from domainbed.errors import UserError
from domainbed.sweeps.config import load_config

GOOD = """\
datasets: [ColoredDigits]
algorithms: [ERM, Fishr]
steps: 10
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "mine.yaml"
        file.write_text(textwrap.dedent(text))
        return file

    return write


def test_defaults_are_the_published_protocol(write):
    config = load_config(write(GOOD))
    assert config.trials == (0, 1, 2)
    assert config.hparams_seeds == tuple(range(20))
    assert config.selection == ("training-domain", "leave-one-domain-out", "oracle")
    assert config.output_dir == "results/mine"
    assert config.launcher == {"name": "local"}
    assert config.holdout_fraction == 0.2


@pytest.mark.parametrize(
    ("added", "line", "says"),
    [
        ("stepps: 3", 4, "field 'stepps': unknown field. Did you mean 'steps'?"),
        ("trials: many", 4, "field 'trials': expected a count from 1 on or a list of seeds"),
        ("trials: [0, -1]", 4, "field 'trials[1]': expected a whole number from 0 on, found -1"),
        ("trials: [0, 1, 0]", 4, "field 'trials': 0 is listed twice: name each seed once"),
        ("trials: 0", 4, "field 'trials': expected a count from 1 on"),
        ("hparams_seeds:\n- 0\n- x", 6, "field 'hparams_seeds[1]': expected a whole number"),
        ("checkpoint_freq: 0", 4, "field 'checkpoint_freq': expected a whole number from 1 on"),
        ("skip_model_save: 3", 4, "field 'skip_model_save': expected true or false, found 3"),
        (
            "holdout_fraction: 2",
            4,
            "field 'holdout_fraction': expected a number above 0, below 1, found 2",
        ),
        ("holdout_fraction: 0", 4, "field 'holdout_fraction': expected a number above 0, below 1"),
        ("selection:\n  - orcale", 5, "field 'selection[0]': unknown selection method 'orcale'"),
        ("test_envs: [[0], [7]]", 4, "field 'test_envs[1]': test_envs is (7,): expected domains"),
        ("test_envs:\n- [0]\n- [0, 1, 2]", 6, "a training domain left"),
        ("test_envs: [[a]]", 4, "field 'test_envs[0][0]': expected a whole number"),
        ("task: chess", 4, "field 'task': expected one of domain_generalization, domain_ad"),
        (
            "precision: half",
            4,
            "field 'precision': expected one of float32, bf16, tf32, found 'half'",
        ),
        ("task: domain_adaptation\nuda_holdout_fraction: 0", 5, "is 0.0: expected more than 0"),
        ("checkpoint_freq: '3'", 4, "expected a whole number from 1 on, found '3'"),
        ("checkpoint_freq: true", 4, "expected a whole number from 1 on, found True"),
        ("checkpoint_freq: 010", 4, "010 can be read in two ways"),
        ("test_envs: [[1, 1]]", 4, "field 'test_envs[0]': expected each domain once"),
        ("trials: 1000\nhparams_seeds: 1001", 5, "12,012,000 runs: expected at most 1,000,000"),
        ("trials: 1000000000000", 4, "field 'trials': expected at most 1,000,000 seeds"),
        ("launcher: {name: [local]}", 4, "field 'launcher.name': expected the name of a"),
        ("launcher: 3", 4, "field 'launcher': expected a text or names with values, found 3"),
        ("eval_splits: some", 4, "field 'eval_splits': expected one of all, needed, sel"),
        ("launcher: locale", 4, "field 'launcher': unknown launcher 'locale'. Did you mean"),
        ("launcher:\n  name: local\n  gpus: 2", 6, "no option 'gpus'. Known: workers"),
        ("launcher: {name: local, workers: 0}", 4, "workers is 0: expected a whole number"),
        ("plugins: [no_such_module]", 4, "plug-in 'no_such_module' cannot be imported"),
        ("plugins: [gone.py]", 4, "gone.py' does not exist"),
        ("hparams:\n  lr: 0.1\n  batchsize: 2", 6, "field 'hparams.batchsize': unknown hyper"),
        ("hparams:\n  lambda: 2", 5, "unknown hyper-parameter 'lambda' of ERM"),
        ("hparams:\n  Fishr:\n    emma: 2", 6, "field 'hparams.Fishr.emma': unknown hyper"),
        ("hparams: {lr: fast}", 4, "hyper-parameter 'lr' of ERM cannot be 'fast'"),
        ("hparams: [1]", 4, "field 'hparams': expected names with values"),
        ("steps: 12", 4, "'steps' is given twice"),
        ("device: [", 5, "no valid YAML"),
        ("a: b: c", 4, "no valid YAML"),
    ],
)
def test_an_error_names_field_file_and_line(write, added, line, says):
    file = write(GOOD + added + "\n")
    with pytest.raises(UserError) as error:
        load_config(file)
    message = str(error.value)
    assert message.startswith(f"{file}, line {line}")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("datasets: [PACSS]\nalgorithms: [ERM]", "line 1, field 'datasets[0]': unknown dataset"),
        ("datasets: PACS\nalgorithms:\n- ERM\n- Fishrr", "line 4, field 'algorithms[1]': unknown"),
        ("datasets: [PACS]", "field 'algorithms': is missing: give it"),
        ("datasets: []\nalgorithms: ERM", "line 1, field 'datasets': expected at least one"),
        ("datasets: [1]\nalgorithms: ERM", "line 1, field 'datasets[0]': expected a text"),
        ("- a\n- b", "line 1: expected fields with values"),
    ],
)
def test_datasets_and_algorithms_are_checked(write, text, says):
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(write(text))


def test_a_config_that_is_not_there():
    with pytest.raises(UserError, match=r"'gone\.yaml' cannot be read: No such file"):
        load_config("gone.yaml")


def test_folders_of_one_name_collide(write, tmp_path):
    for place in "ab":
        for domain in "xyz":
            (tmp_path / place / "Birds" / domain).mkdir(parents=True)
    text = f"""\
    algorithms: [ERM]
    datasets:
    - folder:{tmp_path}/a/Birds
    - folder:{tmp_path}/b/Birds
    """
    says = r"line 4, field 'datasets\[1\]': .* would both be called 'Birds'"
    with pytest.raises(UserError, match=says):
        load_config(write(text))


def test_overrides_win_and_their_errors_name_the_flag(write):
    file = write(GOOD + "launcher: {name: local, workers: 1}\n")
    config = load_config(file, {"steps": 7, "algorithms": ["IRM"]}, workers=3)
    assert (config.steps, config.algorithms) == (7, ("IRM",))
    assert config.launcher == {"name": "local", "workers": 3}
    with pytest.raises(UserError, match=r"^--steps: expected a whole number from 1 on, found 0$"):
        load_config(file, {"steps": 0})
    with pytest.raises(UserError, match=r"^--algorithms: unknown algorithm 'ERN'"):
        load_config(file, {"algorithms": ["ERN"]})
    with pytest.raises(
        UserError, match=r"^--hparams: unknown hyper-parameter 'lrr' of ERM\. Did you mean 'lr'\?$"
    ):
        load_config(file, {"hparams": {"lrr": 1}})
    with pytest.raises(UserError, match=r"^--workers: .*workers is 0"):
        load_config(file, workers=0)
    with pytest.raises(UserError, match=r"^--workers: the launcher 'debug' has no option"):
        load_config(file, {"launcher": "debug"}, workers=2)


def test_an_algorithms_own_hparams_go_to_it_alone(write):
    config = load_config(
        write(GOOD + "hparams: {lr: 1e-3, Fishr: {ema: 0.5, lr: 2e-3}, IRM: {irm_lambda: 1}}\n")
    )
    fixed = {run.algorithm: run.fixed_hparams for run in config.plan()}
    assert fixed == {"ERM": {"lr": 0.001}, "Fishr": {"lr": 0.002, "ema": 0.5}}


def test_a_written_config_reads_the_same(write, tmp_path):
    text = GOOD + "test_envs: [[0], [0, 1]]\nhparams: {batch_size: 4}\nlauncher: debug\n"
    config = load_config(write(text))
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(config.as_yaml_value()))
    assert load_config(copy) == config


def test_plugins_register_what_the_config_names(write, tmp_path, monkeypatch):
    monkeypatch.setattr(ALGORITHMS, "_entries", {**ALGORITHMS._entries})  # forgets it afterwards
    plugin = tmp_path / "my_plugin.py"
    plugin.write_text(
        "from domainbed.algorithms import ERM, register_algorithm\n"
        "@register_algorithm\n"
        "class SweptERM(ERM):\n"
        "    pass\n"
    )
    text = f"datasets: [PACS]\nalgorithms: [SweptERM]\nplugins: [{plugin}]\n"
    config = load_config(write(text))
    assert config.algorithms == ("SweptERM",)
    assert load_config(write(text)) == config  # imported once, registered once
