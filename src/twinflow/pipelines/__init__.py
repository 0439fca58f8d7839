"""Stock diffusers pipelines as any-step fields: adapters and the target-time branch."""

from twinflow.pipelines.any_step import AnyStepPipeline
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.generation import Generation, to_pil
from twinflow.pipelines.lora import LoraSettings
from twinflow.pipelines.network import AnyStepNetwork

__all__ = ["AnyStepNetwork", "AnyStepPipeline", "Condition", "Generation", "LoraSettings", "to_pil"]
