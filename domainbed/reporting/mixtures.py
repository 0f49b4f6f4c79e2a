"""What differs between runs that stand in one table or one mean, in words."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pandas as pd

from domainbed.config.run_fields import RunFields
from domainbed.core.names import average_in, order_datasets
from domainbed.core.text_table import printable
from domainbed.runs.records import NOT_RECORDED

_SAID_OF_TABLES = ("protocol", "features", "precision")
_FIELDS = {
    name: field.default
    for name, field in RunFields.model_fields.items()
    if name not in _SAID_OF_TABLES
} | {"digests": {}, "tuned": ""}


def mixtures(runs: pd.DataFrame) -> list[str]:
    """What differs between a dataset's runs: "the tables of PACS mix precisions: …"."""
    conditions = runs.assign(
        protocols=protocols(runs), versions=runs["torch"].str.partition(".")[0]
    ).rename(columns={"versions": "major versions of PyTorch", "precision": "precisions"})
    lines = []
    for dataset in order_datasets(runs["dataset"]):
        of_dataset = conditions[conditions["dataset"] == dataset]
        for what in ("protocols", "major versions of PyTorch", "precisions"):
            lines += _line(dataset, what, Counter(of_dataset[what]))
    return lines


def within_means(runs: pd.DataFrame) -> list[str]:
    """What differs between runs of one algorithm, which stand in one mean, beside `mixtures`.

    Every field, the fixed hyper-parameters, and the defaults of the others. Drawn hyper-parameters
    and seeds are meant to differ: trials that share a seed are named.
    """
    lines = []
    for dataset in order_datasets(runs["dataset"]):
        of_dataset = runs[runs["dataset"] == dataset]
        lines += [*_of_means(dataset, of_dataset), *_of_seeds(dataset, of_dataset)]
    return lines


def _line(
    dataset: str, what: str, counts: Counter[str], algorithms: Iterable[str] = ()
) -> list[str]:
    if len(counts) < 2:
        return []
    said = [f"{value} in {n} run{'s' * (n > 1)}" for value, n in counts.most_common()]
    of = f" ({', '.join(algorithms)})" if algorithms else ""
    return [printable(f"the tables of {dataset} mix {what}: {', '.join(said)}{of}")]


def _of_means(dataset: str, runs: pd.DataFrame) -> list[str]:
    """Fields in which runs of one algorithm differ, each with the algorithms whose runs do."""
    counts: dict[str, Counter[bytes]] = defaultdict(Counter)  # by algorithm, of runs alike
    for name, args, hparams in zip(runs["algorithm"], runs["args"], runs["hparams"]):
        if not average_in(name):  # measured beside the last weights, of the same runs
            counts[name][_settings(args, hparams)] += 1
    values: dict[str, Counter[str]] = defaultdict(Counter)
    algorithms: dict[str, list[str]] = defaultdict(list)
    for name, of_algorithm in counts.items():
        if len(of_algorithm) == 1:
            continue
        alike = [(_named(orjson.loads(text)), n) for text, n in of_algorithm.items()]
        for field in dict.fromkeys(field for settings, _ in alike for field in settings):
            found = Counter[str]()
            for settings, n in alike:
                if field in settings:
                    found[json.dumps(settings[field], ensure_ascii=False)] += n
                elif not field.startswith("default of "):
                    found["not set"] += n
            if len(found) > 1:
                values[field] += found
                algorithms[field].append(name)
    return [
        line for field in values for line in _line(dataset, field, values[field], algorithms[field])
    ]


def _settings(args: Mapping[str, Any], hparams: Any) -> bytes:
    """What runs of one mean should have in common; quick, since there may be 100,000 runs."""
    # Records of DomainBed do not say what they leave to its code; tuned are those of each domain.
    is_default = args.get("hparams_seed") == 0 and "protocol" in args and not args.get("tuned")
    defaults = hparams if is_default else None
    values = [args.get(name, usual) for name, usual in _FIELDS.items()]
    return orjson.dumps(
        [values, args.get("hparams"), defaults], option=orjson.OPT_SORT_KEYS, default=str
    )


def _named(settings: list[Any]) -> dict[str, Any]:
    values, fixed, defaults = settings
    try:
        of_user = dict(json.loads(fixed or "{}"))
    except (ValueError, TypeError):
        of_user = {"given": fixed}
    others = {k: v for k, v in (defaults or {}).items() if k not in of_user}
    return {
        **dict(zip(_FIELDS, values)),
        **{f"the hyper-parameter {name}": value for name, value in of_user.items()},
        **{f"default of {name}": value for name, value in others.items()},
    }


def _of_seeds(dataset: str, runs: pd.DataFrame) -> list[str]:
    """Trials whose runs have the same seed: only their splits are independent."""
    trials: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    keys = ("algorithm", "test_envs", "hparams_seed", "trial_seed")
    for name, envs, draw, trial, args in zip(*(runs[key] for key in keys), runs["args"]):
        if args.get("seed") is not None and not average_in(name):
            trials[name, envs, draw, args["seed"]].add(trial)
    shared = {key: found for key, found in trials.items() if len(found) > 1}
    if not shared:
        return []
    (name, _, _, seed), found = next(iter(shared.items()))
    return [
        printable(
            f"the tables of {dataset} have trials that share a seed, such as trials "
            f"{', '.join(map(str, sorted(found)))} of {name} (seed {seed}): they differ by their "
            "splits alone"
        )
    ]


def protocols(runs: pd.DataFrame) -> list[str]:
    """The protocol of each run, as in "default (version 1)", and what it was trained on."""
    names = []
    columns = runs[["protocol", "protocol_version", "features"]].to_numpy().tolist()
    for name, version, features in columns:
        known = f"{name} (version {version})" + (f", {features}" if features else "")
        names.append(name if version == NOT_RECORDED else known)
    return names
