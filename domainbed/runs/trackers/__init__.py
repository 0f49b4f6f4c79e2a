"""Where records are also sent to: TensorBoard, Weights & Biases, MLflow, or what is registered.

A tracker is a class with three methods, see `Tracker`; what it needs is imported when it is named.
"""

from domainbed.runs.trackers.base import TRACKERS, TrackedRun, Tracker
from domainbed.runs.trackers.mlflow import MLflow
from domainbed.runs.trackers.sending import Trackers
from domainbed.runs.trackers.tensorboard import TensorBoard
from domainbed.runs.trackers.wandb import WeightsAndBiases

__all__ = [
    "TRACKERS",
    "MLflow",
    "TensorBoard",
    "TrackedRun",
    "Tracker",
    "Trackers",
    "WeightsAndBiases",
]
