"""Training: `build` makes an experiment of a spec, `run` trains it in a folder."""

from domainbed.config.run_fields import RunOptions
from domainbed.training.experiment import Experiment, build
from domainbed.training.trained import Model, load_model, predictions
from domainbed.training.trainer import run

__all__ = ["Experiment", "Model", "RunOptions", "build", "load_model", "predictions", "run"]
