"""Records that are written beside the runs of a sweep, of what was made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from domainbed.core.files import as_json_values, write_text
from domainbed.runs.folder import RunFolder
from domainbed.runs.record_keys import record_key
from domainbed.training.experiment import Experiment

_OF_ONE_RUN = ("seed", "hparams", "fixed_hparams", "digests", "averages")


def write_beside(
    root: Path,
    name: str,
    experiment: Experiment,
    *,
    runs: Sequence[str],
    kind: str = "average",
    hparams_seed: int | None = None,
    hparams: Mapping[str, Any] = MappingProxyType({}),
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
    """
    spec = experiment.spec
    own = [] if hparams_seed is None else [hparams_seed]
    key = [name, spec.dataset_label, list(spec.test_envs), spec.trial_seed, *own]
    digest = hashlib.md5(json.dumps(key).encode()).hexdigest()
    folder = RunFolder(root / f"{kind}-{digest}")
    fields = {k: v for k, v in spec.as_json().items() if k not in _OF_ONE_RUN}
    args = {
        **fields,
        "algorithm": name,
        "hparams_seed": hparams_seed or 0,
        "environments": experiment.domain_names,
        "torch": str(torch.__version__),
        "output_dir": str(folder.path),
        "runs": list(runs),
    }
    declared = experiment.dataset.test_domains
    args |= {} if declared is None else {"test_domains": list(declared)}
    values = experiment.evaluate(spec.steps - 1, experiment.all_splits())
    measured = {record_key(v.domain, v.split, v.metric): v.value for v in values}
    record = {"step": spec.steps - 1, **measured, "hparams": dict(hparams), "args": args}
    line = json.dumps(as_json_values(record), sort_keys=True, allow_nan=False) + "\n"
    with folder.exclusive():
        write_text(folder.results, line)
        write_text(folder.done, "done")
