"""The choices of selection methods in a sweep: as models ready to predict, and in new trials.

Hyper-parameters are tuned first, then trials are added. The new runs have a folder of their own
within the sweep's, one for each selection method, so that no table takes them for trials of the
search; their records are marked as well.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed.core.names import AVERAGES_BY_TITLE, average_in, dataset_label, trained_algorithm
from domainbed.errors import UserError, in_shell
from domainbed.reporting import load_records
from domainbed.runs.folder import RunFolder
from domainbed.runs.records import Records
from domainbed.runs.states import DONE, FAILED
from domainbed.selection import SELECTION_METHODS, SelectionMethod
from domainbed.selection.judging import judged, judged_alike
from domainbed.spec import RunSpec
from domainbed.sweeps.config import SweepConfig
from domainbed.sweeps.launch import Launch, prepare
from domainbed.sweeps.store import Store
from domainbed.training.artifacts import is_final
from domainbed.training.trained import Model, model_in, read_spec

_PREFIX = "rerun-"


def load_selected(
    sweep: Path | str,
    *,
    dataset: str | None = None,
    algorithm: str,
    test_env: int,
    selection: str,
    selection_metric: str | None = None,
    trial_seed: int | None = None,
    device: str | None = None,
) -> Model:
    """The model that a selection method chose for a cell of the tables.

    Its weights are those of the chosen step: a sweep keeps them with `keep: selected`, or `all`.

    Args:
        sweep: the folder of the sweep.
        dataset: as in the tables; None for that of a sweep with one.
        algorithm: as in the tables; "ERM + SWAD" for averaged weights.
        test_env: the test domain.
        selection: the short name of a method.
        selection_metric: what it chooses by; None for what the runs were told, or else that of
            their labels.
        trial_seed: which trial's choice; None for the first one's.
        device: cpu, cuda or mps; None finds the best there is.

    Raises:
        UserError: there is no such choice, its run is not finished, or its weights were not kept.

    Examples:
        >>> model = load_selected(  # doctest: +SKIP
        ...     "results/mine", algorithm="ERM", test_env=0, selection="training-domain"
        ... )
        >>> model.classes  # doctest: +SKIP
        ['dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person']
    """
    method, records = SELECTION_METHODS[selection], load_records(sweep)
    runs = records.runs
    datasets = sorted(set(runs["dataset"])) if dataset is None else [dataset]
    if len(datasets) > 1:
        raise UserError(
            f"{str(sweep)!r} has runs on {', '.join(datasets)}: name one of them as the dataset",
            "dataset",
        )
    dataset = datasets[0]
    wanted = {"dataset": dataset, "algorithm": algorithm, "test_env": test_env}
    if trial_seed is not None:
        wanted["trial_seed"] = trial_seed
    records = records.only((runs["dataset"] == dataset) & (runs["algorithm"] == algorithm))
    rows = [
        row
        for part in judged(records, selection_metric=selection_metric)
        for row in method.select(part).to_dict("records")
    ]
    row = _first_of(rows, wanted, f"{method.name} chose nothing in {str(sweep)!r}")
    run, step = _run_of(records, row), int(row["step"])
    folder = RunFolder(run["folder"])
    return model_in(folder, _weights(folder, run, step, algorithm, method), device)


def _first_of(
    rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any], otherwise: str
) -> Mapping[str, Any]:
    """The first trial's row that has what is wanted.

    Raises:
        UserError: there is none, which is said as `otherwise`.
    """
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    if not found:
        cell = ", ".join(f"{name} {value!r}" for name, value in wanted.items())
        raise UserError(
            f"{otherwise} for {cell}: `domainbed collect` shows the cells, and with --explain what "
            "they lack"
        )
    return min(found, key=lambda row: row["trial_seed"])


def _weights(
    folder: RunFolder, run: Any, step: int, algorithm: str, method: SelectionMethod
) -> Path:
    """The file of the weights at the step of a run that was chosen.

    Raises:
        UserError: they were not kept, or the run is not finished.
    """
    average = AVERAGES_BY_TITLE.get(average_in(algorithm), "")
    at_step = folder.model_file(average, step)
    if at_step.is_file():
        return at_step
    spec = read_spec(folder)
    last = folder.model_file(average)
    if last.is_file() and is_final(spec, step, step == run["last_step"] and spec.record_last_step):
        return last
    raise UserError(
        f"{folder.path} holds no weights of step {step}, which {method.name} chose: run the sweep "
        f"in another folder with `keep: {'all' if method.needs_pairs else 'selected'}`"
    )


def _run_of(records: Records, row: Mapping[str, Any]) -> Any:
    """The row of `records.runs` of a choice, as `SelectionMethod.select` makes it."""
    runs = records.runs
    same = runs["test_envs"] == (row["test_env"],)
    for key in ("dataset", "algorithm", "hparams_seed", "trial_seed"):
        same &= runs[key] == row[key]
    return runs[same].iloc[0]


def is_rerun(folder: Path) -> bool:
    """Whether a folder holds new trials of choices."""
    return folder.name.startswith(_PREFIX) and Store(folder.parent).plan.is_file()


def rerun_methods(config: SweepConfig, names: Sequence[str] = ()) -> list[SelectionMethod]:
    """The methods whose choices can be rerun: the named ones, or those of the sweep.

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

    Of each dataset, algorithm and test domain the run is taken that has the best validation of all
    that the method chose in a trial (of equals that of the first trial). The new trials are
    numbered on from the sweep's last one.

    Args:
        config: of the last launch into the sweep's folder.
        method: that chose.
        trials: how many new ones.
        retry: run the failed ones again, and no others.

    Raises:
        UserError: the sweep is under way, or nothing was chosen.
    """
    # Further runs could change the choice.
    store = Store(config.output_dir)
    states = Counter(store.states(store.planned()).values())
    if left := sum(states.values()) - states[DONE] - states[FAILED]:
        raise UserError(
            f"{left} of the {sum(states.values())} runs in {str(store.root)!r} are not done: new "
            "trials are of what was chosen among all: `domainbed sweep launch "
            f"{in_shell(store.root)}`"
        )
    records = judged_alike(
        load_records(config.output_dir), selection_metric=config.selection_metric
    )
    first = 1 + max(records.runs["trial_seed"])
    seeds = tuple(range(first, first + trials))
    best = _best(config, records, method)
    if not best:
        raise UserError(
            f"{method.name} chose nothing in {config.output_dir!r}: `domainbed collect "
            f"{in_shell(config.output_dir)} --explain` says what is missing"
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
    return prepare(config.model_copy(update=changes), retry, specs)


def _best(config: SweepConfig, records: Records, method: SelectionMethod) -> list[RunSpec]:
    """The spec of the best chosen run of each dataset, algorithm and test domain.

    Averages of weights come along with the runs that the last weights choose.
    """
    chosen = method.select(records)
    chosen = chosen[chosen["algorithm"].map(trained_algorithm) == chosen["algorithm"]]
    ordered = chosen.sort_values(
        ["val", "trial_seed"], ascending=[records.lower_is_better, True], kind="stable"
    )
    rows = ordered.drop_duplicates(["dataset", "algorithm", "test_env"]).sort_index()
    names = {dataset_label(name): name for name in config.datasets}
    specs = [
        read_spec(RunFolder(_run_of(records, row)["folder"])) for row in rows.to_dict("records")
    ]
    return [
        spec.model_copy(update={"dataset": names.get(spec.dataset_label, spec.dataset)})
        for spec in specs
    ]
