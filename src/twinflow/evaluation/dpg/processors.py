"""A vision language model's processor, without torchvision where that isn't installed: a judge only sees pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twinflow.pipelines.processors import pictures_only, sees_videos


def load_processor(path_or_id: str | Path) -> Any:
    """transformers' own processor; without torchvision, one for pictures alone, equal to it in all else."""
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    kind = None if is_torchvision_available() else _processor_class(path_or_id)
    if not sees_videos(kind):
        return AutoProcessor.from_pretrained(str(path_or_id))
    return pictures_only(kind, path_or_id)


def _processor_class(path_or_id: str | Path) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(str(path_or_id))
    return PROCESSOR_MAPPING.get(type(config), None)
