"""Training: `run` trains one spec in one folder."""

from domainbed.training.trainer import RunOptions, run

__all__ = ["RunOptions", "run"]
