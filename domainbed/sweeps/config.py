"""The config of a sweep: its fields, from a YAML file and from flags.

What looks names up is imported when a config is checked, and not to declare its flags: it takes
PyTorch along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field, model_validator

from domainbed.config.run_fields import FeatureSource, RunFields, RunOptions
from domainbed.config.settings import (
    Items,
    Listed,
    Places,
    Seeds,
    Text,
    checked,
    converted,
    found,
    given,
    known_to,
    make,
    read_fields,
)
from domainbed.core.names import dataset_label
from domainbed.core.plugins import import_plugins
from domainbed.core.yaml_file import Where
from domainbed.errors import UserError

if TYPE_CHECKING:
    from domainbed.spec import RunSpec

TestEnvs = tuple[int, ...]

_FROM_MOST = get_args(RunFields.model_fields["eval_splits"].annotation)
_MOST_RUNS = 1_000_000
_MOST_SETS = 1_000
"""Sets of test domains that are planned unasked: more are seldom meant."""


def _test_envs(value: Any) -> Any:
    """A number stands for itself alone; the order of domains means nothing."""
    envs = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(set(map(repr, envs))) < len(envs):
        raise UserError(f"expected each domain once, found {found(value)}")
    return tuple(envs)


def _launcher(chosen: dict[str, Any]) -> dict[str, Any]:
    """A launcher's name and its options, which it must know."""
    from domainbed.launchers import create_launcher

    name = chosen.get("name", "local")
    if not isinstance(name, str):
        raise UserError(f"expected the name of a launcher, found {found(name)}", "name")
    options = {option: value for option, value in chosen.items() if option != "name"}
    create_launcher(name, options)
    return {"name": name, **options}


def _chosen(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Dataset = Annotated[Text, known_to("domainbed.datasets", "get_dataset_class")]
_Algorithm = Annotated[Text, known_to("domainbed.algorithms", "get_algorithm_class")]
_Selection = Annotated[Text, known_to("domainbed.selection", "SELECTION_METHODS")]
_Domain = Annotated[int, Field(ge=0)]
_TestEnvs = Annotated[
    tuple[_Domain, ...],
    Field(min_length=1),
    checked(lambda envs: tuple(sorted(envs))),
    converted(_test_envs, accepts=_Domain | list[_Domain]),
]


class SweepConfig(RunFields, RunOptions):
    """A checked sweep. What is not given of a run's fields is left to its protocol."""

    plugins: Items[Text] = Field((), description="modules or .py files that register what is yours")
    datasets: Listed[_Dataset] = Field(description="names of datasets")
    algorithms: Listed[_Algorithm] = Field(description="names of algorithms")
    output_dir: Text = Field(
        "results/sweep",
        description="the folder of the sweep",
        json_schema_extra={"default_text": "results/ and the config's name"},
    )
    trials: Seeds = Field(
        tuple(range(3)),
        description="how many trials, or a list of trial seeds",
        json_schema_extra={"default_text": "3"},
    )
    hparams_seeds: Seeds = Field(
        tuple(range(20)),
        description="how many hparams seeds, or a list of them",
        json_schema_extra={"default_text": "20"},
    )
    test_envs: Listed[_TestEnvs] | None = Field(
        None,
        description="list of lists of test domains",
        json_schema_extra={"default_text": "what the selection needs"},
    )
    selection: Listed[_Selection] = Field(
        ("training-domain", "leave-one-domain-out", "oracle"),
        description="selection methods that the runs are to serve",
    )
    on_finish: Text | None = Field(
        None,
        description="shell command for when a launch has ended, with DOMAINBED_SWEEP, "
        "DOMAINBED_DONE and DOMAINBED_FAILED in its environment",
    )
    hparams: dict[str, Any] = Field(
        {}, description="fixed hyper-parameters; an algorithm's name holds its own"
    )
    launcher: Annotated[
        dict[str, Any], checked(_launcher), converted(_chosen, accepts=str | dict[str, Any])
    ] = Field(
        {"name": "local"},
        description="name of a launcher, or {name: …, its options}",
        json_schema_extra={"default_text": "local"},
    )

    @model_validator(mode="before")
    @classmethod
    def _import_plugins(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What plug-ins register must be there before names are looked up."""
        named = values.get("plugins", ())
        names = [named] if isinstance(named, str) else named
        # What is no list of texts is refused when its turn comes.
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            try:
                import_plugins(names)
            except UserError as error:
                raise UserError(str(error), "plugins") from error
        return values

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        _check_labels(self.datasets)
        _check_trackers(self.trackers)
        _check_count(self)
        _check_runs(self)
        return self

    def hparams_of(self, algorithm: str) -> dict[str, Any]:
        """The fixed hyper-parameters of one algorithm: those of all, and over them its own."""
        shared = {name: v for name, v in self.hparams.items() if not _is_algorithm(name)}
        return {**shared, **self.hparams.get(algorithm, {})}

    def run_fields(self) -> dict[str, Any]:
        """Those that were given; `eval_splits` "selection" as the sweep's own methods need it."""
        from domainbed.selection import SELECTION_METHODS

        fields = super().run_fields()
        if fields.get("eval_splits") in ("selection", "best"):
            reads = {SELECTION_METHODS[name].reads: name for name in self.selection}
            most = next(each for each in _FROM_MOST if each in reads)
            if fields["eval_splits"] == "best" != most:
                raise UserError(
                    f"eval_splits is 'best', but {reads[most]} reads more: set 'selection'",
                    "eval_splits",
                )
            fields["eval_splits"] = most
        return fields

    def as_yaml_value(self) -> dict[str, Any]:
        """What a config file would say, for a sweep that is the same."""
        # A command is the user's own: a folder that is passed on takes none along.
        unset = {*RunFields.model_fields} - self.model_fields_set | {"on_finish"}
        values = self.model_dump(mode="json", exclude=unset)
        return {name: v for name, v in values.items() if v not in (None, {}, [])}


def load_config(
    file: str | Path | None, overrides: Mapping[str, Any] | None = None, **launcher_options: Any
) -> SweepConfig:
    """A config from a YAML file, with other values for some of its fields.

    Args:
        file: the path of a YAML file; None takes everything from `overrides`.
        overrides: raw values by field; what the flags of the command line said.
        launcher_options: options of the launcher to set, whatever the file says of it.

    Raises:
        UserError: one line that names the field, and the file and line or the flag; or the file
            is kept in a sweep's folder, which may be a stranger's, and names plug-ins that
            `overrides` does not.
    """
    overrides = overrides or {}
    values, lines = read_fields(file)
    if file is not None and Path(file).with_name("plan.json").exists():
        _refuse_plugins(file, values.get("plugins"), overrides.get("plugins"))
        values.pop("on_finish", None)  # which no launch writes there
    values = given(SweepConfig, {**values, **overrides})
    values.setdefault("output_dir", str(Path("results") / (Path(file).stem if file else "sweep")))
    if launcher_options:
        chosen = _chosen(values.get("launcher", {}))
        values["launcher"] = {"name": "local", **chosen, **launcher_options}
    flags: dict[Where, str] = {(name,): f"--{name}" for name in overrides}
    flags |= {("launcher", name): f"--{name}" for name in launcher_options}
    return make(SweepConfig, values, Places(file, lines, flags))


def _refuse_plugins(file: str | Path, kept: Any, named: Iterable[str] | None) -> None:
    """Code that a sweep's folder names is run only if the user names it, too."""
    names = kept if isinstance(kept, list) else [kept] * bool(kept)
    if names and named is None:
        raise UserError(
            f"{file}: the sweep needs code that its folder names, {', '.join(map(repr, names))}: "
            f"if you trust it, add --plugins {' '.join(map(str, names))}",
            "plugins",
        )


def test_env_sets(config: SweepConfig, dataset: str) -> list[TestEnvs]:
    """The sets of test domains of a dataset: those of the config, or what selection needs.

    Every domain alone that the dataset is evaluated on; and if a selection method of the config
    reads pairs, each of these with every other domain.

    Raises:
        UserError: the dataset's class does not list its domains, has too few of them for pairs,
            or so many that the sets should be chosen.
    """
    from domainbed.datasets import get_dataset_class
    from domainbed.selection import SELECTION_METHODS

    if config.test_envs is not None:
        return list(config.test_envs)
    data = get_dataset_class(dataset)
    domains = range(len(data.ENVIRONMENTS))
    if not domains:
        raise UserError(
            f"the dataset {dataset!r} does not list its domains (ENVIRONMENTS), so test domains "
            "cannot be planned: give them, as in [[0], [1]]",
            "test_envs",
        )
    pairing = [name for name in config.selection if SELECTION_METHODS[name].needs_pairs]
    if pairing and len(domains) < 3:
        raise UserError(
            f"{pairing[0]} needs a domain to train on beside two test domains, and {dataset!r} "
            f"has {len(domains)} domains: leave that method out of 'selection'",
            "selection",
        )
    evaluated = _evaluated(dataset, data, domains)
    singles: list[TestEnvs] = [(domain,) for domain in evaluated]
    pairs = {(min(a, b), max(a, b)) for a in evaluated for b in domains if a != b}
    sets = [*singles, *sorted(pairs)] if pairing else singles
    if len(sets) > _MOST_SETS:
        fewer = f", or leave {pairing[0]} out of 'selection'" if pairing else ""
        raise UserError(
            f"{len(domains)} domains of {dataset!r} make {len(sets):,} sets of test domains: give "
            f"those that are meant, as in [[0], [1]]{fewer}",
            "test_envs",
        )
    return sets


def _evaluated(dataset: str, data: Any, domains: range) -> list[int]:
    """The domains that a dataset is evaluated on, in ascending order."""
    declared = domains if data.test_domains is None else sorted(set(data.test_domains))
    if not declared or not set(declared) <= set(domains):
        raise UserError(
            f"the dataset {dataset!r} has the test_domains {list(declared)}: expected some of its "
            f"domains, 0 to {len(domains) - 1}",
            "datasets",
        )
    return list(declared)


def trainable_sets(config: SweepConfig, dataset: str, algorithm: str) -> list[TestEnvs]:
    """Those sets of test domains that an algorithm can do with."""
    sets = test_env_sets(config, dataset)
    return [envs for envs in sets if not why_not(config, dataset, algorithm, envs)]


def why_not(config: SweepConfig, dataset: str, algorithm: str, envs: TestEnvs) -> str:
    """Why an algorithm cannot do a run that others could; empty where it can."""
    from domainbed.config.protocols import get_protocol
    from domainbed.spec import obstacle

    published = get_protocol(config.protocol).fields.get("features")
    usual = make(FeatureSource, published) if published else None
    return obstacle(dataset, algorithm, envs, config.features or usual)


def first_run(config: SweepConfig, dataset: str, algorithm: str, envs: TestEnvs) -> RunSpec:
    """The checked run with hparams seed 0 and trial 0.

    Raises:
        UserError: see `RunSpec.create`.
    """
    from domainbed.spec import RunSpec

    hparams = config.hparams_of(algorithm)
    return RunSpec.create(dataset, algorithm, envs, hparams=hparams, **config.run_fields())


def _check_trackers(names: Iterable[str]) -> None:
    from domainbed.runs.trackers import TRACKERS

    for name in names:
        try:
            TRACKERS[name]
        except UserError as error:
            raise UserError(str(error), "trackers") from error


def _check_labels(datasets: Iterable[str]) -> None:
    labels: dict[str, str] = {}
    for position, dataset in enumerate(datasets):
        other = labels.setdefault(dataset_label(dataset), dataset)
        if other != dataset:
            raise UserError(
                f"{dataset!r} and {other!r} would both be called {dataset_label(dataset)!r} "
                "in the results: rename one of the folders",
                "datasets",
                position,
            )


def _check_count(config: SweepConfig) -> None:
    sets = sum(len(test_env_sets(config, dataset)) for dataset in config.datasets)
    seeds = {"trials": len(config.trials), "hparams_seeds": len(config.hparams_seeds)}
    count = len(config.algorithms) * sets * seeds["trials"] * seeds["hparams_seeds"]
    if count > _MOST_RUNS:
        largest = max(seeds, key=lambda name: seeds[name])
        raise UserError(f"{count:,} runs: expected at most {_MOST_RUNS:,} in one sweep", largest)


def _check_runs(config: SweepConfig) -> None:
    """One run of each dataset with each algorithm, and with each set of test domains."""
    from domainbed.spec import RunSpec

    for name, value in config.hparams.items():
        if _is_algorithm(name) and not isinstance(value, dict):
            raise UserError(f"expected names with values, found {found(value)}", "hparams", name)
    for dataset in config.datasets:
        # Of sets of test domains that leave too few to train on, the plan leaves runs out.
        sets_of = {name: trainable_sets(config, dataset, name) for name in config.algorithms}
        broadest = max(config.algorithms, key=lambda name: len(sets_of[name]))
        sets = sets_of[broadest] or test_env_sets(config, dataset)
        runs = [(broadest, envs, config.hparams_of(broadest)) for envs in sets]
        runs += [(name, own[0], config.hparams_of(name)) for name, own in sets_of.items() if own]
        # Hyper-parameters may be given for algorithms that are not to run.
        others = [name for name in config.hparams if _is_algorithm(name) and name not in sets_of]
        for name in others:
            runs += [
                (name, envs, config.hparams[name])
                for envs in trainable_sets(config, dataset, name)[:1]
            ]
        for algorithm, envs, hparams in runs:
            try:
                RunSpec.create(dataset, algorithm, envs, hparams=hparams, **config.run_fields())
            except UserError as error:
                where = _where(config, dataset, algorithm, envs, error.where)
                raise UserError(str(error), *where) from error


def _where(
    config: SweepConfig, dataset: str, algorithm: str, envs: TestEnvs, where: Where
) -> Where:
    """Where in the config the fault of a run lies."""
    field, *inner = where or ("",)
    if field == "hparams" and inner:
        own = inner[0] in config.hparams.get(algorithm, {})
        return ("hparams", algorithm, *inner) if own else where
    if field == "test_envs" and config.test_envs is not None:
        return ("test_envs", config.test_envs.index(envs))
    if field in SweepConfig.model_fields:
        return where
    return ("datasets", config.datasets.index(dataset))


def _is_algorithm(name: str) -> bool:
    from domainbed.algorithms import get_algorithm_class

    try:
        get_algorithm_class(name)
    except UserError:
        return False
    return True
