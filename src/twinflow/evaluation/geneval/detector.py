"""GenEval's object detector: a Mask2Former over the 80 classes of COCO, run by transformers on any device."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image

from twinflow.errors import TwinflowError
from twinflow.evaluation.fingerprint import weights_name
from twinflow.evaluation.geneval.postprocess import instances
from twinflow.evaluation.geneval.preprocess import preprocess
from twinflow.evaluation.geneval.prompts import CLASS_NAMES
from twinflow.evaluation.scoring import Detection

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

PROVENANCE_FILE = "twinflow_detector.json"  # written by the converter beside the weights


@dataclass(frozen=True, kw_only=True)
class MaskedDetection(Detection):
    """A detection with the pixels of its object."""

    mask: np.ndarray | None = field(default=None, compare=False, repr=False)  # (H, W) bool


class ObjectDetector(Protocol):
    """What finds objects in a picture. ``name`` is part of every result, because scores depend on it."""

    @property
    def name(self) -> str: ...

    def detect(self, image: Image.Image, *, threshold: float) -> list[MaskedDetection]:
        """Objects of GenEval's classes with a score above ``threshold``, in the picture's own pixels."""
        ...


class Mask2FormerDetector:
    """A Mask2Former with 80 classes in COCO's order, fed and read as OpenMMLab does it.

    Labels are mapped by index: COCO's names differ from GenEval's for three classes.
    """

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        *,
        name: str,
        device: torch.device | str = "cpu",
    ) -> None:
        check_classes(model.config, name=name)
        self.name = name
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)

    @classmethod
    def load(cls, path_or_id: str | Path, *, device: torch.device | str = "cpu") -> Mask2FormerDetector:
        """From a folder that the converter wrote, any transformers folder, or a hub id (safetensors only).

        The name in results tells the weights: "mmdet …" for converted ones, else the id or the folder's name.
        """
        from transformers import Mask2FormerForUniversalSegmentation

        try:
            model = Mask2FormerForUniversalSegmentation.from_pretrained(
                str(path_or_id), use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise TwinflowError(
                f"no detector can be loaded from {path_or_id}: {error}. Give a folder made by "
                "`twinflow geneval-detector`, or a transformers Mask2Former."
            ) from error
        return cls(model, name=detector_name(path_or_id), device=device)

    @torch.inference_mode()
    def detect(self, image: Image.Image, *, threshold: float) -> list[MaskedDetection]:
        """Objects with a score above ``threshold``, best first."""
        shape = preprocess(image, self.device)
        output = self.model(pixel_values=shape.pixels)
        found = instances(
            output.class_queries_logits[0], output.masks_queries_logits[0], shape, threshold=threshold
        )
        order = found.scores.argsort(descending=True, stable=True)
        scores = found.scores[order].cpu().numpy()
        classes = found.classes[order].tolist()
        boxes = found.boxes[order].tolist()
        masks = found.masks[order].cpu().numpy()
        return [
            MaskedDetection(
                class_name=CLASS_NAMES[classes[i]],
                box=(boxes[i][0], boxes[i][1], boxes[i][2], boxes[i][3]),
                score=decimal(scores[i]),
                mask=masks[i],
            )
            for i in range(len(classes))
        ]


def check_classes(config: Any, *, name: str) -> None:
    """TwinflowError unless it is the configuration of a detector of COCO's 80 things."""
    if config.num_labels != len(CLASS_NAMES):
        raise TwinflowError(
            f"the detector {name!r} has {config.num_labels} classes, GenEval needs COCO's {len(CLASS_NAMES)} things: "
            "use a checkpoint trained for instances on COCO"
        )


def decimal(value: np.float32) -> float:
    """The shortest decimal that stands for an fp32 number: 0.3 and not 0.30000001192.

    The official scorer compares fp32 scores with fp32 thresholds; with this, 0.3 > 0.3 is false in fp64 as well.
    """
    return float(str(np.float32(value)))


def detector_weights(path_or_id: str | Path) -> str:
    """Which weights a detector has. The name of a converted one tells it; its files depend on transformers' version."""
    converted = (Path(path_or_id) / PROVENANCE_FILE).is_file()
    return detector_name(path_or_id) if converted else weights_name(path_or_id)


def detector_name(path_or_id: str | Path) -> str:
    """What the detector is called in results."""
    provenance = Path(path_or_id) / PROVENANCE_FILE
    if provenance.is_file():
        return str(json.loads(provenance.read_text())["name"])
    path = Path(path_or_id)
    return f"HF {path.name}" if path.exists() else f"HF {path_or_id}"
