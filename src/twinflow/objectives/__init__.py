"""Training objectives: each turns a :data:`Field`, data and conditions into a loss, in pure torch.

>>> objective = TwinFlow(teacher="self")
>>> step = objective.step(field, x, cond, uncond=uncond)        # doctest: +SKIP
>>> step.loss.backward()                                        # doctest: +SKIP
"""

from twinflow.objectives.consistency_distillation import ConsistencyDistillation
from twinflow.objectives.consistency_training import ConsistencyTraining
from twinflow.objectives.dmd import DMD
from twinflow.objectives.dmd2 import DMD2
from twinflow.objectives.flow_matching import FlowMatching
from twinflow.objectives.mean_flow import MeanFlow
from twinflow.objectives.networks import STUDENT, NetworkSpec, Phase, only_trained
from twinflow.objectives.objective import Field, Objective, RowLog, Step
from twinflow.objectives.progressive_distillation import ProgressiveDistillation
from twinflow.objectives.rcgm import RCGM
from twinflow.objectives.roles import ROLE_NAMES, Roles
from twinflow.objectives.sana_sprint import SanaSprint
from twinflow.objectives.scm import SCM
from twinflow.objectives.times import TimeDistribution
from twinflow.objectives.twinflow import TwinFlow

__all__ = [
    "DMD",
    "DMD2",
    "RCGM",
    "ROLE_NAMES",
    "SCM",
    "STUDENT",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "Field",
    "FlowMatching",
    "MeanFlow",
    "NetworkSpec",
    "Objective",
    "Phase",
    "ProgressiveDistillation",
    "Roles",
    "RowLog",
    "SanaSprint",
    "Step",
    "TimeDistribution",
    "TwinFlow",
    "only_trained",
]
