"""The config of a sweep: its fields, from a YAML file and from flags, and the runs it asks for.

What needs PyTorch is imported when a config is checked, not when its flags are declared.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args

from pydantic import Field, model_validator

from domainbed.config.run_fields import FixedHparams, RunFields, RunOptions
from domainbed.core import plugins
from domainbed.core.names import dataset_label
from domainbed.core.settings import (
    Items,
    Listed,
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
from domainbed.errors import UserError, did_you_mean, in_shell

if TYPE_CHECKING:
    from domainbed.spec import Resolver, RunSpec

TestEnvs = tuple[int, ...]

_FROM_MOST = get_args(RunFields.model_fields["eval_splits"].annotation)
_MOST_RUNS = 1_000_000
# Sets of test domains that are planned without being named: more are seldom meant.
_MOST_SETS = 1_000


def _test_envs(value: Any) -> Any:
    """A single number is a set of one domain."""
    envs = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(set(map(repr, envs))) < len(envs):
        raise UserError(f"expected each domain once, found {found(value)}")
    return tuple(envs)


def _launcher(chosen: dict[str, Any]) -> dict[str, Any]:
    """A launcher's name and its options, which are checked."""
    from domainbed.launchers import create_launcher

    name = chosen.get("name", "local")
    if not isinstance(name, str):
        raise UserError(f"expected the name of a launcher, found {found(name)}", "name")
    options = {option: value for option, value in chosen.items() if option != "name"}
    create_launcher(name, options)
    return {"name": name, **options}


def _chosen(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Algorithm = Annotated[Text, known_to("domainbed.algorithms", "get_algorithm_class")]
_Selection = Annotated[Text, known_to("domainbed.selection", "SELECTION_METHODS")]
_Domain = Annotated[int, Field(ge=0)]
_TestEnvs = Annotated[
    tuple[_Domain, ...],
    Field(min_length=1),
    checked(lambda envs: tuple(sorted(envs))),
    converted(_test_envs, accepts=_Domain | list[_Domain]),
]


class Resolved(NamedTuple):
    """An algorithm on a dataset, with names looked up and values checked.

    Attributes:
        resolver: makes its runs.
        first: those with hparams seed 0 and trial 0, one for each set of test domains.
        left_out: those that cannot be; see `SweepConfig.left_out`.
    """

    resolver: Resolver
    first: list[RunSpec]
    left_out: list[dict[str, Any]]


class SweepConfig(RunFields, RunOptions):
    """A checked sweep. Fields of a run that are not given have their protocol's values."""

    plugins: Items[Text] = Field(
        (), description="modules, .py files or folders of forks to import first, which add names"
    )
    datasets: Listed[Text] = Field(description="names of datasets")
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
        description="list of sets of test domains, such as [[0], [1]]",
        json_schema_extra={"default_text": "what selection needs"},
    )
    selection: Listed[_Selection] = Field(
        ("training-domain", "leave-one-domain-out", "oracle"),
        description="selection methods to plan runs for",
    )
    pack: bool = Field(
        False, description="pack finished runs as the sweep proceeds: few files instead of many"
    )
    on_finish: Text | None = Field(
        None,
        description="shell command to run when a launch has ended, with DOMAINBED_SWEEP, "
        "DOMAINBED_DONE and DOMAINBED_FAILED in its environment",
    )
    hparams: FixedHparams = Field(
        {},
        description="fixed hyper-parameters, those of one algorithm under its name; tuned: those "
        "that a released baseline chose",
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
        """Imports plug-ins first: they register names that other fields look up."""
        names = plugins.located(values.get("plugins", ()), "")
        if isinstance(names, list):  # else the field itself is refused
            try:
                plugins.import_plugins(names)
            except UserError as error:
                raise UserError(str(error), "plugins") from error
        return {**values, "plugins": names}

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        labels: dict[str, str] = {}
        for position, dataset in enumerate(self.datasets):
            other = labels.setdefault(dataset_label(dataset), dataset)
            if other != dataset:
                raise UserError(
                    f"{dataset!r} and {other!r} would both be called {dataset_label(dataset)!r} "
                    "in the results: rename one of the folders",
                    *("datasets", position),
                )
        seeds = {"trials": len(self.trials), "hparams_seeds": len(self.hparams_seeds)}
        count = math.prod(seeds.values()) * sum(len(resolved.first) for resolved in self.resolved)
        if count > _MOST_RUNS:
            raise UserError(
                f"{count:,} runs: expected at most {_MOST_RUNS:,} in one sweep",
                max(seeds, key=seeds.__getitem__),
            )
        return self

    @cached_property
    def resolved(self) -> list[Resolved]:
        """The runs of each dataset with each algorithm, resolved: all that planning needs.

        Raises:
            UserError: a run that cannot be, with the place of the fault in the config.
        """
        from domainbed.selection import SELECTION_METHODS
        from domainbed.spec import Resolver

        fields, own = self.run_fields(), self._own_hparams
        shared = {name: value for name, value in self.hparams.items() if name not in own}
        found = []
        for dataset in self.datasets:
            resolvers = {}
            for algorithm in dict.fromkeys([*self.algorithms, *own]):
                # A config may set hyper-parameters of algorithms that it does not run.
                hparams = {
                    **(shared if algorithm in self.algorithms else {}),
                    **own.get(algorithm, {}),
                }
                with self._placed(dataset, algorithm):
                    resolvers[algorithm] = Resolver.of(dataset, algorithm, hparams, fields)
                    draft = resolvers[algorithm].draft
                    for name in self.selection:
                        SELECTION_METHODS[name].require(
                            self.selection_metric, draft.labels, draft.metrics
                        )
            sets = self.test_envs or test_env_sets(
                dataset, resolvers[self.algorithms[0]].data, self.selection
            )
            of_dataset = [self._with_sets(resolvers[name], sets) for name in self.algorithms]
            if not any(resolved.first for resolved in of_dataset):
                with self._placed(dataset, self.algorithms[0], sets[0]):
                    of_dataset[0].resolver.run(sets[0])
            found += of_dataset
        return found

    def _with_sets(self, resolver: Resolver, sets: Sequence[TestEnvs]) -> Resolved:
        """The runs of an algorithm on a dataset; those that it cannot do are left out."""
        draft, first, left_out = resolver.draft, [], []
        for envs in sets:
            if why := resolver.obstacle(envs):
                left_out.append(
                    {
                        "dataset": draft.dataset_label,
                        "algorithm": draft.algorithm,
                        "test_envs": list(envs),
                        "why": str(why),
                    }
                )
            else:
                with self._placed(draft.dataset, draft.algorithm, envs):
                    first.append(resolver.run(envs))
        return Resolved(resolver, first, left_out)

    @contextmanager
    def _placed(self, dataset: str, algorithm: str, envs: TestEnvs = ()) -> Iterator[None]:
        """Gives errors of the block, which are about a run, their place in the config."""
        try:
            yield
        except UserError as error:
            field, *inner = where = error.where or ("",)
            if field == "hparams" and inner and inner[0] in self._own_hparams.get(algorithm, {}):
                where = ("hparams", algorithm, *inner)
            elif field == "test_envs" and self.test_envs is not None:
                where = ("test_envs", self.test_envs.index(envs))
            elif field not in SweepConfig.model_fields:
                where = ("datasets", self.datasets.index(dataset))
            raise UserError(str(error), *where) from error

    @cached_property
    def _own_hparams(self) -> dict[str, dict[str, Any]]:
        """The fixed hyper-parameters of one algorithm alone, by its name."""
        from domainbed.algorithms import get_algorithm_class

        own = {}
        for name, value in self.hparams.items():
            with suppress(UserError):  # it is a hyper-parameter
                get_algorithm_class(name)
                own[name] = value
        for name, value in own.items():
            if not isinstance(value, dict):
                raise UserError(
                    f"expected names with values, found {found(value)}", "hparams", name
                )
        return own

    def plan(self) -> list[RunSpec]:
        """All runs of the sweep, without those that are `left_out`.

        Runs that share dataset and trial are neighbours, since a worker keeps one dataset loaded.
        Within, hparams seed by hparams seed: the defaults of all algorithms come first.
        """
        runs: list[RunSpec] = []
        for dataset, trial, seed in product(self.datasets, self.trials, self.hparams_seeds):
            for resolver, first, _ in self.resolved:
                if resolver.draft.dataset == dataset:
                    for run in first:
                        hparams = resolver.hparams(seed, trial, run.test_envs)
                        runs.append(run.variant(seed, trial, hparams))
        return runs

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """The runs that cannot be, of all trials and hparams seeds at once, and why.

        As plan.json keeps them: `dataset`, `algorithm`, `test_envs` and `why`.
        """
        return [run for resolved in self.resolved for run in resolved.left_out]

    def run_fields(self) -> dict[str, Any]:
        """The fields that were given, with the `eval_splits` that the sweep's own methods need."""
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

    def used_plugins(self) -> dict[str, str]:
        """The digests of the plug-ins that the sweep names, or that define what it runs."""
        from domainbed.selection import SELECTION_METHODS

        used = [SELECTION_METHODS[name] for name in self.selection]
        used += [part for each in self.resolved for part in each.resolver.parts]
        return plugins.named(self.plugins) | plugins.plugins_of(used)

    def as_yaml_value(self) -> dict[str, Any]:
        """The values of a config file that describes the same sweep."""
        # A command is the user's own: it is not passed on with the folder.
        unset = {*RunFields.model_fields} - self.model_fields_set | {"on_finish", "plugins_changed"}
        return {
            name: value
            for name, value in self.model_dump(mode="json", exclude=unset).items()
            if value not in (None, {}, [])
        }


def shipped_config(name: str) -> str:
    """The path of a config that comes with the package, such as `quickstart` or `paper/pacs`.

    Raises:
        UserError: there is no such config.
    """
    package = Path(__file__).parents[1]  # where an install has them; a checkout, beside it
    folder = next(at for at in (package, package.parent) if (at / "configs").is_dir()) / "configs"
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")]
    if name not in names:
        hint = did_you_mean(name, names) or f" Known: {', '.join(sorted(names))}"
        raise UserError(
            f"{name!r} does not exist: name a sweep folder, a config, or one that comes with "
            f"domainbed.{hint}"
        )
    return str(folder / f"{name}.yaml")


def load_config(
    file: str | Path | None, overrides: Mapping[str, Any] | None = None, **launcher_options: Any
) -> SweepConfig:
    """A config from a YAML file, with other values for some of its fields.

    Args:
        file: the path of a YAML file; None takes everything from `overrides`.
        overrides: raw values by field; what the flags of the command line said.
        launcher_options: options of the launcher, which win over those of the file.

    Raises:
        UserError: one line that names the field, and the file and line or the flag; or the file
            lies in a sweep's folder, which may come from somebody else, and names plug-ins or a
            cluster that the other arguments do not.
    """
    overrides = overrides or {}
    values, places = read_fields(file)
    if file is not None and Path(file).with_name("plan.json").exists():
        kept = values.get("plugins")
        names = kept if isinstance(kept, list) else [kept] * bool(kept)
        if names and overrides.get("plugins") is None:
            raise UserError(
                f"{file}: the sweep needs code that its folder names, "
                f"{', '.join(map(repr, names))}: if you trust it, add --plugins "
                f"{in_shell(*names)}",
                "plugins",
            )
        launcher = {} if overrides.get("launcher") else values.get("launcher")
        address = launcher.get("address") if isinstance(launcher, dict) else None
        if address and not (launcher_options.get("address") or os.environ.get("RAY_ADDRESS")):
            raise UserError(
                f"{file}: the sweep's folder names the cluster {address!r}: if you trust it, add "
                f"--address {in_shell(address)}",
                "launcher",
            )
        values.pop("on_finish", None)  # no launch writes one there
    elif file is not None and "plugins" in values:
        values["plugins"] = plugins.located(values["plugins"], Path(file).parent)
    values = given(SweepConfig, {**values, **overrides})
    values.setdefault("output_dir", str(Path("results") / (Path(file).stem if file else "sweep")))
    if launcher_options:
        values["launcher"] = {
            "name": "local",
            **_chosen(values.get("launcher", {})),
            **launcher_options,
        }
    places |= {(name,): f"--{name}" for name in overrides}
    places |= {("launcher", name): f"--{name}" for name in launcher_options}
    return make(SweepConfig, values, places)


def test_env_sets(dataset: str, data: Any, selection: Sequence[str]) -> list[TestEnvs]:
    """The sets of test domains that selection methods need of a dataset.

    Every domain alone that the dataset is evaluated on; and if a method reads pairs, each of these
    with every other domain.

    Args:
        dataset: its name.
        data: its class.
        selection: names of selection methods.

    Raises:
        UserError: the dataset's class does not list its domains, has too few of them for pairs,
            or so many that the sets should be chosen.
    """
    from domainbed.selection import SELECTION_METHODS

    domains = range(len(data.ENVIRONMENTS))
    if not domains:
        raise UserError(
            f"the dataset {dataset!r} does not list its domains (ENVIRONMENTS), so test domains "
            "cannot be planned: give them, as in [[0], [1]]",
            "test_envs",
        )
    pairing = [name for name in selection if SELECTION_METHODS[name].needs_pairs]
    if pairing and len(domains) < 3:
        raise UserError(
            f"{pairing[0]} needs a domain to train on beside two test domains, and {dataset!r} "
            f"has {len(domains)} domains: leave that method out of 'selection'",
            "selection",
        )
    evaluated = sorted(set(domains if data.test_domains is None else data.test_domains))
    if not evaluated or not set(evaluated) <= set(domains):
        raise UserError(
            f"the dataset {dataset!r} has the test_domains {evaluated}: expected some of its "
            f"domains, 0 to {len(domains) - 1}",
            "datasets",
        )
    singles: list[TestEnvs] = [(domain,) for domain in evaluated]
    pairs = {(min(a, b), max(a, b)) for a in evaluated for b in domains if a != b}
    sets = [*singles, *sorted(pairs)] if pairing else singles
    if len(sets) > _MOST_SETS:
        fewer = f", or leave {pairing[0]} out of 'selection'" if pairing else ""
        raise UserError(
            f"{len(domains)} domains of {dataset!r} make {len(sets):,} sets of test domains: give "
            f"the ones you want, as in [[0], [1]]{fewer}",
            "test_envs",
        )
    return sets
