"""TwinFlow: turn any flow-matching generator into a one-step generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["AnyStepPipeline", "__version__"]

if TYPE_CHECKING:
    from twinflow.pipelines import AnyStepPipeline


def __getattr__(name: str) -> Any:
    """``twinflow.AnyStepPipeline``, imported when it is first used: the objectives need no diffusers."""
    if name == "AnyStepPipeline":
        from twinflow.pipelines import AnyStepPipeline

        return AnyStepPipeline
    raise AttributeError(f"module 'twinflow' has no attribute {name!r}")
