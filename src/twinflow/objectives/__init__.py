"""Training objectives: each turns a :data:`Field`, data and conditions into a loss, in pure torch.

>>> objective = TwinFlow(guidance=0.5, teacher="self")
>>> step = objective.step(field, x, cond, uncond=uncond)        # doctest: +SKIP
>>> step.loss.backward()                                        # doctest: +SKIP
"""

from twinflow.objectives.flow_matching import FlowMatching
from twinflow.objectives.objective import Field, Objective, RowLog, Step
from twinflow.objectives.rcgm import RCGM
from twinflow.objectives.roles import ROLE_NAMES, Roles
from twinflow.objectives.times import TimeDistribution
from twinflow.objectives.twinflow import TwinFlow

__all__ = [
    "RCGM",
    "ROLE_NAMES",
    "Field",
    "FlowMatching",
    "Objective",
    "Roles",
    "RowLog",
    "Step",
    "TimeDistribution",
    "TwinFlow",
]
