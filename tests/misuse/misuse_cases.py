"""The table of wrong inputs: commands, and what their error must name."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from misuse_world import DAMAGED_RUNS, DAMAGED_SWEEPS, DEEP, PLUGINS


@dataclass(frozen=True)
class Case:
    """A command line that is wrong, and the words that the message must have."""

    argv: tuple[str, ...]
    says: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.argv)[:70]


def case(command: str, *says: str, last: str | None = None) -> Case:
    """`last` is one more word, whatever it holds."""
    return Case((*shlex.split(command), *([] if last is None else [last])), says)


# ---- flags: command, and for each flag wrong values; the message names the flag and the value ----

_HPARAMS = (
    *('{"lr": 0}', '{"lr": -1}', '{"lr": "x"}', '{"lr": null}', '{"lr": true}', '{"lr": [1]}'),
    *('{"lr": NaN}', '{"lr": 1e999}', '{"weight_decay": -0.1}', '{"batch_size": 0}'),
    *('{"batch_size": 1.5}', '{"batch_size": -3}', '{"batch_size": 1000000000000}'),
    *('{"resnet_dropout": 2}', '{"resnet_dropout": -0.1}', '{"resnet_dropout": 1}'),
    *('{"mlp_dropout": 1.5}', '{"mlp_depth": 0}', '{"mlp_depth": 1}', '{"mlp_width": 0}'),
    *(
        '{"weights": "imagenet"}',
        '{"weights": "missing.pt"}',
        '{"weights": 3}',
        '{"backbone": "x"}',
    ),
    *('{"featurizer": "x"}', '{"learning_rate": 0.1}', '{"class_balanced": 1}', '{"": 1}'),
    *('{"nonlinear_classifier": "yes"}', '{"data_path": "slow"}', '{"packed_size": 0}'),
    *('{"resnet18": 0}', '{"corrupt_images": "ignore"}'),
)
_NO_OBJECTS = ("3", "[]", "lr", '"lr"', "null", "{", "[1", "{lr", '{"lr": 1, "lr": 2}', "{1: 2}")

_RUN_FLAGS = {
    "steps": ("0", "-1", "x", "1.5", "[1]", "true", ".nan", "'3'", "010", "1:30"),
    "checkpoint_freq": ("0", "-1", "x"),
    "holdout_fraction": ("0", "1", "-0.1", "2", "x", ".inf"),
    "uda_holdout_fraction": ("1", "-1", "x", "0.5"),
    "task": ("x", "domain-generalization"),
    "draws": ("x", "by_name"),
    "data_seed": ("x",),
    "eval_splits": ("x", "none"),
    "metrics": ("x", "acuracy"),
    "precision": ("x", "float16"),
    "on_divergence": ("x", "ignore"),
    "initial_weights": ("x", "text"),
    "wise_alpha": ("-0.1", "2", "x"),
    "averages": ("x", "SWAD", "ema sma"),
    "ema_decay": ("1", "-0.1", "x"),
    "sma_start": ("-1", "x", "1.5"),
    "swad_n_converge": ("0", "7", "x"),
    "swad_n_tolerance": ("0", "2", "x"),
    "swad_ratio": ("0.9", "x", ".nan"),
    "protocol": ("x", "domainbed-2019"),
    "num_workers": ("-1", "x", "1.5"),
}
_TRAIN_FLAGS = {
    **_RUN_FLAGS,
    "dataset": ("", "x", "PASC", "folder:", "folder:missing", "folder:file", "x.yaml", "x.csv"),
    "algorithm": ("", "x", "Fisher", "Fishr+Fishr", "Fishr+x", "erm"),
    "test_envs": ("-1", "3", "x", "1.5", "99999999999999999999"),
    "hparams_seed": ("-1", "x", "1.5", "99999999999999999999999"),
    "trial_seed": ("-1", "x", "99999999999999999999999"),
    "seed": ("-1", "x", "4294967296", "99999999999999999999999"),
    "device": ("x", "mps", "cuda:99", "meta", "cpu:x", "cuda:-1"),
    "plugins": ("missing.py", "no_such_module", "file"),
    "plugins_changed": ("x", "Accept"),
}
_SWEEP_FLAGS = {
    **_RUN_FLAGS,
    "datasets": ("", "x", "folder:missing"),
    "algorithms": ("", "x", "Fisher", "Fishr+x"),
    "trials": ("0", "-1", "x", "[]", "1.5", "[-1]", "[x]", "1000000000000", "[[1]]"),
    "hparams_seeds": ("0", "-1", "x", "[]", "1000000000000"),
    "test_envs": ("-1", "[[3]]", "[[0, 0]]", "x", "[[]]", "[]", "[[0, 1, 2]]"),
    "selection": ("x", "Oracle"),
    "launcher": ("x", "{name: 3}", "{name: local, x: 1}", "{name: local, workers: 0}", "3"),
    "workers": ("0", "-1", "x"),
    "plugins": ("missing.py", "no_such_module"),
}
_IRM_FLAGS = {
    "algorithms": ("x", "DANN"),
    "restarts": ("0", "-1", "x", "[]", "1000000000000"),
    "jobs": ("0", "x"),
    "label_flip": ("-1", "1", "x"),
    "steps": ("0", "x"),
    "hidden_dim": ("0", "x"),
    "lr": ("-1", "x"),
    "l2_weight": ("-1",),
    "penalty_weight": ("-1", ".inf"),
    "anneal_step": ("-1",),
    "format": ("x",),
}
_DIAGNOSE_FLAGS = {
    "format": ("x",),
    "plot": ("x.doc", "missing/x.png", "x"),
    "curvature": ("x",),
    "landscape": ("0 0", "7 8", "x", "1", "-1 0"),
    "epsilon": ("0", "-1", "x", "nan"),
    "damping": ("-1", "x", "nan"),
    "samples": ("-1", "x"),
    "dataset": ("x", "RotatedDigits", "folder:missing"),
    "device": ("x", "mps"),
    "num_workers": ("-1", "x"),
    "plugins": ("missing.py",),
}
_PREDICT_FLAGS = {
    "domain": ("3", "-1", "x"),
    "dataset": ("x", "RotatedDigits"),
    "device": ("x", "cuda:99"),
    "plugins": ("missing.py",),
}

_OUT = "--output_dir out"
FLAGS = {
    f"train --steps 1 {_OUT}": _TRAIN_FLAGS,
    f"sweep launch sweep.yml {_OUT}": _SWEEP_FLAGS,
    f"sweep retry sweep.yml {_OUT}": {"steps": ("0",), "algorithms": ("x",)},
    f"irm-colored-mnist {_OUT}": _IRM_FLAGS,
    "model diagnose run": _DIAGNOSE_FLAGS,
    "model predict run --domain 0": _PREDICT_FLAGS,
    "model average run --method ensemble": {
        "method": ("x", "soup"),
        "algorithms": ("x",),
    },
    "model adapt .": {"algorithms": ("x",), "supports": ("-1", "x"), "device": ("x",)},
    f"model zero-shot folder:photos {_OUT}": {
        "backbone": ("x", "resnet18", "open_clip:x", "open_clip:ViT-B-16.x"),
        "weights": ("missing.pt",),
        "prompts": ("x", "imagenet-8"),
        "precision": ("x",),
    },
    "model predict run --save_predictions": {"dataset": ("x",), "device": ("x",)},
    "errors run --algorithms ERM Fishr": {
        "algorithms": ("x", "ERM", "Fisher"),
        "selection": ("x", "Oracle"),
        "datasets": ("x", ""),
        "top": ("0", "-1", "x"),
        "format": ("x", "markdown"),
    },
    "collect run": {
        "format": ("x", "html"),
        "decimals": ("x", "-1", "99"),
        "spread": ("x", "sd"),
        "order": ("x", "best"),
        "domains": ("x", "Avg"),
        "selection": ("x", "Oracle"),
        "datasets": ("x",),
        "algorithms": ("x", "Fisher"),
        "output": ("missing/tables.txt", "empty"),
    },
    "top-hparams --input_dir run --dataset ColoredDigits --algorithm ERM --test_env 0": {
        "dataset": ("x",),
        "algorithm": ("x",),
        "test_env": ("x", "2", "-1"),
        "selection": ("x",),
        "top": ("0", "-1", "x"),
        "format": ("x",),
        "input_dir": ("missing", "file", "empty", "foreign"),
    },
    "data pack folder:photos": {
        "size": ("0", "-1", "x"),
        "format": ("x",),
        "corrupt_images": ("x",),
        "plugins": ("missing.py",),
    },
    "data verify folder:photos": {"format": ("x",)},
    "compare run": {
        "with": ("x", "fishr", "fishr-2022"),
        "format": ("x", "yaml"),
        "selection": ("x", "Oracle"),
        "datasets": ("x",),
        "algorithms": ("x", "Fisher"),
        "baseline": ("x", "Fishr"),
        "unit": ("x", "run"),
        "rope": ("x", "-1", "0", "nan", "inf"),
    },
    "report run": {
        "output": ("missing/report.html", "empty"),
        "selection": ("x", "Oracle"),
        "datasets": ("x",),
        "algorithms": ("x", "Fisher"),
        "baseline": ("x", "Fishr"),
        "port": ("x", "8000"),
        "host": ("0.0.0.0",),
    },
    "report run --serve": {"port": ("-1", "99999"), "host": ("256.1.1.1",)},
    "plot run curves --output out.svg": {
        "output": ("figure", "figure.jpg", "missing/figure.pdf"),
        "selection": ("x",),
        "baseline": ("x",),
    },
    f"reproduce fishr-2022 --dataset ColoredMNIST --scale small {_OUT}": {
        "dataset": ("x", "PASC", "ColoredDigits"),
        "scale": ("x", "tiny"),
        "algorithms": ("x", "MLDG"),
        "selection": ("x", "leave-one-domain-out"),
        "device": ("x", "cuda:99"),
        "launcher": ("x", "3"),
        "workers": ("0", "x"),
        "data_dir": ("missing", "file"),
    },
    "published fishr-2022": {
        "dataset": ("PASC", "", "avg"),
        "selection": ("x", "Oracle", "leave-one-domain-out"),
        "algorithms": ("x", "MLDG"),
        "format": ("x", "html"),
    },
    **{
        command: {"plugins": ("missing.py", "broken.py")}
        for command in (
            *(
                "list algorithms",
                "collect run --format csv",
                "report run -o page.html",
                "published",
            ),
            *("errors run --algorithms ERM IRM", "plot run ranks -o drawn.png"),
            *("data download PACS", "data verify folder:photos --format json"),
            "reproduce fishr-2022 --dataset RotatedMNIST",
            "top-hparams --top 1 --input_dir run --dataset X --algorithm X --test_env 0",
        )
    },
}


def _of_flags() -> Iterator[Case]:
    for command, flags in FLAGS.items():
        for flag, values in flags.items():
            for value in values:
                words = value.split() if flag == "landscape" else [value]
                argv = (*shlex.split(command), f"--{flag}", *words)
                yield Case(argv, _says(flag, value))


def _says(flag: str, value: str) -> tuple[str, ...]:
    """The words for a flag's value; a path or a plug-in is named without its flag."""
    if flag in ("dataset", "datasets") and set(value) & set(".:"):
        return (value.partition(":")[2] or value,)
    if flag in ("input_dir", "plugins", "with", "data_dir"):
        return (value,)
    if flag in ("workers", "landscape"):
        return (flag,)
    return flag.removesuffix("s"), _shown(value)


def _shown(value: str) -> str:
    """What a message shows of a value, however it writes numbers and quotes."""
    return "" if set(value) & set("{}[]'\".:") or len(value) > 15 else value.rpartition("+")[2]


def _of_hparams() -> Iterator[Case]:
    for value in _HPARAMS:
        name = value.split('"')[1]
        yield case("train --steps 1 --output_dir out --hparams", name, last=value)
        yield case("sweep launch sweep.yml --output_dir out --hparams", name, last=value)
    for value in (*_NO_OBJECTS, DEEP, '{"a":' * 50_000):
        yield case("train --output_dir out --hparams", "hparams", last=value)
    for name, value in {
        "Fish": '{"meta_lr": -1}',
        "DANN": '{"mlp_depth": 1}',
        "Fishr": '{"ema": 1.5}',
        "IRM": '{"irm_lambda": -1}',
        "VREx": '{"vrex_penalty_anneal_iters": -1}',
        "CORAL": '{"mmd_gamma": -1}',
    }.items():
        words = f"train --output_dir out --algorithm {name} --hparams"
        yield case(words, value.split('"')[1], last=value)
    for value in (
        '{"beta1": 1}',
        '{"d_steps_per_g_step": -1}',
        '{"lr_d": 0}',
        '{"mlp_dropout": 1}',
    ):
        words = "train --output_dir out --algorithm DANN --hparams"
        yield case(words, value.split('"')[1], last=value)


# ---- folders and files ----

_NO_FOLDERS = ("missing", "file", "empty", "foreign", "link", "dangling", "pipe", "", "n" * 300)
_FOLDER_COMMANDS = (
    *("collect", "compare", "model diagnose", "model predict --domain 0", "sweep status"),
    *("report", "report --serve --port 0", "plot --output out.png curves"),
)


def _of_folders() -> Iterator[Case]:
    for folder in _NO_FOLDERS:
        for command in _FOLDER_COMMANDS:
            yield case(command, folder, last=folder)
        if folder not in ("empty", "dangling", "missing"):
            yield case("train --steps 1 --output_dir", folder, last=folder)
        if folder not in ("empty", "foreign", "link", "dangling", "missing", ""):
            yield case("sweep launch sweep.yml --output_dir", folder, last=folder)
        if folder not in ("empty", "foreign", "link", ""):
            yield case("sweep delete-incomplete --skip_confirmation", folder, last=folder)
        if folder not in ("dangling", ""):
            words = "train --steps 1 --output_dir out --dataset"
            yield case(words, "", last=f"folder:{folder}")
            yield case("data verify", "", last=f"folder:{folder}")
            yield case("data pack", "", last=f"folder:{folder}")
    yield case("train --output_dir sweep --steps 1", "sweep")
    yield case("train --output_dir run --steps 2", "run", "steps")
    yield case("sweep launch foreign", "foreign")
    yield case("sweep retry empty", "empty")
    yield case("sweep status pipe", "pipe")
    yield case("model predict run", "domain")
    yield case("model predict run --domain 0 --save_predictions", "--domain", "--save_predictions")
    yield case("model predict run photos/art/cat/0.png", "domain")
    yield case("model predict run file --domain 0", "domain")


def _of_damage() -> Iterator[Case]:
    for name in DAMAGED_RUNS:
        place = f"runs/{name}"
        if name.startswith("records"):
            yield case(f"collect {place}", place)
            top = "top-hparams --dataset ColoredDigits --algorithm ERM --test_env 0"
            yield case(f"{top} --input_dir {place}", place)
        else:
            yield case(f"model predict --domain 0 {place}", "")
            yield case(f"model diagnose {place}", "")
        if name.startswith("spec_is"):
            words = f"train --steps 1 --output_dir {place} --hparams"
            yield case(words, place, last='{"batch_size": 8}')
    for name in DAMAGED_SWEEPS:
        place = f"sweeps/{name}"
        if name.startswith(("plan", "no_plan")):
            yield case(f"sweep status {place}", place)
        if name.startswith("plan") and "version" not in name:
            yield case(f"sweep launch sweep.yml --output_dir {place}", place)
        if name.startswith(("config", "no_config")):
            yield case(f"sweep launch {place}", place)
            yield case(f"sweep retry {place}", place)
        if name.startswith("config"):
            yield case(f"collect {place}", place)


# ---- configs, datasets and manifests: texts, and what must be said of them ----

_OK = "datasets: ColoredDigits\nalgorithms: ERM\ntest_envs: [[0]]\n"
CONFIGS = {
    "empty": ("", "datasets"),
    "text": ("hello", "line 1"),
    "list": ("[1, 2]", "line 1"),
    "number": ("3", "line 1"),
    "torn": ("datasets: [Colored", "YAML"),
    "tab": ("datasets:\n\t- ColoredDigits\n", "line 2"),
    "nul": ("datasets: a\0b", "YAML"),
    "list_as_key": (_OK + "[1, 2]: 3\n", "line 4"),
    "number_as_key": (_OK + "1: 3\n", "line 4"),
    "twice": (_OK + "datasets: PACS\n", "twice"),
    "itself": (_OK + "hparams: &a {lr: *a}\n", "line 4"),
    "no_anchor": (_OK + "hparams: *a\n", "line 4"),
    "bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{n}: &{n} [{','.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefg", "bcdefgh")),
        "values",
    ),
    "deep": (_OK + "hparams: " + "[" * 5000, "YAML"),
    "tag": (_OK + "hparams: !!python/object/apply:os.system [ls]\n", "line 4"),
    "octal": (_OK + "steps: 010\n", "line 4", "010"),
    "date": (_OK + "steps: 2020-13-45\n", "line 4"),
    "unknown": (_OK + "step: 3\n", "line 4", "steps"),
    "steps": (_OK + "steps: many\n", "line 4", "steps"),
    "null_name": (_OK + "algorithms2: null\n", "line 4"),
    "dataset": ("datasets: PASC\nalgorithms: ERM\n", "line 1", "PACS"),
    "algorithm": ("datasets: ColoredDigits\nalgorithms: [ERM, x]\n", "line 2", "algorithms"),
    "no_algorithms": ("datasets: ColoredDigits\nalgorithms: []\n", "line 2", "algorithms"),
    "env": ("datasets: ColoredDigits\nalgorithms: ERM\ntest_envs: [[0], [7]]\n", "line 3", "7"),
    "hparams_list": (_OK + "hparams: [1]\n", "line 4", "hparams"),
    "hparams_own": (_OK + "hparams: {ERM: 3}\n", "line 4", "ERM"),
    "hparams_lr": (_OK + "hparams:\n  ERM: {lr: -1}\n", "line 5", "lr"),
    "hparams_typo": (_OK + "hparams: {learning_rate: 1}\n", "line 4", "'lr'"),
    "launcher": (_OK + "launcher: {workers: 3}\n" + "launcher2: x\n", "line 5"),
    "launcher_name": (_OK + "launcher: [1]\n", "line 4", "launcher"),
    "trials": (_OK + "trials: 1000000000000\n", "line 4", "trials"),
    "too_many": (_OK + "trials: 1000000\nhparams_seeds: 1000\n", "runs"),
    "plugins": (_OK + "plugins: missing.py\n", "line 4", "missing.py"),
    "plugins_number": (_OK + "plugins: 3\n", "line 4", "plugins"),
    "boolean": (_OK + "skip_model_save: 1\n", "line 4", "skip_model_save"),
    "infinite": (_OK + "holdout_fraction: .inf\n", "line 4", "holdout_fraction"),
    "huge_number": (_OK + f"steps: {'9' * 5000}\n", "line 4"),
}
DATASETS = {
    "empty.yaml": "",
    "list.yaml": "[1]",
    "unknown.yaml": "folder: photos\nfoldr: x\n",
    "missing.yaml": "folder: nowhere\n",
    "number.yaml": "folder: 3\n",
    "binary.yaml": "\0",
    "empty.csv": "",
    "header.csv": "path,label,domain\n",
    "columns.csv": "file,label,domain\na.png,cat,art\n",
    "short.csv": "path,label,domain\na.png,cat\n",
    "long.csv": "path,label,domain\na.png,cat,art,more\n",
    "blank.csv": "path,label,domain\n,cat,art\n",
    "gone.csv": "path,label,domain\na.png,cat,art\nb.png,dog,art\na.png,cat,b\nb.png,dog,b\n",
    "split.csv": "path,label,domain,split\nphotos/art/cat/0.png,cat,art,half\n",
    "quote.csv": 'path,label,domain\n"a.png,cat,art\n',
    "twice.csv": "path,label,label,domain\na.png,cat,dog,art\n",
    "nul.csv": "path,label,domain\na\0.png,cat,art\n",
    "empty.jsonl": "",
    "list.jsonl": "[1]\n",
    "torn.jsonl": '{"path": "a.png", "la',
    "number.jsonl": "3\n",
    "deep.jsonl": DEEP + "\n",
    "typed.jsonl": '{"path": 3, "label": "cat", "domain": "art"}\n',
    "lacks.jsonl": '{"path": "a.png", "label": "cat"}\n',
    "other.txt": "path,label,domain\n",
}


def _of_configs() -> Iterator[Case]:
    for name, (_, *says) in CONFIGS.items():
        yield case(f"sweep launch configs/{name}.yaml {_OUT}", *says)
        yield case(f"sweep status configs/{name}.yaml", *says)
    for name in ("text", "torn", "unknown", "nul", "bomb", "steps"):
        yield case(f"irm-colored-mnist configs/{name}.yaml {_OUT}", f"{name}.yaml")
    for name in ("binary", "pipe", "missing", "foreign", "dangling"):
        yield case(f"irm-colored-mnist {name}", name)
        yield case(f"sweep launch {name}", name)


def _of_datasets() -> Iterator[Case]:
    for name in DATASETS:
        said = name.partition(".")[0]
        yield case(f"train --steps 1 {_OUT} --dataset lists/{name}", said)
        yield case(f"data verify lists/{name}", said)
    for name in ("folder:one_domain", "folder:broken_photos", "MNIST", "pipe", "binary"):
        yield case(f"data verify {name}", "")
    for name in ("PACS", "ColoredMNIST", "folder:one_domain", "folder:photos/art"):
        yield case(f"train --steps 1 {_OUT} --dataset {name}", "")
        yield case(f"data pack {name}", "")
    words = "train --steps 1 --output_dir out --dataset folder:broken_photos --hparams"
    yield case(words, "0.png", last='{"weights": "none", "resnet18": true, "batch_size": 2}')
    yield case("data pack folder:broken_photos", "0.png")
    yield case("data pack ColoredDigits", "ColoredDigits")
    for name in ("x", "PASC", "folder:photos"):
        yield case(f"data download {name} --data_dir out", name)
    for copy in ("missing", "file", "empty", "foreign", "pipe", "dangling", "binary"):
        yield case(f"data download PACS --data_dir out --from {copy}", copy)
        yield case(f"data download ColoredMNIST --data_dir out --from {copy}", copy)
    yield case("data download PACS VLCS --data_dir out --from foreign", "foreign")
    yield case("data download PACS --data_dir file --from photos", "file")


def _of_plugins() -> Iterator[Case]:
    for name in PLUGINS:
        algorithm = "ERM" if name in ("broken", "no_syntax", "exits") else "Mine"
        command = f"train --steps 1 {_OUT} --algorithm {algorithm} --plugins {name}.py"
        yield case(command, f"{name}.py" if "space" not in name else "")
        yield case(f"list hparams {algorithm} ColoredDigits --plugins {name}.py", "")


def _of_weights() -> Iterator[Case]:
    hparams = '{"weights": "%s", "resnet18": true, "batch_size": 2}'
    files = ("numbers.pt", "other.pt", "harmful.pt", "cut.pt", "file", "binary", "empty", "missing")
    for file in files:
        words = f"train --steps 1 {_OUT} --dataset folder:photos --hparams"
        yield case(words, "weights", file, last=hparams % file)


def _of_words() -> Iterator[Case]:
    for command, said in {
        "": "COMMAND",
        "trian": "train",
        "train extra": "extra",
        "train --stepz 3": "--stepz",
        "train --step 3": "--step",
        "train --steps": "--steps",
        "sweep lunch": "lunch",
        "sweep status": "FOLDER",
        "sweep launch": "datasets",
        "sweep launch a b": "b",
        "collect": "FOLDER",
        "compare": "FOLDER",
        "compare run": "nothing to compare",
        "compare run --with fishr-2022 --baseline ERM": "--baseline",
        "report": "FOLDER",
        "report run --serve --output x.html": "--output",
        "plot": "FOLDER",
        "plot run": "KIND",
        "plot run curves": "--output",
        "plot run curve --output x.pdf": "curves",
        "plot run differences --output x.pdf": "nothing to compare",
        "plot run hparams --output x.pdf": "hparams",
        "top-hparams": "--input_dir",
        "model diagnose": "RUN_FOLDER",
        "model predict": "RUN_FOLDER",
        "data pack": "NAME",
        "data download": "NAME",
        "config": "what",
        "config x": "x",
        "list x": "x",
        "list hparams": "ALGORITHM",
        "list hparams x PACS": "x",
        "list hparams ERM x": "x",
        "list hparams ERM folder:missing": "missing",
        "data verify x": "x",
        "reproduce": "PAPER",
        "reproduce fishr-2022": "--dataset",
        "reproduce fishr --dataset PACS": "fishr-2022",
        "reproduce domainbed-2020 --dataset Avg": "Avg",
        "published fishr": "fishr-2022",
        "published fishr-2022 x": "'x'",
        "data verify --data_dir missing": "missing",
        "data verify --data_dir file": "file",
    }.items():
        yield case(command, said)


CASES = [
    each
    for of in (
        *(_of_flags, _of_hparams, _of_folders, _of_damage, _of_configs, _of_datasets),
        *(_of_plugins, _of_weights, _of_words),
    )
    for each in of()
]
