"""Stock diffusers pipelines as any-step fields: adapters and the target-time branch."""

from twinflow.pipelines.any_step import AnyStepNetwork, AnyStepPipeline, Generation, to_pil
from twinflow.pipelines.condition import Condition

__all__ = ["AnyStepNetwork", "AnyStepPipeline", "Condition", "Generation", "to_pil"]
