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
from domainbed.core.text_table import count
from domainbed.datasets import get_dataset_class
from domainbed.errors import UserError
from domainbed.runs.exported import unpacked
from domainbed.runs.folder import RunFolder
from domainbed.runs.load import load_records
from domainbed.runs.packed import text_of
from domainbed.runs.states import DONE
from domainbed.spec import Resolver, RunSpec
from domainbed.sweeps.config import test_env_sets
from domainbed.sweeps.store import Store
from domainbed.training.trained import read_spec

TOLERANCE, OF_ONE = 0.02, 0.1
"""Of each record's mean over all splits, and of each split, between kinds of processors, numbers of
threads and versions: docs/submit.md says what was measured."""

_OF_RUN = ("test_envs", "hparams_seed", "trial_seed", "seed", "hparams", "digests", "revision")
_FEW = 3  # methods that are named
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
        rerun: how many of its runs to do again; chance decides which.
        data_dir: where their datasets are.

    Raises:
        UserError: the file is damaged, or names a plug-in that is not there; or a wrong count.
    """
    if rerun < 0:
        raise UserError(f"--rerun is {rerun}: expected 0 or more runs")
    store = Store(unpacked(file))
    planned = store.planned()
    in_tables = {Path(folder).name for folder in load_records(file).runs["folder"]}
    done = [name for name, state in store.states(sorted(in_tables)).items() if state == DONE]
    folders = {name: store.folder(name) for name in done}
    specs = {name: read_spec(folder) for name, folder in folders.items()}
    environments = [folder.read_json(folder.environment) or {} for folder in folders.values()]
    again = [*_again(specs, folders, rerun, data_dir)]
    return [
        Check(
            "runs done",
            f"{len(done)} of {len(planned)} planned",
            {*done} == {*planned} == in_tables,
        ),
        _grid(specs.values()),
        alike(specs.values()),
        _drawn(specs),
        _records(folders, specs),
        *_data([*zip(specs.values(), environments), *(each[:2] for each in again)]),
        _plugins(folders),
        Check("PyTorch", ", ".join(sorted({str(each.get("torch")) for each in environments}))),
        *(found for _, _, found in again),
    ]


def _grid(specs: Iterable[RunSpec]) -> Check:
    """Whether all algorithms have all test domains, and the same draws and trials from 0 on."""
    grids = defaultdict(list)
    for spec in specs:
        place = spec.test_envs, spec.hparams_seed, spec.trial_seed
        grids[spec.dataset, spec.algorithm].append(place)
    draws, trials = ({place[i] for grid in grids.values() for place in grid} for i in (1, 2))
    whole = draws == {*range(len(draws))} and trials == {*range(len(trials))}
    for (dataset, _), grid in grids.items():
        tested = test_env_sets(dataset, get_dataset_class(dataset), [])
        sets = {*tested, *(place[0] for place in grid)}
        whole &= len(grid) == len({*grid}) == len(sets) * len(draws) * len(trials)
    datasets, methods = ({*names} for names in zip(*grids))
    return Check(
        "seeds",
        f"{count(len(methods), 'method')} on {' and '.join(sorted(datasets))}, "
        f"{count(len(trials), 'trial')}, {count(len(draws), 'draw')}",
        whole,
    )


def alike(specs: Iterable[RunSpec]) -> Check:
    """Whether all runs on a dataset were made alike, with nothing tuned; and what is fixed."""
    said = set()
    for spec in specs:
        own = {n: v for n, v in spec.identity().items() if n not in (*_OF_RUN, "algorithm")}
        for whose, values in (("all", own), (spec.algorithm, spec.fixed_hparams)):
            said.add((spec.dataset, whose, json.dumps(values, sort_keys=True)))
    stands = len(said) == len({each[:2] for each in said}) and not any(s.tuned for s in specs)
    having = defaultdict(set)
    for _, whose, text in said:
        having[text].add(whose)
    found = sorted(
        f"{', '.join(sorted(them)) if len(them) <= _FEW else count(len(them), 'method')}: {text}"
        for text, them in having.items()
        if text != "{}"
    )
    return Check("protocol", "; ".join(found), stands)


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
    """Whether each run has its own records, at the steps of its spec; of stages, the last."""
    for name, folder in folders.items():
        records, spec = read(folder), specs[name]
        steps = [r["step"] for r in records if r.get("stage") == records[-1].get("stage")]
        expected = sorted({*range(0, spec.steps, spec.checkpoint_freq), spec.steps - 1})
        if steps != expected and not (
            len(steps) == 1 and issubclass(get_algorithm_class(spec.algorithm), FittedOnce)
        ):
            return Check("records", f"{spec.describe()} has steps {steps}", False)
        for args, drawn in ((record["args"], record["hparams"]) for record in records):
            said = {
                **args,
                "hparams": drawn,
                "fixed_hparams": json.loads(args.get("hparams") or "{}"),
            }
            if {**said, **spec.as_json(), "run_id": name} != said:
                return Check("records", f"{spec.describe()} has records of another run", False)
    return Check("records", f"{len(folders)} runs, with the steps of their specs")


def _data(runs: Iterable[tuple[RunSpec, Mapping[str, Any]]]) -> Iterable[Check]:
    """For each dataset, whether all its runs, repeated ones included, had the same data."""
    digests = defaultdict(set)
    for spec, environment in runs:
        digests[spec.dataset_label].add((environment.get("data") or {}).get("digest"))
    for dataset, found in digests.items():
        stands = len(found) == 1 and None not in found
        yield Check(f"data of {dataset}", ", ".join(f"{each}"[:12] for each in found), stands)


def _plugins(folders: Mapping[str, RunFolder]) -> Check:
    changed = {name for folder in folders.values() for name in folder.changed_plugins()}
    found = f"{', '.join(sorted(changed))}: not the version of the runs" if changed else "as given"
    return Check("plug-ins", found, not changed)


def _again(
    specs: Mapping[str, RunSpec],
    folders: Mapping[str, RunFolder],
    rerun: int,
    data_dir: str,
) -> Iterable[tuple[RunSpec, dict[str, Any], Check]]:
    """Repeats some runs: the spec and the new environment of each, and how its records compare."""
    import torch

    from domainbed.training import run

    for name in random.SystemRandom().sample(sorted(specs), min(rerun, len(specs))):
        environment = folders[name].read_json(folders[name].environment) or {}
        torch.set_num_threads(environment.get("threads") or torch.get_num_threads())
        with tempfile.TemporaryDirectory() as aside:
            again = RunFolder(Path(aside) / name)
            run(specs[name], again, RunOptions(data_dir=data_dir, keep="none"))
            yield (
                specs[name],
                again.read_json(again.environment) or {},
                Check(
                    f"again: {specs[name].describe()}",
                    *difference(read(folders[name]), read(again)),
                ),
            )


def difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> tuple[str, bool]:
    """In words how records of one run differ, and whether that is within the tolerances."""
    stripped = [
        [{name: v for name, v in record.items() if name not in _OF_MACHINE} for record in records]
        for records in (before, now)
    ]
    if stripped[0] == stripped[1]:
        return "the same, bit for bit", True
    if [(r["step"], r.keys()) for r in stripped[0]] != [(r["step"], r.keys()) for r in stripped[1]]:
        return "records of other steps or names", False
    # Relative, of what exceeds 1; what could not be measured is null.
    gaps = [
        [((other[n] or 0) - (v or 0)) / max(1, abs(v or 0)) for n, v in each.items() if "env" in n]
        for each, other in zip(*stripped)
    ]
    mean = max(abs(sum(of_record)) / len(of_record) for of_record in gaps)
    of_one = max(abs(gap) for of_record in gaps for gap in of_record)
    return (
        f"means differ by up to {100 * mean:.2f} points, a split by {100 * of_one:.2f}",
        mean <= TOLERANCE and of_one <= OF_ONE,
    )


def read(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of a run, packed or not."""
    text = text_of(folder.path, folder.results.name) or b""
    return [json.loads(line) for line in text.splitlines()]
