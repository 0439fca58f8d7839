"""A Mask2Former's logits to objects, as OpenMMLab's instance head does (mmdet 2.x, ``instance_postprocess``).

transformers' own post-processing is another one: it works on binary masks of 384 x 384 and lets objects overwrite
each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twinflow.evaluation.geneval.preprocess import DetectorInput

MAX_PER_IMAGE = 100


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Objects of a picture, in no particular order."""

    classes: Tensor  # (N,) int64
    scores: Tensor  # (N,) fp32: class probability times mean mask probability
    boxes: (
        Tensor  # (N, 4) fp32: x1, y1, x2, y2 of the mask's pixels, x2 and y2 exclusive; 0 for an empty mask
    )
    masks: Tensor  # (N, H, W) bool, of the picture's own size


def instances(
    class_logits: Tensor, mask_logits: Tensor, shape: DetectorInput, *, threshold: float = 0.0
) -> Instances:
    """Objects with a score above ``threshold`` (strictly).

    class_logits (Q, classes + 1), the last for "no object"; mask_logits (Q, h, w) over the padded picture. The 100
    best of all (query, class) pairs are objects, so a query can be several. There is no suppression of overlaps.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # (Q, C)
    count = probabilities.shape[1]
    best, pairs = probabilities.flatten().topk(min(MAX_PER_IMAGE, probabilities.numel()))
    # A mask's mean probability is at most 1: what fails here fails with its mask too, and needs none.
    kept = best > threshold
    best, pairs = best[kept], pairs[kept]
    masks = _full_size(mask_logits.float()[pairs // count], shape)
    inside = masks > 0
    area = inside.flatten(1).sum(1)
    clarity = (masks.sigmoid() * inside).flatten(1).sum(1) / (area + 1e-6)
    scores = best * clarity
    passed = scores > threshold
    inside = inside[passed]
    return Instances(
        classes=(pairs % count)[passed], scores=scores[passed], boxes=boxes_of(inside), masks=inside
    )


def _full_size(logits: Tensor, shape: DetectorInput) -> Tensor:
    """Mask logits (N, h, w) of the padded picture at the size of the original, (N, H, W)."""
    if not len(logits):
        return logits.new_zeros((0, *shape.original))
    padded = F.interpolate(logits[None], size=shape.padded, mode="bilinear", align_corners=False)
    cropped = padded[..., : shape.resized[0], : shape.resized[1]]
    return F.interpolate(cropped, size=shape.original, mode="bilinear", align_corners=False)[0]


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes (N, 4) of masks (N, H, W), right and bottom exclusive; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    if not len(masks):
        return boxes
    for low, high, present in ((0, 2, masks.any(1)), (1, 3, masks.any(2))):
        length = present.shape[1]
        index = torch.arange(length, device=masks.device)
        boxes[:, low] = torch.where(present, index, length).amin(1).float()
        boxes[:, high] = torch.where(present, index + 1, 0).amax(1).float()
    boxes[~masks.flatten(1).any(1)] = 0
    return boxes
