"""Released baselines: what is known of each, and where its records are.

A summary of each is in this folder, one JSON file made by `results/baselines/summarize.py`. Its
records are in `results/baselines` of a checkout, or where DOMAINBED_BASELINES says: a folder, or a
URL, with what that folder has.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlretrieve

from domainbed.core.files import CHANGED, cache_folder, file_digest, written_aside
from domainbed.errors import UserError, did_you_mean

# What the name of a baseline begins with where a folder of records may be given.
PREFIX = "baseline:"

_FOLDER = Path(__file__).parent
_CHECKOUT = Path(__file__).parents[3] / "results" / "baselines"


@cache
def summaries() -> dict[str, dict[str, Any]]:
    """The summary of each baseline, by its name.

    `datasets`; `features` in words, "" for images; `algorithms`; `about`, what the list of them
    shows; `command`, what made it; `files` with their SHA-256; and `tuned`: by dataset, algorithm
    and test domain, the hyper-parameters that training-domain selection chose.
    """
    files = sorted(_FOLDER.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def baseline_of(
    dataset: str, features: str, draws: int = 1, trials: int = 1, tuned: str = ""
) -> str:
    """The baseline that has a dataset, with features described so.

    Args:
        draws: of these, and of the trials, it has most; then it has most algorithms.
        trials: how many are wanted.
        tuned: the algorithm whose choice among the draws is wanted, if any; one that has it is
            preferred.

    Raises:
        UserError: there is none.
    """
    found = [
        (
            bool(tuned) and tuned in summary["tuned"].get(dataset, {}),
            min(draws, summary["about"]["draws"]) * min(trials, summary["about"]["trials"]),
            len(summary["algorithms"]),
            name,
        )
        for name, summary in summaries().items()
        if dataset in summary["tuned" if tuned else "datasets"] and features == summary["features"]
    ]
    if not found:
        raise UserError(
            f"no released baseline has {'tuned ' if tuned else ''}{dataset} with "
            f"{features or 'images'}: `domainbed baselines` lists what there is"
        )
    return max(found)[-1]


def tuned_hparams(name: str, dataset: str, algorithm: str, envs: Sequence[int]) -> dict[str, Any]:
    """The hyper-parameters that training-domain selection chose in a baseline.

    Raises:
        UserError: it has none for this dataset, algorithm and test domain.
    """
    chosen = summaries()[name]["tuned"].get(dataset, {})
    domains = "+".join(map(str, envs))
    if domains not in chosen.get(algorithm, {}):
        known = [each for each, of_domains in chosen.items() if domains in of_domains]
        raise UserError(
            f"the baseline {name} tuned no {algorithm} for test domain {domains} of {dataset}."
            f"{did_you_mean(algorithm, known)} Tuned: {', '.join(known) or 'none'}",
            "hparams",
        )
    return dict(chosen[algorithm][domains])


def baseline_files(name: str) -> list[Path]:
    """The exported sweeps of a baseline, fetched if need be.

    Raises:
        UserError: there is no such baseline, or its files cannot be found or fetched, or are not
            those of the summary.
    """
    if name not in summaries():
        raise UserError(
            f"unknown baseline {name!r}.{did_you_mean(name, summaries())} Known: "
            f"{', '.join(summaries()) or 'none in this version'}"
        )
    place = os.environ.get("DOMAINBED_BASELINES") or str(_CHECKOUT)
    return [
        _file(place, f"{name}/{file}", digest)
        for file, digest in summaries()[name]["files"].items()
    ]


def _file(place: str, name: str, digest: str) -> Path:
    file = Path(place, name)
    try:
        if "://" in place:
            file = cache_folder("results") / "baselines" / digest[:32] / file.name
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                with written_aside(file) as aside:
                    urlretrieve(f"{place.rstrip('/')}/{name}", aside)
        found = file_digest(file)
    except (OSError, ValueError) as error:  # of the network, the disk, or no URL
        raise UserError(
            f"{name} cannot be read from {place} ({error}): set DOMAINBED_BASELINES to a folder "
            "or a URL that has it, such as results/baselines of a checkout"
        ) from error
    if found != digest:
        raise UserError(f"{file} is not what was released ({CHANGED}): remove it, and get it again")
    return file
