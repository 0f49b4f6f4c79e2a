"""From a paper's table to the sweep that reproduces it, at full or at a smaller scale."""

from collections.abc import Mapping, Sequence
from typing import Any

from domainbed.algorithms import ALGORITHMS
from domainbed.core.names import order_algorithms, trained_algorithm
from domainbed.errors import UserError
from domainbed.reporting.published import Source, find_values, get_source, steps_of
from domainbed.selection import SELECTION_METHODS
from domainbed.sweeps.config import SweepConfig, load_config

FULL = "paper"

# By name, the settings in which a sweep differs from the paper; small takes minutes on MNIST.
# Below full scale a sweep has the paper's foremost algorithms only.
SCALES: dict[str, dict[str, Any]] = {
    FULL: {},
    "small": {
        "trials": 1,
        "hparams_seeds": 1,
        # Not 101: the training domains' in-splits, half of all images, are evaluated at the last
        # step, and step 100 is not that.
        "steps": 102,
        "checkpoint_freq": 100,
        "eval_splits": "needed",
        "precision": "bf16",
        # Penalties would otherwise begin after the end.
        "hparams": {
            "IRM": {"irm_penalty_anneal_iters": 50},
            "VREx": {"vrex_penalty_anneal_iters": 50},
            "Fishr": {"penalty_anneal_iters": 50},
        },
    },
}


def reproduction(
    paper: str,
    dataset: str,
    scale: str = FULL,
    algorithms: Sequence[str] | None = None,
    selection: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    **launcher_options: Any,
) -> SweepConfig:
    """The sweep that reproduces a paper's numbers of a dataset.

    Args:
        paper: a name in `published.SOURCES`.
        dataset: one that it has numbers of.
        scale: a name in `SCALES`.
        algorithms: only these; None for all of the paper that there are here, or at a smaller
            scale its foremost ones.
        selection: only these methods; None for all of the paper.
        overrides: other fields of a sweep, such as `data_dir`.
        launcher_options: see `load_config`.

    Raises:
        UserError: a name is unknown, or the paper has no number of it.
    """
    source, values = get_source(paper), find_values([paper], selection, [dataset], algorithms)
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}: expected one of {', '.join(SCALES)}")
    trained = values["algorithm"].map(trained_algorithm)
    usual = ALGORITHMS if scale == FULL else list(map(trained_algorithm, source.foremost))
    known = order_algorithms(n for n in trained if algorithms or n in usual)
    methods = set(values.loc[trained.isin(known), "selection"])
    return load_config(
        None,
        {
            "datasets": [dataset],
            "algorithms": known,
            "selection": [name for name in SELECTION_METHODS if name in methods],
            "protocol": source.protocol,
            "trials": source.trials,
            "hparams_seeds": source.draws,
            "steps": steps_of(source, dataset),
            "output_dir": f"results/{paper}/{dataset}" + ("" if scale == FULL else f"_{scale}"),
            "skip_model_save": True,
            "checkpoint_freq": source.intervals.get(dataset),
            **source.fields,
            **SCALES[scale],
            "hparams": {
                n: {**source.fixed(n, dataset), **SCALES[scale].get("hparams", {}).get(n, {})}
                for n in known
            },
            **(overrides or {}),
        },
        **launcher_options,
    )


def left_out(config: SweepConfig, source: Source) -> list[str]:
    """What a sweep leaves out of the paper, or does differently, in lines; none if it does all."""
    counts = {
        "trials": (len(config.trials), source.trials),
        "draws of the hyper-parameters": (len(config.hparams_seeds), source.draws),
        "updates of each run": (config.steps or source.steps, source.steps),
    }
    less = [f"{of - ours} of {of} {what}" for what, (ours, of) in counts.items() if ours < of]
    less += [
        name
        for name in find_values([source.name], datasets=config.datasets)["algorithm"].unique()
        if trained_algorithm(name) not in config.algorithms
    ]
    other = [] if config.precision == "float32" else [f"{config.precision} in place of float32"]
    other += [
        f"{name} of {algorithm} is {value}"
        for algorithm, own in config.hparams.items()
        for name, value in own.items()
        if (name, value) not in source.fixed(algorithm, config.datasets[0]).items()
    ]
    return [
        f"{what}: {', '.join(found)}"
        for what, found in (("left out", less), ("done differently", other))
        if found
    ]
