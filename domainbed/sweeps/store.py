"""The folder of a sweep: every path in it, its plan, and the states of its runs.

Runs are known here by their ids and by what plan.json keeps of each, so that PyTorch is not needed.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from domainbed.config.run_fields import RunFields
from domainbed.core.files import read_sealed_json, sealed_json, sealed_yaml, write_text
from domainbed.core.names import describe_run
from domainbed.core.settings import read_fields
from domainbed.core.text_table import printable
from domainbed.errors import UserError, log
from domainbed.runs.folder import RunFolder, is_done
from domainbed.runs.ownership import owning
from domainbed.runs.packed import packed_runs
from domainbed.runs.states import DONE, MISSING, RUNNING, Busy, RunStatus
from domainbed.sweeps.config import SweepConfig

_PLAN_VERSION = 1
_DONE, _MISSING = RunStatus(DONE), RunStatus(MISSING)

# What distinguishes a run from the others of its sweep: see `spec.RunSpec.planned`.
PlannedRun = Mapping[str, Any]

_GRID_FIELDS = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")


Cell = tuple[str, str]  # a dataset and an algorithm: their runs stand in one row of a table

_MAY_DIFFER = (*_GRID_FIELDS, "seed", "hparams", "rerun", "metrics", "eval_splits")


class Store:
    """Paths and states of a sweep.

    Attributes:
        root: the sweep's folder; a run's folder in it is called after the run's id.
        plan: the runs of all launches so far, by run id.
        config: the config of the last launch.
        launcher_folder: where the launcher keeps what it needs.
    """

    def __init__(self, output_dir: Path | str) -> None:
        self.root = Path(output_dir)
        self.plan = self.root / "plan.json"
        self.config = self.root / "sweep.yaml"
        self.launcher_folder = self.root / ".launcher"
        self._plan_owners = self.root / ".plan"

    def folder(self, run_id: str) -> RunFolder:
        """The folder of a run; it need not exist."""
        return RunFolder(self.root / run_id)

    def states(self, run_ids: Iterable[str]) -> dict[str, str]:
        """Each run's state, one of `states.STATES`."""
        return {run_id: status.state for run_id, status in self.statuses(run_ids).items()}

    def statuses(
        self, run_ids: Iterable[str], known: Mapping[str, RunStatus] | None = None
    ) -> dict[str, RunStatus]:
        """What is known of each run; the folders of those `known` to be done are not read."""
        there, known, root = self._names(), known or {}, os.fspath(self.root)
        # Looked at after the folders: what is not there any more has been packed.
        done = {*packed_runs(self.root), *(i for i, each in known.items() if each.state == DONE)}

        def status(run_id: str) -> RunStatus:
            if run_id in done:
                return _DONE
            if run_id not in there:
                return _MISSING
            return _DONE if is_done(f"{root}/{run_id}") else self.folder(run_id).status()

        return {run_id: status(run_id) for run_id in run_ids}

    def _names(self) -> set[str]:
        """The names in the root, without folders that are links, which are warned of.

        Most runs of a large sweep have no folder yet: one scan of the root shows them all.
        """
        if not self.root.is_dir():
            return set()
        with os.scandir(self.root) as entries:
            is_link = {entry.name: entry.is_symlink() and entry.is_dir() for entry in entries}
        for name in (name for name, linked in is_link.items() if linked):
            log.warning("warning: %s is a link: not followed", printable(self.root / name))
        return {name for name, linked in is_link.items() if not linked}

    def refuse_other_settings(
        self,
        config: SweepConfig,
        runs: Mapping[str, PlannedRun],
        common: Mapping[Cell, Mapping[str, Any]] = {},
    ) -> None:
        """Makes sure that `runs` do not contradict those that were planned here before.

        A sweep may grow by datasets, algorithms, test domains, seeds and trials. The same runs with
        other settings are refused, and further runs of an algorithm on a dataset: tables would mix
        two sweeps.

        Args:
            config: of this launch.
            runs: of this launch, by run id.
            common: what the runs of each dataset and algorithm have in common, see `common_to`.

        Raises:
            UserError: they do, with what differs; or this is the folder of a single run.
        """
        if (alone := RunFolder(self.root)).spec.exists() or alone.has_results():
            raise UserError(
                f"{str(self.root)!r} is the folder of a single run: choose another output_dir",
                "output_dir",
            )
        content = self._content()
        planned = content["runs"]
        taken = set(map(_place_in_grid, planned.values()))
        for run_id, run in runs.items():
            if run_id not in planned and _place_in_grid(run) in taken:
                kept = read_fields(self.config)[0] if self.config.is_file() else {}
                said = _differing(_settings(kept), _settings(config.as_yaml_value()))
                said = said or "which its sweep.yaml does not show: another version planned it"
                raise UserError(
                    f"{str(self.root)!r} holds a sweep with other settings ({said}; "
                    f"{describe_run(run)}, is planned with them): choose another output_dir",
                    "output_dir",
                )

        further = {cell_of(run) for run_id, run in runs.items() if run_id not in planned}
        for cell in sorted(further & set(common)):
            there = content["common"].get(cell[0], {}).get(cell[1])
            if there and (said := _differing(there, common[cell])):
                raise UserError(
                    f"{str(self.root)!r} holds runs of {cell[1]} on {cell[0]} with other settings "
                    f"({said}), and tables would average both: choose another output_dir",
                    "output_dir",
                )

    def write_plan(
        self,
        config: SweepConfig,
        runs: Mapping[str, PlannedRun],
        left_out: Iterable[Mapping[str, Any]] = (),
        common: Mapping[Cell, Mapping[str, Any]] = {},
    ) -> None:
        """Adds runs to the plan, and those that are left out; writes the config of this launch.

        Raises:
            UserError: the folder cannot be written, the plan there is damaged, or has the same
                runs with other settings.
        """
        settings = yaml.safe_dump(config.as_yaml_value(), sort_keys=False)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with owning(self._plan_owners, in_turn=True):
                # Once more: another launch may have been faster.
                self.refuse_other_settings(config, runs, common)
                before = self._content()
                for (dataset, algorithm), values in common.items():
                    before["common"].setdefault(dataset, {})[algorithm] = values
                lacking = [dict(entry) for entry in left_out]
                content = {
                    "version": _PLAN_VERSION,
                    "runs": {**before["runs"], **runs},
                    "left_out": [e for e in before["left_out"] if e not in lacking] + lacking,
                    "common": before["common"],
                }
                if used := before["plugins"] | config.used_plugins():
                    content["plugins"] = used
                write_text(self.plan, sealed_json(content))
                write_text(self.config, sealed_yaml(settings))
        except OSError as error:
            raise UserError(
                f"output_dir {str(self.root)!r} cannot be written ({error.strerror}): choose "
                "another"
            ) from error

    def planned(self) -> dict[str, PlannedRun]:
        """The runs of all launches into this folder, by run id.

        Raises:
            UserError: there is no plan, or it is damaged.
        """
        if not self.plan.is_file():
            raise UserError(
                f"{str(self.root)!r} holds no {self.plan.name}: name the folder of a launched "
                "sweep, or its config"
            )
        return dict(self._content()["runs"])

    def _content(self) -> dict[str, Any]:
        """What the plan says.

        `runs` by run id, the list `left_out`, digests of `plugins`, and by dataset and algorithm
        what their runs have in `common`.
        """
        if not self.plan.is_file():
            return {"runs": {}, "left_out": [], "plugins": {}, "common": {}}
        try:
            content = read_sealed_json(self.plan)
            if content["version"] != _PLAN_VERSION:
                raise ValueError(f"its version is {content['version']!r}")
            list(map(_place_in_grid, content["runs"].values()))
            return {
                "runs": dict(content["runs"]),
                "left_out": list(content.get("left_out", ())),
                "plugins": dict(content.get("plugins", {})),
                "common": {name: dict(each) for name, each in content.get("common", {}).items()},
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{self.plan} is damaged ({type(error).__name__}: {error}): remove it and launch "
                "the sweep again, by its config; finished runs stay"
            ) from error

    def run_folders(self) -> list[RunFolder]:
        """The folders of runs that are there, planned or not, by name."""
        planned = self._content()["runs"]
        names = {name for name in self._names() if (self.root / name).is_dir()}
        packed = packed_runs(self.root)
        folders = [RunFolder(self.root / name) for name in sorted(names | packed.keys())]
        return [f for f in folders if f.path.name in {*planned, *packed} or f.spec.exists()]

    def incomplete(self) -> list[RunFolder]:
        """The folders of runs that are not done, not running, and were not done before a redo."""
        return [
            folder
            for folder in self.run_folders()
            if not folder.before.exists() and folder.state() not in (DONE, RUNNING)
        ]


def common_to(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the runs of one mean have in common with the one that a run.json describes.

    Seeds and drawn hyper-parameters are meant to differ. Metrics and evaluated splits may: they
    change no number that both have, and tables name them.
    """
    common = {n: v for n, v in spec.get("identity", {}).items() if n not in _MAY_DIFFER}
    common |= {f"hparams.{name}": value for name, value in spec.get("fixed_hparams", {}).items()}
    return common | {f"file {name}": value for name, value in spec.get("digests", {}).items()}


def cell_of(run: PlannedRun) -> Cell:
    return str(run["dataset"]), str(run["algorithm"])


def _place_in_grid(run: PlannedRun) -> tuple[str, ...]:
    return tuple(str(run[name]) for name in _GRID_FIELDS)


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In which settings a sweep's folder differs from a config."""
    return ", ".join(
        f"{name} is {there.get(name, 'not set')} there and {here.get(name, 'not set')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    )


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that runs depend on."""
    hparams = values.get("hparams") or {}
    fields = {name: values[name] for name in RunFields.model_fields if name in values}
    return fields | {f"hparams.{name}": value for name, value in hparams.items()}


def remove(folder: RunFolder) -> bool:
    """Removes a run's folder, unless the run was finished or started meanwhile; says whether."""
    try:
        with folder.exclusive():
            if folder.is_done():
                return False
            shutil.rmtree(folder.path)
            return True
    except Busy:
        return False
