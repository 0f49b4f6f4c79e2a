"""What the experiment depends on, from a YAML file and from flags, field by field."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed.errors import UserError
from domainbed.sweeps import checks
from domainbed.sweeps.checks import Wrong
from domainbed.yaml_file import read_yaml

_MOST_COVARIANCES = 4096  # parameters; `gradients.MOST_COVARIANCE_PARAMETERS`, without its import


def _algorithm(value: Any) -> str:
    from domainbed.irm_colored_mnist.penalties import PENALTIES

    PENALTIES[checks.text(value)]
    return str(value)


def _not_negative(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e30:
        raise checks.expected("a number from 0 on", value)
    return float(value)


def _option(default: Any, check: checks.Check, help: str) -> Any:
    """A field: its default, what it may hold, and the help of its flag, in one place."""
    return field(default=default, metadata={"check": check, "help": help})


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a restart. The defaults are the published values."""

    label_flip: float = _option(
        0.25, checks.fraction, "how often labels are wrong (0.25; 0 for the paper's table 5)"
    )
    steps: int = _option(501, checks.whole(1), "updates (501)")
    hidden_dim: int = _option(390, checks.whole(1), "width of the hidden layers (390)")
    lr: float = _option(0.0004898536566546834, _not_negative, "Adam's learning rate (0.00048985)")
    l2_weight: float = _option(
        0.00110794568, _not_negative, "of the squared norm of all parameters (0.0011079)"
    )
    penalty_weight: float = _option(
        91257.18613115903, _not_negative, "from anneal_step on; before it is 1 (91257.19)"
    )
    anneal_step: int = _option(190, checks.whole(0), "first step with that weight (190)")

    def identity(self) -> dict[str, Any]:
        """All settings by name, as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)}

    def digest(self) -> str:
        """The name of the folder of these settings' results."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.md5(text.encode("utf-8")).hexdigest()[:12]


@dataclass(frozen=True)
class Config(Settings):
    """The settings, and which restarts of which algorithms to compute, where and how."""

    algorithms: tuple[str, ...] = _option(
        ("ERM", "IRM", "VREx", "Fishr"),
        checks.listed(_algorithm),
        "ERM, IRM, VREx, Fishr, Fishr-offdiagonal, Fishr-uncentred (the first four)",
    )
    restarts: tuple[int, ...] = _option(
        tuple(range(10)), checks.seeds, "how many restarts, or a list of their numbers (10)"
    )
    output_dir: str = _option(
        "results/irm_colored_mnist", checks.text, "the results' folder (results/irm_colored_mnist)"
    )
    data_dir: str = _option("data", checks.text, "holds MNIST (data)")
    device: str | None = _option(None, checks.text, "cpu, cuda or mps (the best there is)")
    jobs: int | None = _option(
        None, checks.whole(1), "restarts computed at a time (one per GPU or core)"
    )

    @property
    def settings(self) -> Settings:
        """The part that decides the numbers."""
        return Settings(**self.identity())


FIELDS = {f.name: f for f in dataclasses.fields(Config)}


def load_config(file: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """A checked config.

    Args:
        file: the path of a YAML file; None leaves what `overrides` lacks to the defaults.
        overrides: raw values by field; what the flags said. They win over the file.

    Raises:
        UserError: one line that names the field, and the file and line or the flag.
    """
    overrides = overrides or {}
    values, lines = read_yaml(file) if file is not None else (None, {})
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{file}, line 1: expected fields with values, found {values!r}")
    checked = {}
    for name, value in {**(values or {}), **overrides}.items():
        place = f"--{name}" if name in overrides else f"{file}, line {lines[(str(name),)]}"
        try:
            checked[name] = _known(name).metadata["check"](value)
        except (Wrong, UserError) as error:
            field_name = "" if name in overrides else f", field {name!r}"
            raise UserError(f"{place}{field_name}: {error}") from error
    config = Config(**checked)
    if "Fishr-offdiagonal" in config.algorithms and config.hidden_dim >= _MOST_COVARIANCES:
        raise UserError(
            f"hidden_dim is {config.hidden_dim}: Fishr-offdiagonal needs less than "
            f"{_MOST_COVARIANCES}, for its full covariances"
        )
    return config


def _known(name: Any) -> dataclasses.Field[Any]:
    if name in FIELDS:
        return FIELDS[name]
    nearest = difflib.get_close_matches(str(name), FIELDS, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise UserError(f"unknown field.{hint} Known: {', '.join(FIELDS)}")
