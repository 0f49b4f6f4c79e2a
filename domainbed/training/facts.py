"""What a run notes of itself: what defines it, beside each record, and where it was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from domainbed.config.run_fields import RunOptions
from domainbed.core.files import write_text
from domainbed.runs.folder import RunFolder
from domainbed.training.checkpoint import Progress
from domainbed.training.experiment import Experiment
from domainbed.training.machine import describe, package_version
from domainbed.training.ranks import count


def args_of(
    experiment: Experiment, folder: RunFolder, options: RunOptions, stages: int
) -> dict[str, Any]:
    """What defines the run, and where it ran, under DomainBed's names and some more."""
    values = experiment.spec.as_json()
    fixed = values.pop("fixed_hparams")
    return {
        **values,
        "hparams": json.dumps(fixed) if fixed else None,
        "run_id": experiment.spec.run_id,
        "torch": package_version("torch"),
        "environments": experiment.domain_names,
        **_test_domains(experiment),
        "data_dir": options.data_dir,
        "output_dir": str(folder.path),
        "skip_model_save": options.weights == "none",
        "save_model_every_checkpoint": options.weights == "all",
        **({"stages": stages} if stages > 1 else {}),
    }


def _test_domains(experiment: Experiment) -> dict[str, list[int]]:
    """What the dataset is evaluated on, for the tables, where that is not each domain."""
    declared = experiment.dataset.test_domains
    return {} if declared is None else {"test_domains": list(declared)}


def write_environment(
    folder: RunFolder, experiment: Experiment, began: Mapping[str, Any], progress: Progress
) -> None:
    """The environment that the run began in stays; that of a later session stands beside."""
    now = {**describe(experiment.device), "processes": count()}
    first = {name: began.get(name, value) for name, value in now.items()}
    resumed = [*began.get("resumed", [])]
    if progress.has_begun and began and now != first and now not in resumed:
        resumed.append(now)
    facts = {
        **first,
        "protocol": experiment.spec.protocol,
        "protocol_version": experiment.spec.protocol_version,
        "resumed": resumed,
        "seconds": progress.seconds,
    }
    write_text(folder.environment, json.dumps(facts, indent=2) + "\n")
