"""GenEval's colours: CLIP compares an object, cut out on gray, with the ten colours in three sentences each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval.detector import MaskedDetection
from twinflow.evaluation.geneval.prompts import COLORS

if TYPE_CHECKING:
    from transformers import CLIPModel

TEMPLATES = ("a photo of a {c} {name}", "a photo of a {c}-colored {name}", "a photo of a {c} object")
BLANK = "#999"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ColorClassifier(Protocol):
    """What names the colours of objects. ``name`` is part of every result."""

    @property
    def name(self) -> str: ...

    def classify(self, image: Image.Image, class_name: str, objects: Sequence[MaskedDetection]) -> list[str]:
        """One of GenEval's ten colours for each object, all of one class."""
        ...


class ClipColors:
    """CLIP as the colour classifier; the official one is OpenAI's ViT-L/14.

    ``activation`` is what the model must compute with. OpenAI's weights need "quick_gelu"; fresh installations of the
    official scorer run them with "gelu" (open_clip from 2.29 on) and misjudge colours. None takes any.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: Any,
        *,
        name: str,
        activation: str | None = "quick_gelu",
        device: torch.device | str = "cpu",
    ) -> None:
        config: Any = model.config
        if activation is not None:
            check_activation(config, name=name, activation=activation)
        self.name = name
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.tokenizer = tokenizer
        self.size: int = config.vision_config.image_size
        self._classifiers: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        activation: str | None = "quick_gelu",
        device: torch.device | str = "cpu",
    ) -> ClipColors:
        """From a transformers folder or hub id (safetensors only)."""
        from transformers import CLIPModel, CLIPTokenizer

        try:
            model = CLIPModel.from_pretrained(str(path_or_id), use_safetensors=True, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(str(path_or_id))
        except (OSError, ValueError) as error:
            raise TwinflowError(f"no CLIP can be loaded from {path_or_id}: {error}") from error
        return cls(model, tokenizer, name=clip_name(path_or_id), activation=activation, device=device)

    @torch.inference_mode()
    def classify(self, image: Image.Image, class_name: str, objects: Sequence[MaskedDetection]) -> list[str]:
        if not objects:
            return []
        crops = torch.stack([clip_pixels(cut_out(image, found), self.size) for found in objects])
        features = F.normalize(_features(self.model.get_image_features(crops.to(self.device))), dim=-1)
        best = (features @ self._classifier(class_name).T).argmax(-1)
        return [COLORS[index] for index in best.tolist()]

    def _classifier(self, class_name: str) -> Tensor:
        """Unit text features (10, D) of the colours; they are computed once a class."""
        if class_name not in self._classifiers:
            texts = [template.format(c=color, name=class_name) for color in COLORS for template in TEMPLATES]
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            features = F.normalize(_features(output), dim=-1)
            means = features.view(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._classifiers[class_name] = F.normalize(means, dim=-1)
        return self._classifiers[class_name]


def check_activation(config: Any, *, name: str, activation: str = "quick_gelu") -> None:
    """TwinflowError unless it is the configuration of a CLIP that computes with ``activation``."""
    for part in ("text_config", "vision_config"):
        found = getattr(getattr(config, part, None), "hidden_act", None)
        if found != activation:
            raise TwinflowError(
                f"{name} computes with {found!r}, OpenAI's CLIP needs {activation!r}: use "
                "openai/clip-vit-large-patch14, or ask for activation=None and name the result after this model"
            )


def clip_name(path_or_id: str | Path) -> str:
    """What the colour classifier is called in results."""
    path = Path(path_or_id)
    return path.name if path.exists() else str(path_or_id)


def _features(output: Any) -> Tensor:
    """transformers 5 wraps projected features in an output object, 4 gave the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def cut_out(image: Image.Image, found: MaskedDetection) -> Image.Image:
    """The object on gray, cropped to its box; without a mask, the box alone."""
    if found.mask is not None:
        height, width = found.mask.shape
        if image.size != (width, height):
            raise ValueError(f"a mask {(width, height)} does not fit a picture {image.size}")
        blank = Image.new("RGB", image.size, color=BLANK)
        image = Image.composite(image, blank, Image.fromarray(found.mask.astype(np.uint8) * 255))
    x1, y1, x2, y2 = (round(value) for value in found.box)
    return image.crop((x1, y1, x2, y2))


def clip_pixels(image: Image.Image, size: int) -> Tensor:
    """open_clip's preprocessing: short side to ``size`` (bicubic, antialiased), centre crop; (3, size, size) fp32."""
    width, height = image.size
    short = min(width, height)
    long = int(size * max(width, height) / short)
    target = (size, long) if width <= height else (long, size)
    image = image.convert("RGB").resize(target, Image.Resampling.BICUBIC)
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
