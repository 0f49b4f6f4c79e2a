"""Domain generalization: reproduce tables, launch sweeps, compare algorithms."""

from typing import Any

from domainbed.core.version import __version__

__all__ = ["__version__", "load_model", "load_selected"]


def __getattr__(name: str) -> Any:
    """What loads models, imported when it is asked for: it takes PyTorch along."""
    if name == "load_model":
        from domainbed.training.trained import load_model

        return load_model
    if name == "load_selected":
        from domainbed.sweeps.selected import load_selected

        return load_selected
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
