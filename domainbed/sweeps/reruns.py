"""More trials of what selection chose: hyper-parameters are tuned first, then seeds are added.

The runs have a folder of their own within the sweep's, one for each selection method, so that no
table takes them for trials of the search; their records are marked, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from domainbed.core.names import dataset_label, trained_algorithm
from domainbed.errors import UserError
from domainbed.reporting import load_records
from domainbed.runs.records import Records
from domainbed.runs.states import DONE, FAILED
from domainbed.selection import SELECTION_METHODS, SelectionMethod
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.launch import Launch, prepare_runs
from domainbed.sweeps.selected import choice_of
from domainbed.sweeps.store import Store
from domainbed.training.trained import read_spec

_PREFIX = "rerun-"


def is_rerun(folder: Path) -> bool:
    """Whether a folder is one of reruns."""
    method = folder.name.removeprefix(_PREFIX)
    return folder.name.startswith(_PREFIX) and method in SELECTION_METHODS


def rerun_methods(config: SweepConfig, names: Sequence[str] = ()) -> list[SelectionMethod]:
    """The methods whose choices can be run again: the named ones, or those of the sweep.

    Raises:
        UserError: a method is unknown, chooses with runs on pairs, or there is none.
    """
    methods = [SELECTION_METHODS[name] for name in names or config.selection]
    pairing = [method.name for method in methods if method.needs_pairs]
    chosen = [method for method in methods if not method.needs_pairs]
    if (names and pairing) or not chosen:
        raise UserError(
            f"{pairing[0]} chooses with runs on pairs of test domains, of which new trials have "
            "none: give another --selection",
            "selection",
        )
    return chosen


def prepare_reruns(
    config: SweepConfig, method: SelectionMethod, trials: int, retry: bool = False
) -> Launch:
    """The launch of new trials of what a method chose in a sweep.

    Of each dataset, algorithm and test domain the run is taken that has the highest validation
    accuracy of all that the method chose in a trial (of equals that of the first trial). The new
    trials are numbered on from the sweep's last one.

    Args:
        config: of the last launch into the sweep's folder.
        method: that chose.
        trials: how many new ones.
        retry: do what failed, rather than what is not done.

    Raises:
        UserError: the sweep is under way, or nothing was chosen.
    """
    _refuse_unfinished(Store(config.output_dir))
    records = load_records(config.output_dir)
    first = 1 + max(records.runs["trial_seed"])
    seeds = tuple(range(first, first + trials))
    best = _best(config, records, method)
    if not best:
        raise UserError(
            f"{method.name} chose nothing in {config.output_dir!r}: `domainbed collect "
            f"{config.output_dir} --explain` tells what is missing"
        )
    specs = [
        spec.variant(spec.hparams_seed, seed, spec.hparams).model_copy(
            update={"rerun": method.name}
        )
        for seed in seeds
        for spec in best
    ]
    changes = {
        "output_dir": str(Path(config.output_dir) / f"{_PREFIX}{method.name}"),
        "selection": (method.name,),
        "trials": seeds,
    }
    return prepare_runs(config.model_copy(update=changes), specs, retry)


def _refuse_unfinished(store: Store) -> None:
    """What is chosen should stay chosen."""
    states = Counter(store.states(store.planned()).values())
    if left := sum(states.values()) - states[DONE] - states[FAILED]:
        raise UserError(
            f"{left} of the {sum(states.values())} runs in {str(store.root)!r} are not done: new "
            f"trials are of what was chosen among all: `domainbed sweep launch {store.root}`"
        )


def _best(config: SweepConfig, records: Records, method: SelectionMethod) -> list[RunSpec]:
    """The spec of the best chosen run of each dataset, algorithm and test domain.

    Averages of weights come along with the runs that the last weights choose.
    """
    chosen = method.select(records)
    chosen = chosen[chosen["algorithm"].map(trained_algorithm) == chosen["algorithm"]]
    ordered = chosen.sort_values(["val_acc", "trial_seed"], ascending=[False, True], kind="stable")
    rows = ordered.drop_duplicates(["dataset", "algorithm", "test_env"]).sort_index()
    names = {dataset_label(name): name for name in config.datasets}
    specs = [read_spec(choice_of(records, row).folder) for row in rows.to_dict("records")]
    return [
        spec.model_copy(update={"dataset": names.get(spec.dataset_label, spec.dataset)})
        for spec in specs
    ]
