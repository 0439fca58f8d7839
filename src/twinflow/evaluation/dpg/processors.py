"""A vision language model's processor, without torchvision where that isn't installed.

transformers' processors of models that also see videos (Qwen2.5-VL, Qwen3-VL, InternVL) demand a video processor, and
that demands torchvision, which this project does without. A judge only sees pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

VIDEO = "video_processor"


def load_processor(path_or_id: str | Path) -> Any:
    """transformers' own processor; without torchvision, one for pictures alone, equal to it in all else."""
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return AutoProcessor.from_pretrained(str(path_or_id))
    kind = _processor_class(path_or_id)
    if kind is None or VIDEO not in kind.get_attributes():
        return AutoProcessor.from_pretrained(str(path_or_id))
    return _pictures_only(kind, path_or_id)


def _processor_class(path_or_id: str | Path) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(str(path_or_id))
    return PROCESSOR_MAPPING.get(type(config), None)


def _pictures_only(kind: Any, path_or_id: str | Path) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    def check(self: Any, name: str, part: Any) -> Any:
        return (
            None if name == VIDEO and part is None else kind.check_argument_for_proper_class(self, name, part)
        )

    lenient = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
    tokenizer = AutoTokenizer.from_pretrained(str(path_or_id))
    return lenient(
        image_processor=AutoImageProcessor.from_pretrained(str(path_or_id)),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=_chat_template(path_or_id) or tokenizer.chat_template,
    )


def _chat_template(path_or_id: str | Path) -> str | None:
    """The processor's own template, where it is kept apart from the tokenizer's."""
    import json

    from transformers.utils import cached_file

    for name in ("chat_template.jinja", "chat_template.json"):
        file = cached_file(
            str(path_or_id),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is not None:
            text = Path(file).read_text(encoding="utf-8")
            return json.loads(text)["chat_template"] if name.endswith(".json") else text
    return None
