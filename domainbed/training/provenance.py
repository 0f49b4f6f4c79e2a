"""What a run writes about itself: what defines it, and where it was trained.

`run.json` says whose folder it is, `environment.json` has versions and machine, and each record
repeats what defines the run.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from domainbed.config.run_fields import RunOptions
from domainbed.core.files import write_text
from domainbed.core.version import __version__
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import checkpoint
from domainbed.training.experiment import Experiment
from domainbed.training.ranks import count

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn")


def claim(folder: RunFolder, spec: RunSpec) -> dict[str, Any] | None:
    """Writes down that the folder is this run's, or makes sure that it is.

    Returns:
        The environment that the run started in; empty for a new run, None for one that is done.

    Raises:
        UserError: the folder holds another run, or one started with another PyTorch.
    """
    identity = json.loads(json.dumps(spec.identity()))
    owner = folder.read_json(folder.spec)
    if not folder.has_results():  # nothing to lose: it failed at its start, say
        content = {**spec.as_json(), "run_id": spec.run_id, "identity": identity}
        write_text(folder.spec, json.dumps(content, indent=2, sort_keys=True) + "\n")
        return {}
    if owner is None:
        raise UserError(
            f"{folder.path} holds results, but no run.json says of which run: choose another "
            "--output_dir"
        )
    if owner.get("identity") != identity:
        raise UserError(f"{folder.path} holds another run ({_first_difference(owner, identity)}): "
                        "choose another --output_dir")  # fmt: skip
    if folder.is_done():
        checkpoint.remove(folder)  # the run may have been killed before it did
        return None
    began = folder.read_json(folder.environment) or {}
    then, now = began.get("torch"), _versions()["torch"]
    # Numbers of two major versions are not mixed within one run.
    if then and str(then).split(".")[0] != now.split(".")[0]:
        raise UserError(
            f"the run in {folder.path} was started with PyTorch {then}, and this is {now}: resume "
            "it with that version, or start it again in another folder"
        )
    return began


def _first_difference(owner: dict[str, Any], identity: dict[str, Any]) -> str:
    theirs = owner.get("identity")
    theirs = theirs if isinstance(theirs, dict) else {}
    names = [n for n in {**identity, **theirs} if theirs.get(n) != identity.get(n)]
    return f"{names[0]} is {theirs.get(names[0])!r} there and {identity.get(names[0])!r} here"


def args_of(experiment: Experiment, folder: RunFolder, options: RunOptions) -> dict[str, Any]:
    """What defines the run, and where it ran, under DomainBed's names and some more."""
    values = experiment.spec.as_json()
    fixed = values.pop("fixed_hparams")
    args = {
        **values,
        "hparams": json.dumps(fixed) if fixed else None,
        "run_id": experiment.spec.run_id,
        "torch": _versions()["torch"],
        "environments": experiment.domain_names,
        "data_dir": options.data_dir,
        "output_dir": str(folder.path),
        "skip_model_save": options.weights == "none",
        "save_model_every_checkpoint": options.weights == "all",
    }
    declared = experiment.dataset.test_domains
    if declared is not None:  # for the tables, where not every domain is one to test on
        args["test_domains"] = list(declared)
    if (stages := experiment.stages) > 1:
        args["stages"] = stages
    return args


def write_environment(
    folder: RunFolder,
    experiment: Experiment,
    began: Mapping[str, Any],
    progress: checkpoint.Progress,
) -> None:
    """Keeps the environment that the run started in, and adds that of a later session."""
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


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and commit, as JSON values: what a reader of numbers may ask."""
    return {
        "domainbed": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        **_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


@cache
def _versions() -> dict[str, str]:
    """Of the packages that numbers depend on."""
    return {package: version(package) for package in _PACKAGES}


@cache
def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from, if it is one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
