"""A sweep's records beside those of released baselines: runs that were made alike."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from domainbed.config.baselines import PREFIX, baseline_of
from domainbed.config.run_fields import RunFields
from domainbed.errors import UserError
from domainbed.runs.load import load_records
from domainbed.runs.records import Records

_MAY_DIFFER = {"metrics", "eval_splits"}  # which change no number that both have
_USUAL = {
    **{n: f.default for n, f in RunFields.model_fields.items() if n not in _MAY_DIFFER},
    **{"protocol_version": None, "tuned": "", "digests": {}},
}
"""What runs have to have in common, and what stands for a field that a record does not name."""


def beside_released(records: Records, name: str = "") -> tuple[Records, list[str]]:
    """The records with those of released algorithms on the same data, as one sweep.

    An algorithm is left out if its runs were not made like the first of `records` on its dataset,
    or lack one of the draws and trials that are compared: those that `records` have and any
    released algorithm has too. An algorithm of `records` with a released one's name is "(yours)".

    Args:
        records: as from `load_records`.
        name: of the baseline; "" for that of each dataset, its features, draws and trials.

    Returns:
        Both, and what is left out, in words.

    Raises:
        UserError: there is no such baseline, or none of its runs was made like those of `records`.
    """
    ours = records.runs
    budgets = ours.groupby(["dataset", "features"])[["hparams_seed", "trial_seed"]].nunique()
    wanted = (baseline_of(*of, *budget) for of, *budget in budgets.itertuples())
    names = [name] if name else dict.fromkeys(wanted)
    released = load_records([PREFIX + each for each in names])
    released = released.only(released.runs["dataset"].isin(ours["dataset"]))
    known = set(released.runs["algorithm"])
    own = [f"{each} (yours)" if each in known else each for each in ours["algorithm"]]
    runs = pd.concat([ours.assign(algorithm=own), released.runs], ignore_index=True)
    values = pd.concat(
        [records.values, released.values.assign(run=released.values["run"] + len(ours))],
        ignore_index=True,
    )
    kept, notes = np.zeros(len(runs), dtype=bool), []
    left: dict[tuple[str, str], list[str]] = {}  # algorithms by dataset and reason
    for dataset, of_dataset in runs.groupby("dataset", sort=False):
        cells = of_dataset[["test_envs", "hparams_seed", "trial_seed"]].apply(tuple, axis=1)
        offered = set(cells[of_dataset["algorithm"].isin(known)])
        first = of_dataset.iloc[0]
        common = offered & set(cells[of_dataset["algorithm"] == first["algorithm"]])
        for algorithm, of_algorithm in of_dataset.groupby("algorithm", sort=False):
            found = cells[of_algorithm.index]
            lacks = len(common - set(found))
            reasons = [
                *_differences(first, of_algorithm.iloc[0]),
                *([f"{lacks} of {len(common)} runs lack a counterpart"] if lacks else []),
            ]
            if reasons:
                left.setdefault((dataset, "; ".join(reasons)), []).append(algorithm)
            else:
                kept[found.index[found.isin(common)]] = True
        if more := len(cells) - len(cells[cells.isin(common)]):
            notes.append(
                f"left out: {more} runs on {dataset} whose test domains, draw or trial the other "
                "lacks"
            )
    notes += [
        f"left out: {', '.join(sorted(algorithms))} on {dataset} ({why})"
        for (dataset, why), algorithms in left.items()
    ]
    if not kept[len(ours) :].any():
        raise UserError(f"no run of {', '.join(names)} was made like yours: {'; '.join(notes)}")
    return replace(records, runs=runs, values=values).only(kept), notes


def _differences(one: Any, other: Any) -> list[str]:
    """How two runs were not made alike; of fixed hyper-parameters, those that both have."""
    both = one, other
    fixed = [json.loads(run["args"].get("hparams") or "{}") for run in both]
    shared = sorted(one["hparams"].keys() & other["hparams"].keys() & {*fixed[0], *fixed[1]})
    values = {name: [run["args"].get(name, v) for run in both] for name, v in _USUAL.items()}
    values |= {name: [each.get(name, "drawn") for each in fixed] for name in shared}
    values["data"] = [(run["data"] or {}).get("digest", "not recorded")[:6] for run in both]
    return [
        f"{name} is {theirs}, and {ours} in the first of yours"
        for name, (ours, theirs) in values.items()
        if ours != theirs
    ]
