"""Processors of vision language models for pictures alone, where torchvision isn't installed.

transformers' processors of models that also see videos (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL) demand a video
processor, and that demands torchvision, which this project does without. Pipelines that edit pictures, such as
Qwen-Image-Edit, have such a processor, and never show it a video.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

VIDEO = "video_processor"


def sees_videos(kind: Any) -> bool:
    """Whether the class ``kind`` is of processors that demand a part for videos."""
    from transformers import ProcessorMixin

    return isinstance(kind, type) and issubclass(kind, ProcessorMixin) and VIDEO in kind.get_attributes()


def pictures_only(kind: Any, path_or_id: str | Path) -> Any:
    """The processor of class ``kind`` without its part for videos, equal to it in all else."""
    from transformers import AutoImageProcessor, AutoTokenizer

    def check(self: Any, name: str, part: Any) -> Any:
        return (
            None if name == VIDEO and part is None else kind.check_argument_for_proper_class(self, name, part)
        )

    def save_pretrained(self: Any, save_directory: str | Path, **_: Any) -> None:
        """The files that it was made of, which have the part for videos too."""
        shutil.copytree(path_or_id, save_directory, dirs_exist_ok=True)

    # Pipelines write down the names of class and module.
    own = {
        "check_argument_for_proper_class": check,
        "save_pretrained": save_pretrained,
        "__module__": kind.__module__,
    }
    lenient = type(kind.__name__, (kind,), own)
    tokenizer = AutoTokenizer.from_pretrained(str(path_or_id))
    return lenient(
        image_processor=AutoImageProcessor.from_pretrained(str(path_or_id)),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=_chat_template(path_or_id) or tokenizer.chat_template,
    )


def parts_without_torchvision(path_or_id: str) -> dict[str, Any]:
    """Those processors of the pipeline ``path_or_id`` that can't be opened as they are; none with torchvision."""
    import transformers
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return {}
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(path_or_id)
    except Exception:  # opening it says what is wrong
        return {}
    named = {
        name: getattr(transformers, str(part[1]), None)
        for name, part in index.items()
        if isinstance(part, (list, tuple))
        and part[0] == "transformers"
        and str(part[1]).endswith("Processor")
    }
    return {
        name: pictures_only(kind, _folder(path_or_id, name))
        for name, kind in named.items()
        if sees_videos(kind)
    }


def _folder(path_or_id: str, part: str) -> Path:
    """The folder of a pipeline's ``part``; of the hub, as it is fetched."""
    if Path(path_or_id).is_dir():
        return Path(path_or_id) / part
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path_or_id, allow_patterns=[f"{part}/*"])) / part


def _chat_template(path_or_id: str | Path) -> str | None:
    """The processor's own template, where it is kept apart from the tokenizer's."""
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
