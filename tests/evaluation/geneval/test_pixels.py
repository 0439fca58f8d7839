"""Pictures in, objects out: equal to OpenCV, and to a slow reading of mmdet's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from twinflow.evaluation.geneval.colors import clip_pixels, cut_out
from twinflow.evaluation.geneval.detector import MaskedDetection, decimal
from twinflow.evaluation.geneval.postprocess import boxes_of, instances
from twinflow.evaluation.geneval.preprocess import (
    DetectorInput,
    detector_size,
    preprocess,
    resize_linear,
)

# Outputs of cv2.resize(…, INTER_LINEAR), opencv-python-headless 4.10.0, for the pictures of ``picture``.
RESIZED = np.load(Path(__file__).parent / "opencv_resized.npz")


def picture(height: int, width: int) -> np.ndarray:
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((7 * y * y + 13 * x + 31 * c * y + x * y + 5 * c) % 256).astype(np.uint8)


@pytest.mark.parametrize("case", RESIZED.files)
def test_resizing_equals_opencv_byte_for_byte(case):
    source, target = ([int(n) for n in size.split("x")] for size in case.split("_to_"))
    ours = resize_linear(torch.from_numpy(picture(*source)).permute(2, 0, 1), (target[0], target[1]))
    np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy(), RESIZED[case])


def test_resizing_is_bilinear_to_one_grey_level():
    pixels = torch.from_numpy(picture(30, 50)).permute(2, 0, 1)
    ours = resize_linear(pixels, (41, 33)).float()
    exact = F.interpolate(pixels[None].float(), (41, 33), mode="bilinear", align_corners=False)[0]
    assert (ours - exact).abs().max() <= 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((1024, 576), (1333, 750)),
        ((480, 640), (800, 1067)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_sizes_of_the_detector(size, expected):
    assert detector_size(*size) == expected


def test_the_input_is_padded_with_gray_and_normalised():
    shape = preprocess(Image.fromarray(picture(100, 40)))
    assert shape.original == (100, 40)
    assert shape.resized == (1333, 533)
    assert shape.padded == (1344, 544)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1)
    torch.testing.assert_close(shape.pixels[0, :, -1], ((128 - mean) / std).expand(3, 544))
    resized = resize_linear(torch.from_numpy(picture(100, 40)).permute(2, 0, 1), (1333, 533))
    torch.testing.assert_close(
        shape.pixels[0, :, :1333, :533] * std[..., None] + mean[..., None],
        resized.float(),
        atol=1e-4,
        rtol=1e-5,
    )


def slow_instances(class_logits, mask_logits, shape):
    """mmdet's instance_postprocess, one (query, class) pair after another."""
    pairs = []
    for q, row in enumerate(class_logits.softmax(-1)):
        pairs += [(float(p), q, c) for c, p in enumerate(row[:-1])]
    found = {}
    for probability, q, c in sorted(pairs, reverse=True)[:100]:
        mask = F.interpolate(mask_logits[None, q : q + 1], shape.padded, mode="bilinear", align_corners=False)
        mask = mask[..., : shape.resized[0], : shape.resized[1]]
        mask = F.interpolate(mask, shape.original, mode="bilinear", align_corners=False)[0, 0]
        inside = mask > 0
        score = probability * float(mask.sigmoid()[inside].sum()) / (float(inside.sum()) + 1e-6)
        y, x = torch.where(inside)
        box = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1] if len(x) else [0, 0, 0, 0]
        found[q, c] = (score, box, inside)
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_objects_equal_a_slow_reading_of_the_rules(threshold):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(7, 31, generator=generator) * 3
    mask_logits = F.avg_pool2d(torch.randn(7, 16, 24, generator=generator) * 6, 3, 1, 1)
    mask_logits[2] = -1.0  # an empty mask
    shape = DetectorInput(pixels=torch.zeros(1, 3, 64, 96), resized=(60, 90), original=(45, 70))
    slow = {
        key: one
        for key, one in slow_instances(class_logits, mask_logits, shape).items()
        if one[0] > threshold
    }
    found = instances(class_logits, mask_logits, shape, threshold=threshold)
    assert len(found.scores) == len(slow) > (2 if threshold else 50)
    ordered = sorted(slow.items(), key=lambda item: -item[1][0])
    for index, ((_, cls), (score, box, inside)) in zip(found.scores.argsort(descending=True), ordered):
        assert found.classes[index] == cls
        assert float(found.scores[index]) == pytest.approx(score, rel=1e-5)
        assert found.boxes[index].tolist() == box
        assert torch.equal(found.masks[index], inside)


def test_no_object_and_empty_masks():
    shape = DetectorInput(pixels=torch.zeros(1, 3, 32, 32), resized=(32, 32), original=(20, 20))
    logits = torch.full((2, 5), -9.0)
    logits[:, -1] = 9
    none = instances(logits, torch.zeros(2, 8, 8), shape, threshold=0.3)
    assert none.masks.shape == (0, 20, 20)
    assert none.boxes.shape == (0, 4)
    assert boxes_of(torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_a_score_on_the_threshold_is_not_above_it():
    assert decimal(np.float32(0.3)) == 0.3
    assert decimal(np.nextafter(np.float32(0.3), np.float32(1))) > 0.3
    assert decimal(np.float32(0.9)) == 0.9


def test_an_object_is_cut_out_on_gray():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:6] = True
    mask[2, 3] = False
    found = MaskedDetection(class_name="cow", box=(3, 2, 6, 4), score=1, mask=mask)
    crop = cut_out(Image.new("RGB", (8, 6), (200, 10, 10)), found)
    assert crop.size == (3, 2)
    assert crop.getpixel((0, 0)) == (0x99, 0x99, 0x99)
    assert crop.getpixel((1, 0)) == (200, 10, 10)
    with pytest.raises(ValueError, match="does not fit"):
        cut_out(Image.new("RGB", (9, 6)), found)


@pytest.mark.parametrize("size", [(60, 20), (20, 50), (33, 33), (300, 200)])
def test_clips_input_equals_transformers_processor(size):
    """Two implementations of resize, centre crop and normalisation; sizes whose margins are even, where the two
    agree on which pixels are central."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = Image.fromarray(picture(size[1], size[0]))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(clip_pixels(image, 28), expected, atol=1e-5, rtol=1e-5)
