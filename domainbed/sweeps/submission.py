"""Whether an exported sweep is what it says: whole, drawn as published, the same when run again."""

import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.algorithms import FittedOnce, get_algorithm_class
from domainbed.config.run_fields import RunOptions
from domainbed.core.files import file_digest
from domainbed.errors import UserError
from domainbed.runs.exported import unpacked
from domainbed.runs.folder import RunFolder
from domainbed.runs.packed import text_of
from domainbed.runs.states import DONE
from domainbed.spec import Resolver, RunSpec
from domainbed.sweeps.store import Store
from domainbed.training.trained import read_spec

TOLERANCE = 0.02
"""Of the mean accuracy over all splits at the last record, between kinds of processors, numbers of
threads and versions: docs/submit.md says what was measured."""

_OF_RUN = ("test_envs", "hparams_seed", "trial_seed", "seed", "hparams", "digests", "revision")
_RESOLVED = ("dataset", "algorithm", "fixed_hparams", "protocol_version", "rerun", "tuned")
_OF_MACHINE = {"args", "step_time", "mem_gb"}
"""What differs between records of the same run."""


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and whether that is as it should be."""

    what: str
    found: str
    stands: bool = True


def check(file: Path, rerun: int = 0, data_dir: str = "data") -> list[Check]:
    """Checks an exported sweep.

    Args:
        file: as `runs.exported.write_export` writes it.
        rerun: how many of its runs to do again; which ones follows from the file's digest.
        data_dir: where their datasets are.

    Raises:
        UserError: the file is damaged, or names a plug-in that is not there; or a wrong count.
    """
    if rerun < 0:
        raise UserError(f"--rerun is {rerun}: expected 0 or more runs")
    store = Store(unpacked(file))
    planned = store.planned()
    done = [name for name, state in store.states(planned).items() if state == DONE]
    folders = {name: store.folder(name) for name in done}
    specs = {name: read_spec(folder) for name, folder in folders.items()}
    environments = [folder.read_json(folder.environment) or {} for folder in folders.values()]
    return [
        Check("runs done", f"{len(done)} of {len(planned)} planned", len(done) == len(planned)),
        _grid(planned.values()),
        _drawn(specs),
        _records(folders, specs),
        *_data(specs.values(), environments),
        _plugins(folders),
        _untuned(specs.values()),
        Check("PyTorch", ", ".join(sorted({str(each.get("torch")) for each in environments}))),
        *_again(specs, folders, random.Random(file_digest(file)), rerun, data_dir),
    ]


def _grid(planned: Iterable[Mapping[str, Any]]) -> Check:
    """Whether all algorithms have the same test domains, draws and trials, counted from 0."""
    grids = defaultdict(set)
    for run in planned:
        place = (*run["test_envs"],), run["hparams_seed"], run["trial_seed"]
        grids[run["dataset"], run["algorithm"]].add(place)
    draws, trials = ({place[i] for grid in grids.values() for place in grid} for i in (1, 2))
    whole = all(
        len(grid) == len({place[0] for place in grid}) * len(draws) * len(trials)
        for grid in grids.values()
    )
    counted = draws == {*range(len(draws))} and trials == {*range(len(trials))}
    found = f"{len(grids)} methods on datasets, {len(draws)} draws, {len(trials)} trials"
    return Check("seeds", found + " each" * whole, whole and counted)


def _drawn(specs: Mapping[str, RunSpec]) -> Check:
    """Whether seeds and hyper-parameters are those that the protocol draws."""
    resolvers: dict[str, Resolver] = {}
    others = []
    for name, spec in specs.items():
        fields = spec.model_dump(exclude={*_OF_RUN, *_RESOLVED})
        fixed = spec.fixed_hparams | ({"tuned": True} if spec.tuned else {})
        key = json.dumps([spec.dataset, spec.algorithm, fixed, fields], sort_keys=True, default=str)
        if key not in resolvers:
            resolvers[key] = Resolver.of(spec.dataset, spec.algorithm, fixed, fields)
        expected = resolvers[key].run(spec.test_envs, spec.hparams_seed, spec.trial_seed)
        others += [spec.describe()] if {spec.run_id, expected.run_id} != {name} else []
    found = f"{others[0]} is not what its seeds draw" if others else "as the protocol draws them"
    return Check("hyper-parameters", found, not others)


def _records(folders: Mapping[str, RunFolder], specs: Mapping[str, RunSpec]) -> Check:
    """Whether each run has the records of its plan; of several stages, the last."""
    for name, folder in folders.items():
        records, spec = read(folder), specs[name]
        steps = [r["step"] for r in records if r.get("stage") == records[-1].get("stage")]
        expected = sorted({*range(0, spec.steps, spec.checkpoint_freq), spec.steps - 1})
        if steps != expected and not issubclass(get_algorithm_class(spec.algorithm), FittedOnce):
            return Check("records", f"{spec.describe()} has steps {steps}", False)
    return Check("records", f"{len(folders)} runs, with the steps of their specs")


def _data(specs: Iterable[RunSpec], environments: Iterable[Mapping[str, Any]]) -> Iterable[Check]:
    """For each dataset, whether all its runs had the same data."""
    digests = defaultdict(set)
    for spec, environment in zip(specs, environments):
        digests[spec.dataset_label].add((environment.get("data") or {}).get("digest"))
    for dataset, found in digests.items():
        stands = len(found) == 1 and None not in found
        yield Check(f"data of {dataset}", ", ".join(f"{each}"[:12] for each in found), stands)


def _plugins(folders: Mapping[str, RunFolder]) -> Check:
    changed = {name for folder in folders.values() for name in folder.changed_plugins()}
    found = f"{', '.join(sorted(changed))}: not the version of the runs" if changed else "as given"
    return Check("plug-ins", found, not changed)


def _untuned(specs: Iterable[RunSpec]) -> Check:
    tuned = {spec.tuned for spec in specs} - {""}
    found = f"taken from {', '.join(sorted(tuned))}: no leaderboard shows them" if tuned else "own"
    return Check("tuning", found, not tuned)


def _again(
    specs: Mapping[str, RunSpec],
    folders: Mapping[str, RunFolder],
    rng: random.Random,
    count: int,
    data_dir: str,
) -> Iterable[Check]:
    """Does some runs again and compares all their records."""
    import torch

    from domainbed.training import run

    for name in rng.sample(sorted(specs), min(count, len(specs))):
        before = read(folders[name])
        environment = folders[name].read_json(folders[name].environment) or {}
        torch.set_num_threads(environment.get("threads") or torch.get_num_threads())
        with tempfile.TemporaryDirectory() as aside:
            again = RunFolder(Path(aside) / name)
            run(specs[name], again, RunOptions(data_dir=data_dir, keep="none"))
            yield Check(f"again: {specs[name].describe()}", *difference(before, read(again)))


def difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> tuple[str, bool]:
    """In words how records of one run differ, and whether that is within `TOLERANCE`."""
    stripped = [
        [{name: v for name, v in record.items() if name not in _OF_MACHINE} for record in records]
        for records in (before, now)
    ]
    if stripped[0] == stripped[1]:
        return "the same, bit for bit", True
    if [record["step"] for record in before] != [record["step"] for record in now]:
        return "records of other steps", False
    gap = abs(_mean_accuracy(before[-1]) - _mean_accuracy(now[-1]))
    return f"mean accuracy at the end differs by {100 * gap:.2f} points", gap <= TOLERANCE


def read(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of a run, packed or not."""
    text = text_of(folder.path, folder.results.name) or b""
    return [json.loads(line) for line in text.splitlines()]


def _mean_accuracy(record: Mapping[str, Any]) -> float:
    values = [v for name, v in record.items() if name.endswith("_acc") and v is not None]
    return sum(values) / max(len(values), 1)
