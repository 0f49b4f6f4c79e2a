"""What is made of a sweep's finished runs: averages of weights or predictions, and adapted runs.

Runs are averaged that differ in hparams seed, and on request in algorithm: of one dataset, set of
test domains and trial. They are adapted to test images one by one. What comes of either is written
beside the runs, as records that the tables read like any run's.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from domainbed.algorithms import Algorithm, PooledAlgorithm, get_algorithm_class
from domainbed.algorithms.adaptation import METHODS as ADAPTATIONS
from domainbed.algorithms.adaptation import Adapted, settings_of
from domainbed.config.run_fields import RunOptions
from domainbed.core.files import as_json_values, sealed_json, write_text
from domainbed.core.names import averaged_algorithm, order_algorithms, record_key
from domainbed.errors import UserError, did_you_mean
from domainbed.metrics import selecting_metric
from domainbed.reporting.units import Unit
from domainbed.runs.folder import RunFolder
from domainbed.runs.states import DONE
from domainbed.spec import RunSpec
from domainbed.sweeps.store import Store
from domainbed.training.artifacts import read_model
from domainbed.training.averages import estimate_statistics
from domainbed.training.experiment import Experiment, linear_head
from domainbed.training.trained import (
    load_model,
    load_trained_weights,
    read_spec,
    rebuild,
    require_same_names,
)

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Method:
    """A way to average runs.

    Attributes:
        title: what tables call it.
        greedy: whether runs are chosen by the validation of the average, or all are taken.
        of_weights: whether weights are averaged, from shared initial ones, or probabilities.
        of_several: whether runs of several algorithms may be averaged together.
    """

    title: str
    greedy: bool = False
    of_weights: bool = True
    of_several: bool = False


# Soups are of Wortsman et al. 2022 (arXiv 2203.05482), DiWA is of Ramé et al. 2022 (arXiv
# 2205.09739). The greedy choice is the same in both: recipe 1, and the restricted selection.
METHODS = {
    "uniform-soup": Method("uniform soup"),
    "greedy-soup": Method("greedy soup", greedy=True),
    "diwa-uniform": Method("DiWA", of_several=True),
    "diwa-restricted": Method("DiWA restricted", greedy=True, of_several=True),
    "ensemble": Method("ensemble", of_weights=False, of_several=True),
}


class Member(NamedTuple):
    """A finished run with its weights."""

    folder: RunFolder
    spec: RunSpec


@dataclass(frozen=True)
class Averaged:
    """An average of some runs.

    Attributes:
        name: of its row in the tables.
        taken: the runs that are in it, in the order in which they came.
        found: how many there were to choose from.
        validation: the mean of `metric` on the out-splits of the training domains.
        metric: what was selected by.
    """

    name: str
    taken: list[Member]
    found: int
    validation: float
    metric: str

    def describe(self) -> str:
        """One line for people."""
        spec = self.taken[0].spec
        names = ", ".join(
            f"{member.spec.algorithm} {member.spec.hparams_seed}" for member in self.taken
        )
        return (
            f"{self.name} on {spec.dataset_label}, test domain "
            f"{'+'.join(map(str, spec.test_envs))}, trial {spec.trial_seed}: {len(self.taken)} of "
            f"{self.found} (hparams seeds: {names}), validation "
            f"{_shown(self.validation, self.metric)}"
        )


def _shown(validation: float, metric: str) -> str:
    unit = Unit.of(metric, [validation])
    return unit.text(unit.factor * validation)


def average_runs(
    root: Path | str,
    method: str,
    algorithms: Sequence[str] | None = None,
    together: bool = False,
    machine: RunOptions | None = None,
    dataset: str | None = None,
    selection_metric: str | None = None,
) -> Iterator[Averaged]:
    """Averages the finished runs of a sweep, and writes a record of each average beside them.

    An existing average is made again.

    Args:
        root: the folder of the sweep.
        method: one of `METHODS`.
        algorithms: only their runs; None for all.
        together: average runs of different algorithms with each other.
        machine: where the data lies and what computes.
        dataset: see `trained.read_spec`.
        selection_metric: what chooses, where runs are chosen; None for that of the labels.

    Raises:
        UserError: no such method; no finished runs; weights that were not kept; runs that cannot
            be averaged, with the reason.
    """
    if method not in METHODS:
        raise UserError(
            f"unknown method {method!r}.{did_you_mean(method, METHODS)} Known: "
            + ", ".join(METHODS),
            "method",
        )
    chosen = METHODS[method]
    if together and not chosen.of_several:
        several = ", ".join(name for name, each in METHODS.items() if each.of_several)
        raise UserError(f"--together is for {several}, and not for {method}", "together")
    groups = _groups(root, algorithms, together, dataset)
    for members in groups:
        _check(members, chosen)
    for members in groups:
        spec = members[0].spec
        metric = selecting_metric(selection_metric, spec.labels, spec.metrics)
        yield _average(Path(root), chosen, members, machine, dataset, metric)


def mean_of(states: Iterable[Weights]) -> Weights:
    """The mean of each tensor over the states, in float64; integers are those of the first."""
    total: Weights = {}
    first: Weights = {}
    for count, state in enumerate(states, start=1):
        first = first or state
        for name, value in state.items():
            if value.is_floating_point():
                total[name] = total[name] + value.double() if count > 1 else value.double()
    return first | {name: (value / count).to(first[name].dtype) for name, value in total.items()}


class Ensemble(Algorithm):
    """Algorithms that predict together: logits are the logarithm of their mean probabilities.

    Where labels are not classes of which each has a logit, outputs are the members' mean.
    """

    def __init__(self, members: Sequence[Algorithm]) -> None:
        nn.Module.__init__(self)
        self.members, self.facts = nn.ModuleList(members), members[0].facts

    def predictor(self) -> Callable[[torch.Tensor], torch.Tensor]:
        predictors = [member.predictor() for member in self.members]  # type: ignore[operator]

        def predict(x: torch.Tensor) -> torch.Tensor:
            outputs = torch.stack([each(x).float() for each in predictors])
            if self.label_type.kind != "classes":
                return outputs.mean(dim=0)
            mean = outputs.softmax(dim=2).mean(dim=0)
            return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # infinite ones are no guess

        return predict


def finished_runs(
    root: Path | str, algorithms: Sequence[str] | None = None, dataset: str | None = None
) -> list[Member]:
    """The finished runs of a sweep, or of some of its algorithms.

    Raises:
        UserError: there are none, or the folder is not there.
    """
    store = Store(root)
    if not store.root.is_dir():
        raise UserError(f"{str(store.root)!r} is not a folder: name the folder of a sweep")
    members = [
        Member(folder, read_spec(folder, dataset))
        for folder in store.run_folders()
        if folder.state() == DONE
    ]
    names = order_algorithms(member.spec.algorithm for member in members)
    if unknown := [name for name in algorithms or () if name not in names]:
        raise UserError(
            f"no finished runs of the algorithm {unknown[0]!r} in {str(store.root)!r}: it has "
            f"{', '.join(names) or 'none'}",
            "algorithms",
        )
    if not members:
        raise UserError(f"no finished runs in {str(store.root)!r}: name the folder of a sweep")
    return [each for each in members if algorithms is None or each.spec.algorithm in algorithms]


def _groups(
    root: Path | str, algorithms: Sequence[str] | None, together: bool, dataset: str | None
) -> list[list[Member]]:
    """The finished runs to average with each other, by ascending hparams seed."""
    members = finished_runs(root, algorithms, dataset)
    names = order_algorithms(member.spec.algorithm for member in members)
    groups: dict[Any, list[Member]] = defaultdict(list)
    for member in members:
        spec, own = member.spec, names.index(member.spec.algorithm)
        key = (spec.dataset_label, spec.test_envs, spec.trial_seed, 0 if together else own)
        groups[key].append(member)
    return [
        sorted(groups[key], key=lambda m: (m.spec.hparams_seed, names.index(m.spec.algorithm)))
        for key in sorted(groups)
    ]


def _check(members: Sequence[Member], method: Method) -> None:
    """Raises if some runs cannot be averaged, as far as their specs say."""
    folder, ours = members[0]
    for other, theirs in members:
        if not other.model.is_file():
            raise UserError(
                f"{other.path} holds no {other.model.name}: weights were not kept. Train the sweep "
                "again in another folder, without skip_model_save"
            )
        for name in ("protocol", "features", "holdout_fraction", "uda_holdout_fraction", "metrics"):
            if getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"{name} is {getattr(ours, name)!r} in {folder.path} and "
                    f"{getattr(theirs, name)!r} in {other.path}: average runs alike"
                )
        started = [(spec.initial_weights, spec.initial_seed) for spec in (ours, theirs)]
        if method.of_weights and started[0] != started[1]:
            raise UserError(
                f"{folder.path} and {other.path} started with different weights, and the "
                f"{method.title} is of runs that share them: train the sweep with "
                "'initial_weights: shared' or 'linear-probe', in another folder; or use --method "
                "ensemble"
            )
        several = method.of_weights and ours.algorithm != theirs.algorithm
        for algorithm in (ours.algorithm, theirs.algorithm) if several else ():
            if not _predicts_plainly(get_algorithm_class(algorithm)):
                raise UserError(
                    f"{algorithm} does not predict by its classifier on its features alone: its "
                    "weights cannot be averaged with another algorithm's",
                    "algorithms",
                )


def _predicts_plainly(cls: type[Algorithm]) -> bool:
    return issubclass(cls, PooledAlgorithm) and cls.predict is PooledAlgorithm.predict


def _average(
    root: Path,
    method: Method,
    members: Sequence[Member],
    machine: RunOptions | None,
    dataset: str | None,
    metric: str,
) -> Averaged:
    experiment = rebuild(members[0].folder, machine, dataset)
    for member in members[1:]:
        require_same_names(member.folder, experiment)
    if method.of_weights:
        taken = _mix(experiment, members, metric if method.greedy else None)
    else:
        taken, device = list(members), str(experiment.device)
        together = Ensemble([load_model(each.folder.path, device).module for each in members])
        experiment = replace(experiment, algorithm=together)
    name = averaged_algorithm(
        ", ".join(order_algorithms(member.spec.algorithm for member in members)), method.title
    )
    write_beside(root, name, experiment, runs=[member.spec.run_id for member in taken])
    return Averaged(name, taken, len(members), experiment.validated(metric), metric)


def _mix(experiment: Experiment, members: Sequence[Member], metric: str | None) -> list[Member]:
    """Gives the experiment's algorithm the averaged weights.

    Runs are taken as long as the average's `metric` gets no worse; with None all are.

    Returns:
        the members that were taken, in the order in which they came.
    """
    first = members[0]
    own = read_model(first.folder.model, first.spec.run_id)["model_dict"]
    names = _predicting_names(experiment.algorithm)

    def weights_of(member: Member) -> Weights:
        state = read_model(member.folder.model, member.spec.run_id)["model_dict"]
        for name in names:
            if name not in state or state[name].shape != own[name].shape:
                has = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
                raise UserError(
                    f"{member.folder.path} has another network than {first.folder.path}: {name!r} "
                    f"{has} there and has shape {tuple(own[name].shape)} here; average runs of one "
                    "architecture, with --algorithms"
                )
        return {name: state[name] for name in names}

    def validation(mixed: Sequence[Member], metric: str) -> float:
        """The higher the better."""
        _load(experiment, {**own, **mean_of(map(weights_of, mixed))})
        return Unit.of(metric).sign * experiment.validated(metric)

    taken = list(members)
    if metric:
        alone = {member.spec.run_id: validation([member], metric) for member in members}
        order = sorted(members, key=lambda member: -alone[member.spec.run_id])
        taken, best = order[:1], alone[order[0].spec.run_id]
        for member in order[1:]:
            if (found := validation([*taken, member], metric)) >= best:
                taken, best = [*taken, member], found
    _load(experiment, {**own, **mean_of(map(weights_of, taken))})
    return taken


def _load(experiment: Experiment, state: Weights) -> None:
    experiment.algorithm.load_state_dict(state)
    experiment.algorithm.train()
    estimate_statistics(experiment)


def _predicting_names(algorithm: Algorithm) -> list[str]:
    """The entries of the state dict that decide predictions.

    All of them, where an algorithm predicts in a way of its own. Else what has another shape from
    run to run, such as a discriminator whose width is drawn, is none of them.
    """
    state = algorithm.state_dict()
    if not _predicts_plainly(type(algorithm)):
        return list(state)
    places = {
        value.data_ptr()
        for part in algorithm.predicting_parts()
        for value in part.state_dict().values()
    }
    return [name for name, value in state.items() if value.data_ptr() in places]


_OF_ONE_RUN = ("seed", "hparams", "fixed_hparams", "digests", "averages")


def write_beside(
    root: Path,
    name: str,
    experiment: Experiment,
    *,
    runs: Sequence[str],
    kind: str = "average",
    hparams_seed: int | None = None,
    hparams: Mapping[str, Any] = {},
    noted: Mapping[str, Any] = {},
) -> None:
    """Evaluates the experiment's algorithm, and writes a record that tables read like a run's.

    It lies in a folder of its own; given again, the same takes its place.

    Args:
        root: the folder of the sweep.
        name: of its row in the tables.
        experiment: of one of the runs, with the algorithm that is to be measured.
        runs: ids of those that it was made of.
        kind: what the folder's name begins with.
        hparams_seed: at which it stands; None where it is of several, and stands at 0.
        hparams: to record.
        noted: further `args` of the record.
    """
    spec = experiment.spec
    own = [] if hparams_seed is None else [hparams_seed]
    key = [name, spec.dataset_label, list(spec.test_envs), spec.trial_seed, *own]
    digest = hashlib.md5(json.dumps(key).encode()).hexdigest()
    folder = RunFolder(root / f"{kind}-{digest}")
    args = {
        **{k: v for k, v in spec.as_json().items() if k not in _OF_ONE_RUN},
        "algorithm": name,
        "hparams_seed": hparams_seed or 0,
        "environments": experiment.domain_names,
        "torch": str(torch.__version__),
        "output_dir": str(folder.path),
        "runs": list(runs),
        **noted,
    }
    declared = experiment.dataset.test_domains
    args |= {} if declared is None else {"test_domains": list(declared)}
    measured = _measured(experiment)
    record = {"step": spec.steps - 1, **measured, "hparams": dict(hparams), "args": args}
    line = json.dumps(as_json_values(record), sort_keys=True, allow_nan=False) + "\n"
    with folder.exclusive():
        folder.done.unlink(missing_ok=True)
        write_text(folder.environment, sealed_json({"data": experiment.data}, indent=2))
        write_text(folder.results, line)
        folder.mark_done(line)


def _measured(experiment: Experiment) -> dict[str, float | None]:
    values = experiment.evaluate(experiment.spec.steps - 1, experiment.all_splits())
    return {record_key(v.domain, v.split, v.metric): v.value for v in values}


# ---- adaptation ----


def adapt_runs(
    root: Path | str,
    algorithms: Sequence[str] | None = None,
    supports: Sequence[int] | None = None,
    machine: RunOptions | None = None,
    dataset: str | None = None,
    selection_metric: str | None = None,
    method: str = "T3A",
) -> Iterator[str]:
    """Adapts each finished run to its test images, writes a record beside it, and yields a line.

    The setting is the one that validates best, on the out-splits of the training domains; of equal
    ones the first. A run that does not predict by a linear classifier is left out, and for Tent and
    BatchNorm one without batch norm layers. The record's `args` say by what it was adapted, and
    what the run measured without.

    Args:
        root: the folder of the sweep.
        algorithms: only their runs; None for all.
        supports: values of M, of T3A and UniDG; None for the paper's.
        machine: where the data lies and what computes.
        dataset: see `trained.read_spec`.
        selection_metric: what the setting is chosen by; None for that of the labels.
        method: one of `adaptation.METHODS`.

    Raises:
        UserError: no finished runs, none that can be adapted, or weights that were not kept.
    """
    if method not in ADAPTATIONS:
        raise UserError(
            f"--method is {method!r}: expected one of {', '.join(ADAPTATIONS)}", "method"
        )
    adapted_runs = 0
    for member in finished_runs(root, algorithms, dataset):
        spec, experiment = member.spec, rebuild(member.folder, machine, dataset)
        load_trained_weights(experiment, member.folder)
        try:
            adapted = _adapted(experiment, method, supports)
        except UserError as error:
            yield f"{spec.describe()}: left out: {error}"
            continue
        metric = selecting_metric(selection_metric, spec.labels, spec.metrics)
        found = [each.validated(metric) for _, each in adapted]
        best = found.index(max(found, key=lambda value: Unit.of(metric).sign * value))
        setting, chosen = adapted[best]
        write_beside(
            Path(root),
            averaged_algorithm(spec.algorithm, method),
            chosen,
            runs=[spec.run_id],
            kind="adapted",
            hparams_seed=spec.hparams_seed,
            hparams={**spec.hparams, **setting},
            noted={
                "adaptation": method,
                "adapted_in": "batches of 64 of one split in stored order, each split afresh",
                "unadapted": _measured(experiment),
            },
        )
        shown = ", ".join(f"{name} {value or 'all'}" for name, value in setting.items())
        yield f"{spec.describe()}: {shown}, validation {_shown(found[best], metric)}"
        adapted_runs += 1
    if not adapted_runs:
        raise UserError(f"no run in {str(root)!r} predicts by a linear classifier on features")


def _adapted(
    experiment: Experiment, method: str, supports: Sequence[int] | None
) -> list[tuple[dict[str, Any], Experiment]]:
    """Each setting that is tried, and the experiment adapted by it.

    Raises:
        UserError: its labels or its model are not such as the method adapts.
    """
    spec = experiment.spec
    if experiment.label_type.kind != "classes":
        raise UserError(f"labels are {spec.labels!r}, and {method} adapts to classes")
    parts = linear_head(experiment)
    return [
        (each, replace(experiment, algorithm=Adapted(*parts, method, {**spec.hparams, **each})))
        for each in settings_of(method, supports, spec.hparams.get("lr", 1e-3))
    ]
