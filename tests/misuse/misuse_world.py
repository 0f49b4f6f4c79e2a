"""A user's folder for the table of wrong inputs: what is right in it, and each way to be wrong."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import edit_json
from PIL import Image

from domainbed.cli import main

TINY = ["--steps", "1", "--hparams", '{"batch_size": 8}']

CONFIG = """\
datasets: ColoredDigits
algorithms: ERM
selection: oracle
test_envs: [[0]]
trials: 1
hparams_seeds: 1
steps: 1
hparams: {batch_size: 8}
launcher: debug
skip_model_save: true
"""


def done(*words: str) -> None:
    """Does a command that must succeed."""
    with pytest.raises(SystemExit) as exit:
        main(list(words))
    assert exit.value.code == 0, words


def build_world() -> None:
    """Fills the working folder."""
    done("train", "--dataset", "ColoredDigits", *TINY, "--output_dir", "run")
    Path("sweep.yml").write_text(CONFIG)
    done("sweep", "launch", "sweep.yml", "--output_dir", "sweep")
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("mine")
    Path("empty").mkdir()
    Path("link").symlink_to("foreign")
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    Path("file").write_text("some text\n")
    Path("binary").write_bytes(bytes(range(256)) * 4)
    _images()
    _plugins()
    _weights()
    for name, change in DAMAGED_RUNS.items():
        _copy("run", f"runs/{name}", change)
    for name, change in DAMAGED_SWEEPS.items():
        _copy("sweep", f"sweeps/{name}", change)


def _copy(source: str, target: str, change: Callable[[Path], object]) -> None:
    shutil.copytree(source, target)
    change(Path(target))


def _images() -> None:
    for domain in ("art", "photo"):
        for number, label in enumerate(("cat", "dog")):
            folder = Path("photos") / domain / label
            folder.mkdir(parents=True)
            for shade in range(3):
                Image.new("RGB", (8, 8), (80 * shade, 99, 99 * number)).save(
                    folder / f"{shade}.png"
                )
    shutil.copytree("photos", "broken_photos")
    Path("broken_photos/art/cat/0.png").write_bytes(b"no image")
    Path("one_domain/art/cat").mkdir(parents=True)
    shutil.copy("photos/art/cat/0.png", "one_domain/art/cat")


def _plugins() -> None:
    for name, text in PLUGINS.items():
        Path(f"{name}.py").write_text(_PLUGIN_HEAD + text)


def _weights() -> None:
    torch.save({"a": 1}, "numbers.pt")
    torch.save({"other.weight": torch.zeros(2)}, "other.pt")
    Path("harmful.pt").write_bytes(harmful_pickle())
    Path("cut.pt").write_bytes(Path("other.pt").read_bytes()[:100])


class _Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harmed"),))


def harmful_pickle() -> bytes:
    """A pickle that makes the file `harmed` where it is read without care."""
    return pickle.dumps({"model_dict": _Harm()})


_PLUGIN_HEAD = """\
import torch
from domainbed.algorithms import Algorithm, register_algorithm
from domainbed.config.dimensions import Choice, Fixed, LogUniform, Option, Uniform
from domainbed.datasets import DATASETS
"""

_CLASS = (
    "    def update(self, minibatches, unlabeled=None): return {}\n    def predict(self, x): ...\n"
)

PLUGINS = {
    "broken": "1 / 0",
    "no_syntax": "def",
    "exits": "raise SystemExit(3)",
    "space_of_numbers": "@register_algorithm(search_space={'a': 3})\nclass Mine(Algorithm):\n"
    + _CLASS,
    "space_is_list": "@register_algorithm(search_space=['a'])\nclass Mine(Algorithm):\n" + _CLASS,
    "function": "@register_algorithm\ndef mine(x): ...",
    "no_algorithm": "@register_algorithm\nclass Mine:\n" + _CLASS,
    "no_update": "@register_algorithm\nclass Mine(Algorithm):\n    def predict(self, x): ...",
    "no_predict": "@register_algorithm\nclass Mine(Algorithm):\n    def update(self, m, u): ...",
    "uniform": "Uniform(0.5, 1, 0)",
    "uniform_default": "Uniform(5, 0, 1, below=2)",
    "uniform_nan": "Uniform(0.5, 0, float('nan'))",
    "uniform_text": "Uniform(0.5, 'a', 1)",
    "log_uniform": "LogUniform(1.0, 3, -3)",
    "log_uniform_base": "LogUniform(1.0, -3, 3, base=0)",
    "choice_empty": "Choice(1, ())",
    "choice_default": "Choice('a', (1, 2))",
    "option_default": "Option('c', 'doc', ('a', 'b'))",
    "twice": "@register_algorithm\nclass ERM(Algorithm):\n" + _CLASS,
}


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def _folder_instead(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def _flip(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


def _edited(name: str, **values: object) -> Callable[[Path], object]:
    """Changes fields of a JSON file, and its digest with them."""
    return lambda folder: edit_json(folder / name, **values)


def _records(content: str | bytes) -> Callable[[Path], object]:
    """Other records, as those of DomainBed without a digest."""
    return _both(_write("results.jsonl", content), _write("done", "done"))


def _both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [change(folder) for change in changes]


DEEP = "[" * 100_000

DAMAGED_RUNS = {
    "no_spec": _remove("run.json"),
    "spec_is_list": _write("run.json", "[1]"),
    "spec_is_text": _write("run.json", "steps"),
    "spec_is_deep": _write("run.json", DEEP),
    "spec_is_binary": _write("run.json", b"\xff\xfe\x00"),
    "spec_is_empty": _write("run.json", ""),
    "spec_is_folder": _folder_instead("run.json"),
    "spec_lacks": _write("run.json", "{}"),
    "spec_steps": _edited("run.json", steps="many"),
    "spec_algorithm": _edited("run.json", algorithm="Unheard"),
    "spec_dataset": _edited("run.json", dataset="Unheard"),
    "spec_hparams": _edited("run.json", hparams=3),
    "spec_hparams_empty": _edited("run.json", hparams={}),
    "spec_protocol": _edited("run.json", protocol="unheard"),
    "spec_seed": _edited("run.json", seed=-1),
    "not_done": _remove("done"),
    "no_model": _remove("model.pkl"),
    "model_flipped": _flip("model.pkl"),
    "model_empty": _both(_write("model.pkl", b""), _remove("model.pkl.sha256")),
    "model_text": _both(_write("model.pkl", b"weights"), _remove("model.pkl.sha256")),
    "model_harmful": _both(_write("model.pkl", harmful_pickle()), _remove("model.pkl.sha256")),
    "model_is_folder": _folder_instead("model.pkl"),
    "digest_binary": _write("model.pkl.sha256", b"\xff\xff"),
    "records_empty": _records(""),
    "records_gone": _remove("results.jsonl"),
    "records_text": _records("accuracy 0.5\n"),
    "records_list": _records("[1, 2]\n"),
    "records_number": _records("3\n"),
    "records_deep": _records(DEEP + "\n"),
    "records_binary": _records(b"\xff\xfe\n{}\n"),
    "records_lack": _records('{"step": 0}\n'),
    "records_torn": _records('{"step": 0, "ar'),
    "records_folder": _folder_instead("results.jsonl"),
    "records_flipped": _flip("results.jsonl"),
    "records_accuracy": _records(
        '{"step": 0, "env0_in_acc": 30, "env0_out_acc": 0.5, "args": {"dataset": "A", '
        '"algorithm": "B", "test_envs": [0], "hparams_seed": 0, "trial_seed": 0}}\n',
    ),
    "records_step": _records('{"step": "one", "args": {}}\n'),
    "records_args": _records('{"step": 0, "args": [], "hparams": {}}\n'),
}

DAMAGED_SWEEPS = {
    "no_plan": _remove("plan.json"),
    "no_config": _remove("sweep.yaml"),
    "plan_is_list": _write("plan.json", "[]"),
    "plan_is_text": _write("plan.json", "runs"),
    "plan_is_empty": _write("plan.json", ""),
    "plan_is_deep": _write("plan.json", DEEP),
    "plan_is_binary": _write("plan.json", b"\xff\xfe"),
    "plan_lacks": _write("plan.json", "{}"),
    "plan_of_numbers": _write("plan.json", '{"version": 1, "runs": {"a": 3}}'),
    "plan_of_lists": _write("plan.json", '{"version": 1, "runs": [1, 2]}'),
    "plan_run_lacks": _write("plan.json", '{"version": 1, "runs": {"a": {}}}'),
    "plan_other_version": _write("plan.json", '{"version": 99, "runs": {}}'),
    "config_is_list": _write("sweep.yaml", "[a]"),
    "config_is_binary": _write("sweep.yaml", b"\xff\xfe"),
    "config_is_torn": _write("sweep.yaml", "datasets: [Colored"),
    "config_selection": _write("sweep.yaml", CONFIG.replace("oracle", "unheard")),
}
