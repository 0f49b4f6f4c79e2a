"""What a launch will do: how many runs, for which selection methods, how long, how much disk.

Costs are those of finished runs, or measured on a few updates.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from domainbed.config.run_fields import RunOptions
from domainbed.core.cores import usable_cores
from domainbed.core.text_table import duration, printable, text_table
from domainbed.errors import UserError, in_shell
from domainbed.runs.states import DONE, FAILED, INTERRUPTED, PENDING, RUNNING
from domainbed.selection import SELECTION_METHODS
from domainbed.spec import RunSpec
from domainbed.sweeps.launch import Launch
from domainbed.sweeps.status import Costs, Estimate, count_runs, status_lines, status_of
from domainbed.training.evaluation import EvaluationSplit, splits_to_evaluate
from domainbed.training.experiment import Experiment, build
from domainbed.training.machine import process_set_up

UPDATES = 10
IMAGES = 256
SECONDS = 20.0  # no further update is measured after so many seconds

# Options of launchers that may run commands: a sweep's folder can be somebody else's.
_IN_A_SHELL = ("setup", "python", "sbatch", "init")

RECORD_BYTES = 2_000  # the size of a line of results.jsonl


# ---- for people ----


def outlook(launch: Launch) -> list[str]:
    """The counts of runs, and what is left out or not kept, in a few lines."""
    states, root = list(launch.states.values()), launch.store.root
    failed = states.count(FAILED)
    lines = [
        f"{root}: {count_runs(len(states))}, {states.count(DONE)} done, "
        f"{failed} failed, {states.count(RUNNING)} running; {len(launch.todo)} to do"
    ]
    if waiting := [i for i in launch.in_hand if launch.states[i] == PENDING]:
        lines.append(f"{count_runs(len(waiting))} queued by an earlier launch")
    lines += [
        f"{count} of them keep the options that they were submitted with "
        f"({options}): `--resubmit` submits them again with those of this launch"
        for options, count in Counter(launch.outdated.values()).items()
    ]
    in_hand, todo = (Counter(map(launch.states.get, ids)) for ids in (launch.in_hand, launch.todo))
    counted = (
        (len(launch.withdrawn), "are queued: withdrawn, then resubmitted"),
        (in_hand[INTERRUPTED], "interrupted, in jobs that are queued again"),
        (todo[DONE], "done with other plug-ins: redone"),
    )
    lines += [f"{count_runs(number)} {what}" for number, what in counted if number]
    launcher = launch.config.launcher
    told = [f"{name} {launcher[name]}" for name in _IN_A_SHELL if launcher.get(name)]
    if launch.todo and told:
        lines.append(printable(f"its jobs are started with {', '.join(told)}"))
    seeds = len(launch.config.trials) * len(launch.config.hparams_seeds)
    reasons = Counter(entry["why"] for entry in launch.left_out)
    lines += [f"{count_runs(seeds * count)} left out: {why}" for why, count in reasons.items()]
    if any(run.dataset_label == "DomainNet" and run.steps == 5001 for run in launch.runs.values()):
        lines.append("DomainNet: 5,001 updates, as in DomainBed; most papers train 15,001 there")
    if launch.config.weights == "selected":
        lines += [
            f"no weights are kept for {name}, whose choice of a step depends on other runs: it "
            "needs `keep: all`"
            for name in launch.config.selection
            if SELECTION_METHODS[name].needs_pairs
        ]
    if failed and not launch.retried:
        lines.append(
            f"{count_runs(failed)} failed before and are left alone: "
            f"`domainbed sweep retry {in_shell(root)}` runs them again"
        )
    return lines


def plan_lines(launch: Launch, costs: Costs | None = None) -> list[str]:
    """The states of the runs, what selection methods need, and what the runs to do will cost.

    Args:
        launch: the sweep.
        costs: as measured; None for those of the sweep's finished runs.
    """
    costs = costs or launch.costs()
    lines = [
        *status_lines(status_of(launch.store, launch.planned)),
        "",
        *_method_lines(launch, costs),
        *(f"warning: {line}" for line in launch.obstacles()),
    ]
    if not launch.todo:
        return [*lines, "Nothing to do."]
    if costs is None:
        return [
            *lines,
            "No run is finished, so there is nothing to estimate time and disk from: `domainbed "
            "sweep plan --measure`, with the same arguments, measures them.",
        ]
    return [*lines, todo_line(launch, costs)]


def todo_line(launch: Launch, costs: Costs) -> str:
    """What the runs to do will cost."""
    total, workers = costs.of(launch.todo), max(1, launch.workers)
    basis = f"{count_runs(costs.basis)} that finished" if costs.basis else "a few updates of each"
    took = f"about {duration(total.seconds / workers)} with {workers} at a time"
    hours, disk = _hours(total, launch.gpu_share), tqdm.format_sizeof(total.disk, "B")
    return f"To do: {hours}, {took}; {disk} on disk (from {basis})."


def _method_lines(launch: Launch, costs: Costs | None) -> list[str]:
    """A row for each selection method: its runs, how many are left to do, and their cost."""
    methods = [SELECTION_METHODS[name] for name in launch.config.selection]
    header = ["selection method", "runs", "to do", "for it alone"]
    rows: list[list[object]] = [[*header, *["takes"] * bool(costs)]]
    for method in methods:
        needed = {run_id for run_id, run in launch.runs.items() if method.counts(run.test_envs)}
        todo = [run_id for run_id in launch.todo if run_id in needed]
        others = [other for other in methods if other is not method]
        alone = [
            run_id
            for run_id in todo
            if not any(other.counts(launch.runs[run_id].test_envs) for other in others)
        ]
        takes = [_hours(costs.of(todo), launch.gpu_share)] if costs else []
        rows.append([method.name, len(needed), len(todo), len(alone), *takes])
    return text_table(rows, right=range(1, 4))


def _hours(estimate: Estimate, gpu_share: float) -> str:
    """Core hours, GPU hours or both; a run on a GPU has this share of it."""
    kinds = (("core", estimate.cores / 3600), ("GPU", estimate.gpus * gpu_share / 3600))
    return " + ".join(f"{hours:.3g} {kind} hours" for kind, hours in kinds if hours) or "nothing"


# ---- measured ----


@dataclass(frozen=True)
class Timing:
    """The speed of a dataset's runs with an algorithm.

    Attributes:
        update: seconds per image of an update.
        evaluation: seconds per image of an evaluation.
        train_domains: how many domains an update draws a minibatch of.
        images: how many a record evaluates.
        device: "cpu", "cuda" or "mps".
        threads: of PyTorch.
        model_bytes: of the weights.
    """

    update: float
    evaluation: float
    train_domains: int
    images: int
    device: str
    threads: int
    model_bytes: int

    def estimate(self, run: RunSpec, options: RunOptions) -> Estimate:
        """What a run costs, without saved predictions."""
        records = len(range(0, run.steps, run.checkpoint_freq))
        images = run.hparams["batch_size"] * self.train_domains
        seconds = run.steps * images * self.update + records * self.images * self.evaluation
        at_records = {"all": records, "selected": 1 + len(run.averages)}.get(options.weights, 0)
        models = (options.weights != "none") * (1 + len(run.averages)) + at_records
        disk, on_cpu = models * self.model_bytes + records * RECORD_BYTES, self.device == "cpu"
        return Estimate(seconds, seconds * self.threads * on_cpu, seconds * (not on_cpu), disk)


def measured_costs(launch: Launch, tell: Callable[[str], None] = lambda line: None) -> Costs:
    """Estimates of the runs to do, from a few updates of each dataset and algorithm among them.

    Args:
        launch: the sweep.
        tell: called with a line before each measurement, which takes seconds.

    Raises:
        UserError: data or device is not available; see `training.experiment.build`.
    """
    if obstacles := launch.obstacles():
        raise UserError(obstacles[0])
    threads = max(1, usable_cores() // max(1, launch.workers))
    options, groups = launch.config.run_options(), defaultdict[tuple[str, str], list[str]](list)
    for run_id in launch.todo:
        run = launch.runs[run_id]
        groups[run.dataset_label, run.algorithm].append(run_id)
    of_run: dict[str, Estimate] = {}
    for number, ((label, algorithm), ids) in enumerate(groups.items(), 1):
        tell(f"measuring {algorithm} on {label} ({number} of {len(groups)})")
        timing = measure(launch.runs[ids[0]], options, threads)
        of_run |= {run_id: timing.estimate(launch.runs[run_id], options) for run_id in ids}
    return Costs(of_run)


def measure(spec: RunSpec, options: RunOptions, threads: int) -> Timing:
    """Times a few updates of a run and a part of an evaluation; nothing is written.

    Args:
        spec: of the run.
        options: where the data lies and what computes.
        threads: of PyTorch, as a worker of the sweep has them.

    Raises:
        UserError: see `training.experiment.build`.
    """
    with process_set_up(threads):
        experiment = build(spec, options)
        updates, seconds = _updates(experiment)
        splits = splits_to_evaluate(
            experiment.splits, spec.test_envs, everything=spec.eval_splits == "all"
        )
        part = EvaluationSplit(splits[0].domain, splits[0].name, splits[0].indices[:IMAGES])
        began = time.monotonic()
        experiment.evaluate(0, [part])
        train_domains, state = len(experiment.train_envs), experiment.algorithm.state_dict()
        # A file holds weights that several modules share once.
        size_of = {v.data_ptr(): v.nbytes for v in state.values() if isinstance(v, torch.Tensor)}
        return Timing(
            update=seconds / (updates * spec.hparams["batch_size"] * train_domains),
            evaluation=(time.monotonic() - began) / len(part.indices),
            train_domains=train_domains,
            images=sum(len(split.indices) for split in splits),
            device=experiment.device.type,
            threads=threads,
            model_bytes=sum(size_of.values()),
        )


def _updates(experiment: Experiment) -> tuple[int, float]:
    """How many updates were timed, and their seconds; the first, which sets up, is not timed."""
    steps, began = range(UPDATES + 1), time.monotonic()
    pairs = zip(experiment.minibatches(steps), experiment.unlabeled(steps))
    for done, (minibatches, unlabeled) in enumerate(pairs):
        with experiment.precision():
            metrics = experiment.algorithm.update(minibatches, unlabeled)
        list(map(float, metrics.values()))  # waits for a GPU
        if done == 0:
            began = time.monotonic()
        elif time.monotonic() - began > SECONDS:
            break
    return done, time.monotonic() - began
