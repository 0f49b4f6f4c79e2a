"""Domain generalization: reproduce tables, launch sweeps, compare algorithms."""

from importlib import import_module
from typing import Any

from domainbed.core.version import __version__

_PLACES = {
    "train": "domainbed.cli.functions",
    "sweep": "domainbed.cli.functions",
    "collect": "domainbed.reporting",
    "compare": "domainbed.reporting",
    "report": "domainbed.cli.functions",
    "plot": "domainbed.cli.functions",
    "load_model": "domainbed.training.trained",
    "load_selected": "domainbed.sweeps.selected",
}

__all__ = ["__version__", *_PLACES]  # names, as it asks for


def __getattr__(name: str) -> Any:
    """What is imported when it is asked for: some of it takes PyTorch along."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
