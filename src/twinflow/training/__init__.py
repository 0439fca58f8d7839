"""Training: the trainer, its checkpoints, averages and logs."""

from twinflow.training.ema import ParameterAverage
from twinflow.training.protocols import Dataset, Drawable, Trainable
from twinflow.training.trainer import RunResult, Trainer

__all__ = ["Dataset", "Drawable", "ParameterAverage", "RunResult", "Trainable", "Trainer"]
