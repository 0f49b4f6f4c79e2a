"""The config of a sweep: its fields, and where each of their values came from."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed.errors import UserError
from domainbed.names import dataset_label
from domainbed.plugins import import_plugins
from domainbed.sweeps import checks
from domainbed.sweeps.checks import Wrong
from domainbed.yaml_file import Where, read_yaml


def _algorithm(value: Any) -> str:
    from domainbed.algorithms import get_algorithm_class

    get_algorithm_class(checks.text(value))
    return str(value)


def _dataset(value: Any) -> str:
    from domainbed.datasets import get_dataset_class

    get_dataset_class(checks.text(value))
    return str(value)


def _selection(value: Any) -> str:
    from domainbed.selection import SELECTION_METHODS

    SELECTION_METHODS[checks.text(value)]
    return str(value)


def _launcher(value: Any) -> dict[str, Any]:
    """A launcher's name, or a mapping of its name and its options."""
    from domainbed.launchers import create_launcher, launcher_options

    chosen = {"name": value} if isinstance(value, str) else checks.mapping(value)
    options = {name: option for name, option in chosen.items() if name != "name"}
    name = checks.text(chosen.get("name", "local"))
    valid = launcher_options(name)
    try:
        create_launcher(name, options)
    except UserError as error:
        said = str(error).split()[0]  # a complaint about a value begins with its option's name
        faulty = [option for option in options if option not in valid or option == said]
        raise Wrong(str(error), *faulty[:1]) from error
    return {"name": name, **options}


def _option(default: Any, check: checks.Check, help: str) -> Any:
    """A field: its default, what it may hold, and the help of its flag, in one place."""
    made = {"default_factory": dict} if default is dict else {"default": default}
    return field(**made, metadata={"check": check, "help": help})


@dataclass(frozen=True)
class SweepConfig:
    """A checked sweep. Fields that are None leave the choice to the dataset or the machine."""

    datasets: tuple[str, ...] = _option((), checks.listed(_dataset), "names of datasets")
    algorithms: tuple[str, ...] = _option((), checks.listed(_algorithm), "names of algorithms")
    output_dir: str = _option("", checks.text, "the folder of the sweep (results/CONFIG's name)")
    data_dir: str = _option("data", checks.text, "where the datasets lie (data)")
    trials: tuple[int, ...] = _option(
        tuple(range(3)), checks.seeds, "how many trials, or a list of trial seeds (3)"
    )
    hparams_seeds: tuple[int, ...] = _option(
        tuple(range(20)), checks.seeds, "how many hparams seeds, or a list of them (20)"
    )
    test_envs: tuple[tuple[int, ...], ...] | None = _option(
        None, checks.test_env_sets, "list of lists of test domains (what the selection needs)"
    )
    selection: tuple[str, ...] = _option(
        ("training-domain", "leave-one-domain-out", "oracle"),
        checks.listed(_selection),
        "selection methods that the runs are to serve (all three)",
    )
    steps: int | None = _option(None, checks.whole(1), "updates per run (the dataset's)")
    checkpoint_freq: int | None = _option(
        None, checks.whole(1), "updates between records (the dataset's)"
    )
    holdout_fraction: float = _option(0.2, checks.fraction, "the out-splits' share (0.2)")
    uda_holdout_fraction: float = _option(
        0.0, checks.fraction, "the unlabelled share of test domains, for domain adaptation (0)"
    )
    task: str = _option("domain_generalization", checks.text, "or domain_adaptation")
    hparams: Mapping[str, Any] = _option(
        dict, checks.mapping, "fixed hyper-parameters; an algorithm's name holds its own"
    )
    shared_draws: bool = _option(False, checks.flag, "the same draws in all trials")
    augment_validation: bool = _option(
        False, checks.flag, "augment the training domains' validation images, as DomainBed does"
    )
    precision: str = _option("float32", checks.text, "float32 or bf16")
    device: str | None = _option(None, checks.text, "cpu, cuda or mps (the best there is)")
    num_workers: int | None = _option(
        None, checks.whole(0), "processes per run that read images (by the cores)"
    )
    eval_splits: str = _option(
        "needed", checks.one_of("needed", "all"), "evaluate what selection needs, or all"
    )
    skip_model_save: bool = _option(False, checks.flag, "do not keep the trained weights")
    save_model_every_checkpoint: bool = _option(
        False, checks.flag, "keep the weights of every record"
    )
    plugins: tuple[str, ...] = _option(
        (), checks.listed(checks.text), "modules or .py files that register what is yours"
    )
    launcher: Mapping[str, Any] = _option(
        dict, _launcher, "name of a launcher, or {name: …, its options} (local)"
    )

    def hparams_of(self, algorithm: str) -> dict[str, Any]:
        """The fixed hyper-parameters of one algorithm: those of all, and over them its own."""
        shared = {name: v for name, v in self.hparams.items() if not _is_algorithm(name)}
        return {**shared, **self.hparams.get(algorithm, {})}

    def as_yaml_value(self) -> dict[str, Any]:
        """What a config file would say, for a sweep that is the same."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values = {name: _plain(value) for name, value in values.items()}
        return {name: v for name, v in values.items() if v not in (None, {}, [])}


FIELDS = {f.name: f for f in dataclasses.fields(SweepConfig)}


def load_config(
    file: str | Path | None, overrides: Mapping[str, Any] | None = None, **launcher_options: Any
) -> SweepConfig:
    """A config from a YAML file, with other values for some of its fields.

    Args:
        file: the path of a YAML file; None takes everything from `overrides`.
        overrides: raw values by field; what the flags of the command line said.
        launcher_options: options of the launcher to set, whatever the file says of it.

    Raises:
        UserError: one line that names the field, and the file and line or the flag.
    """
    return _Reader(file, overrides or {}, launcher_options).config()


class _Reader:
    """Values from a file and from flags, and the place of each."""

    def __init__(
        self,
        file: str | Path | None,
        overrides: Mapping[str, Any],
        launcher_options: Mapping[str, Any],
    ) -> None:
        self.file, self.overrides, self.launcher_options = file, overrides, launcher_options
        values, self.lines = read_yaml(file) if file is not None else (None, {})
        if values is not None and not isinstance(values, dict):
            raise UserError(f"{file}, line 1: expected fields with values, found {values!r}")
        self.raw = {**(values or {}), **overrides}
        if launcher_options:
            chosen = self.raw.get("launcher") or {}
            chosen = {"name": chosen} if isinstance(chosen, str) else chosen
            self.raw["launcher"] = {"name": "local", **chosen, **launcher_options}

    def config(self) -> SweepConfig:
        for name in self.raw:
            self._refuse_unknown(name)
        given = {name: value for name, value in self.raw.items() if value is not None}
        # What plug-ins register must be there before names are looked up.
        values = {"plugins": self._checked("plugins", given.pop("plugins", []))}
        values |= {name: self._checked(name, value) for name, value in given.items()}
        config = SweepConfig(**{**self._defaults(), **values})
        self._check_datasets_and_algorithms(config)
        self._check_hparams(config)
        self._check_runs(config)
        return config

    def _defaults(self) -> dict[str, Any]:
        stem = Path(self.file).stem if self.file is not None else "sweep"
        return {"output_dir": str(Path("results") / stem), "launcher": {"name": "local"}}

    def _refuse_unknown(self, name: Any) -> None:
        if name in FIELDS:
            return
        nearest = difflib.get_close_matches(str(name), FIELDS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise self._error((name,), f"unknown field.{hint} Known: {', '.join(FIELDS)}")

    def _checked(self, name: str, value: Any) -> Any:
        if name == "plugins" and value == []:
            return ()
        clean = self._at((name,), FIELDS[name].metadata["check"], value)
        if name == "plugins":
            self._at((name,), import_plugins, clean)
        return clean

    def _at(self, where: Where, check: Callable[..., Any], *values: Any) -> Any:
        """Calls `check`; what it complains of is said with its place."""
        try:
            return check(*values)
        except Wrong as wrong:
            raise self._error((*where, *wrong.inside), wrong.message) from wrong
        except UserError as error:
            raise self._error(where, str(error)) from error

    def _error(self, where: Where, message: str) -> UserError:
        return UserError(f"{self._place(where)}: {message}")

    def _place(self, where: Where) -> str:
        name = str(where[0])
        if name == "launcher" and where[-1] in self.launcher_options:
            return f"--{where[-1]}"
        if name in self.overrides:
            return f"--{name}"
        inside = next((where[:n] for n in range(len(where), 0, -1) if where[:n] in self.lines), ())
        line = f", line {self.lines[inside]}" if inside else ""
        source = f"{self.file}{line}, " if self.file is not None else ""
        return f"{source}field {_dotted(where)!r}"

    def _check_datasets_and_algorithms(self, config: SweepConfig) -> None:
        for name in ("datasets", "algorithms"):
            if not getattr(config, name):
                raise self._error(
                    (name,), f"is missing: give it in a config file or as --{name} NAME …"
                )
        labels: dict[str, str] = {}
        for position, dataset in enumerate(config.datasets):
            other = labels.setdefault(dataset_label(dataset), dataset)
            if other != dataset:
                raise self._error(
                    ("datasets", position),
                    f"{dataset!r} and {other!r} would both be called {dataset_label(dataset)!r} "
                    "in the results: rename one of the folders",
                )

    def _check_hparams(self, config: SweepConfig) -> None:
        for name, value in config.hparams.items():
            where: Where = ("hparams", name)
            if not _is_algorithm(name):
                self._check_hparam(config, config.algorithms, where, name, value)
                continue
            own = self._at(where, checks.mapping, value)
            for key, inner in own.items():
                self._check_hparam(config, [name], (*where, key), key, inner)

    def _check_hparam(
        self, config: SweepConfig, algorithms: Any, where: Where, name: str, value: Any
    ) -> None:
        from domainbed.spec import RunSpec

        for dataset in config.datasets:
            for algorithm in algorithms:
                spec = RunSpec(dataset, algorithm, (0,), 0, 0, 0, 1, 1, hparams={name: value})
                self._at(where, spec.resolved_hparams)

    def _check_runs(self, config: SweepConfig) -> None:
        """Makes one run of each dataset and test domains, which checks what depends on both."""
        from domainbed.sweeps.grid import first_run, test_env_sets

        for dataset in config.datasets:
            for envs in self._at(("test_envs",), test_env_sets, config, dataset):
                try:
                    first_run(config, dataset, config.algorithms[0], envs)
                except UserError as error:
                    raise self._run_error(config, envs, str(error)) from error

    def _run_error(self, config: SweepConfig, envs: tuple[int, ...], message: str) -> UserError:
        name = message.split()[0]  # a run's complaint begins with the name of its field
        if name == "test_envs" and config.test_envs:
            return self._error((name, config.test_envs.index(envs)), message)
        return self._error((name if name in FIELDS else "datasets",), message)


def _is_algorithm(name: str) -> bool:
    from domainbed.algorithms import get_algorithm_class

    try:
        get_algorithm_class(name)
    except UserError:
        return False
    return True


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML writes them as everybody does."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _dotted(where: Where) -> str:
    """("algorithms", 1) as "algorithms[1]"."""
    first, *rest = where
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest]
    return str(first) + "".join(parts)
