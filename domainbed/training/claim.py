"""Whose folder it is: a run writes down what defines it, and takes up no other run's folder."""

from __future__ import annotations

import json
from typing import Any

from domainbed.core.files import write_text
from domainbed.errors import UserError
from domainbed.runs.folder import RunFolder
from domainbed.spec import RunSpec
from domainbed.training import checkpoint
from domainbed.training.machine import package_version


def claim(folder: RunFolder, spec: RunSpec) -> dict[str, Any] | None:
    """Writes down whose folder it is, or makes sure that it is this run's.

    Returns:
        The environment that the run began in; empty for a run that begins now, None if it is done.

    Raises:
        UserError: the folder holds another run, or one begun under another PyTorch.
    """
    identity = json.loads(json.dumps(spec.identity()))
    owner = folder.read_json(folder.spec)
    if not folder.has_results():  # nothing to lose: a run that failed at its start, say
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
        checkpoint.remove(folder)  # a kill may have come between the mark and this
        return None
    began = folder.read_json(folder.environment) or {}
    _refuse_other_torch(folder, began)
    return began


def _first_difference(owner: dict[str, Any], identity: dict[str, Any]) -> str:
    theirs = owner.get("identity")
    theirs = theirs if isinstance(theirs, dict) else {}
    names = [n for n in {**identity, **theirs} if theirs.get(n) != identity.get(n)]
    return f"{names[0]} is {theirs.get(names[0])!r} there and {identity.get(names[0])!r} here"


def _refuse_other_torch(folder: RunFolder, began: dict[str, Any]) -> None:
    """Numbers of two major versions of PyTorch are not to be mixed within one run."""
    then, now = began.get("torch") or _recorded_torch(folder), package_version("torch")
    if then and now and str(then).split(".")[0] != now.split(".")[0]:
        raise UserError(
            f"the run in {folder.path} was begun under PyTorch {then}, and this is {now}: go on "
            "with that version, or begin again in another folder"
        )


def _recorded_torch(folder: RunFolder) -> str:
    """The version that the first record names, where environment.json is gone; "" if none does."""
    try:
        with folder.results.open("rb") as stream:
            return str(json.loads(stream.readline())["args"].get("torch", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
