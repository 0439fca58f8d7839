"""Stock diffusers pipelines as any-step fields: adapters and the target-time branch."""

from twinflow.pipelines.any_step import AnyStepNetwork, AnyStepPipeline
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.generation import Generation, to_pil

__all__ = ["AnyStepNetwork", "AnyStepPipeline", "Condition", "Generation", "to_pil"]
