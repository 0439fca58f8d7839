"""Colours by CLIP: equal to one sentence and one crop at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.geneval.tiny import tiny_clip, tiny_tokenizer
from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval import COLORS, ClipColors, MaskedDetection
from twinflow.evaluation.geneval.colors import clip_pixels, cut_out


@pytest.fixture(scope="module")
def colors():
    return ClipColors(tiny_clip(), tiny_tokenizer(), name="tiny")


def objects(count: int) -> tuple[Image.Image, list[MaskedDetection]]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    found = []
    for _ in range(count):
        x1, y1 = rng.integers(0, 20, 2)
        x2, y2 = x1 + rng.integers(5, 30), y1 + rng.integers(5, 20)
        mask = np.zeros((40, 50), dtype=bool)
        mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.7
        box = (float(x1), float(y1), float(x2), float(y2))
        found.append(MaskedDetection(class_name="traffic light", box=box, score=0.9, mask=mask))
    return image, found


@torch.inference_mode()
def test_colors_equal_a_slow_reading_of_the_rule(colors):
    image, found = objects(12)
    model, tokenizer = tiny_clip(), tiny_tokenizer()

    def text_feature(text: str) -> torch.Tensor:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        hidden = model.text_model(input_ids=ids).last_hidden_state[0, -1]  # the end of the text
        feature = model.text_projection(hidden)
        return feature / feature.norm()

    weights = []
    for color in COLORS:
        sentences = (
            f"a photo of a {color} traffic light",
            f"a photo of a {color}-colored traffic light",
            f"a photo of a {color} object",
        )
        mean = sum(text_feature(text) for text in sentences) / 3
        weights.append(mean / mean.norm())
    expected, margins = [], []
    for one in found:
        crop = clip_pixels(cut_out(image, one), 28)[None]
        feature = model.visual_projection(model.vision_model(pixel_values=crop).pooler_output)[0]
        similar = torch.stack(weights) @ (feature / feature.norm())
        expected.append(COLORS[int(similar.argmax())])
        margins.append(float(similar.topk(2).values.diff().abs()))
    assert min(margins) > 1e-5  # no ties
    assert colors.classify(image, "traffic light", found) == expected
    assert len(set(expected)) > 1


def test_the_answer_depends_on_the_class_and_the_mask(colors):
    image, found = objects(12)
    assert colors.classify(image, "cow", found) != colors.classify(image, "traffic light", found)
    bare = [MaskedDetection(class_name=o.class_name, box=o.box, score=1) for o in found]
    assert cut_out(image, bare[0]).tobytes() != cut_out(image, found[0]).tobytes()
    assert colors.classify(image, "cow", []) == []


def test_the_wrong_activation_is_refused_unless_asked_for():
    with pytest.raises(TwinflowError, match="'gelu'"):
        ClipColors(tiny_clip("gelu"), tiny_tokenizer(), name="laion")
    assert ClipColors(tiny_clip("gelu"), tiny_tokenizer(), name="laion", activation=None).name == "laion"


def test_from_a_folder(tmp_path, colors):
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    image, found = objects(12)
    loaded = ClipColors.load(tmp_path / "clip")
    assert loaded.name == "clip"
    assert loaded.classify(image, "cow", found) == colors.classify(image, "cow", found)
    with pytest.raises(TwinflowError, match="no CLIP can be loaded"):
        ClipColors.load(tmp_path / "absent")
