"""Named protocols: the values of all that a run's spec leaves open, one small file each.

A run's identity holds its protocol's name and version, so a change of a file that gives other
numbers raises that file's `version`, so that old and new runs differ. `docs/protocol.md`
shows the differences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from domainbed.errors import UserError, did_you_mean

DEFAULT_PROTOCOL = "default"
# The protocol of a run whose field `features` is set, where no other is named.
FROZEN_FEATURES = "frozen-features"

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Protocol:
    """One way to run the benchmark.

    Attributes:
        name: as specs name it.
        version: raised whenever a change makes the same spec give other numbers.
        title: in a few words.
        source: where it is written down.
        fields: values of a run's fields that are not set.
        options: values of options of networks, datasets and algorithms that are not set; options
            that a run's parts do not declare are left out.
        defaults: by algorithm, values of hyper-parameters at hparams seed 0, where they are not
            those of the search space; draws stay what they are.
        ranges: by algorithm, low and high of hyper-parameters that are drawn from another range
            than the search space's; defaults stay what they are.
        steps: updates by dataset, where they are not the dataset's own.
        checkpoint_freq: updates between records by dataset, likewise.
    """

    name: str
    version: int
    title: str
    source: str
    fields: Mapping[str, Any]
    options: Mapping[str, Any]
    defaults: Mapping[str, Mapping[str, Any]]
    ranges: Mapping[str, Mapping[str, tuple[float, float]]]
    steps: Mapping[str, int]
    checkpoint_freq: Mapping[str, int]


def protocol_names() -> list[str]:
    """All protocols, the default first."""
    return sorted(
        (file.stem for file in _FOLDER.glob("*.yaml")),
        key=lambda name: (name != DEFAULT_PROTOCOL, name),
    )


@cache
def get_protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in protocol_names():
        raise UserError(
            f"unknown protocol {name!r}.{did_you_mean(name, protocol_names())} Known: "
            + ", ".join(protocol_names()),
            "protocol",
        )
    return Protocol(**yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def of_frozen_features() -> list[str]:
    """The protocols under which networks are trained on features, and not on images."""
    return [name for name in protocol_names() if get_protocol(name).fields.get("features")]


def differences(one: Protocol, other: Protocol) -> list[tuple[str, Any, Any]]:
    """Where two protocols differ: names, and the value in each (None if it has none)."""
    rows = []
    for part in ("fields", "options", "defaults", "ranges", "steps", "checkpoint_freq"):
        ours, theirs = (_flat(getattr(protocol, part)) for protocol in (one, other))
        what = "range of " if part == "ranges" else ""
        rows += [
            (what + name, ours.get(name), theirs.get(name))
            for name in dict.fromkeys([*ours, *theirs])
            if ours.get(name) != theirs.get(name)
        ]
    return rows


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, those of nested mappings as "outer.inner"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        found |= {f"{name}.{k}": v for k, v in value.items()} if nested else {name: value}
    return found
