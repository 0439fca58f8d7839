"""Measures on folders of pictures, with encoders of random weights in the real layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twinflow.errors import TwinflowError
from twinflow.evaluation import extractors, measures
from twinflow.evaluation.clip_scores import ClipScorer
from twinflow.evaluation.extractors import open_extractor
from twinflow.evaluation.feature_bank import FeatureBank
from twinflow.evaluation.frechet import frechet_distance
from twinflow.evaluation.measures import Distribution, PromptScore, SeedDiversity, Sharpness
from twinflow.evaluation.pictures import read_pixels

from .folders import folder_of

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, DINOv2's


def tiny_dino(folder: Path) -> Path:
    """A DINOv2 of random weights with its preprocessing."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessorPil(**size).save_pretrained(folder)
    return folder


def test_encoders_of_transformers_give_their_own_embeddings(clip, tmp_path, monkeypatch):
    tiny_dino(tmp_path / "dino")
    pixels = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(
        torch.backends.cudnn, "allow_tf32", False
    )  # a GPU's convolutions keep 10 bits of fp32 else
    for kind, path, width in (("dinov2", tmp_path / "dino", 16), ("clip", clip, 12)):
        extractor = open_extractor(f"{kind}:{path}")
        features = extractor(pixels)
        assert features.shape == (3, width)
        assert features.std(dim=0).min() > 0
        torch.testing.assert_close(extractor(pixels[1:2]), features[1:2], rtol=1e-4, atol=1e-5)
        assert extractor.name == f"{kind}:{path.name}"


def test_dinov2_sees_whole_pictures_squeezed_as_fd_dinov2_is_defined(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}  # as 256 and 224
    BitImageProcessorPil(**size, image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    extractor = open_extractor(f"dinov2:{tmp_path}")
    pixels = torch.rand(1, 3, 40, 70, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = Image.fromarray(((pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    squeezed = np.array(image.resize((28, 28), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    by_hand = torch.from_numpy((squeezed - MEAN) / STD).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = extractor.network(by_hand.to(extractor.network.device)).pooler_output.cpu()
    torch.testing.assert_close(extractor(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet", "are not known"),
        ("dinov2", "are not known"),
        ("dinov2:/no/such/place", "can't be loaded"),
        ("python:no_such_module:f", "no_such_module"),
        ("python:math:pi", "python:math:pi"),
    ],
)
def test_features_that_are_not_there(text, message):
    with pytest.raises(TwinflowError, match=message):
        open_extractor(text)


def test_features_of_one_s_own(monkeypatch):
    class Mean:
        name, hash = "mean", "1"

        def __call__(self, pixels):
            return pixels.mean((2, 3))

    monkeypatch.setattr(extractors, "my_features", Mean, raising=False)
    found = open_extractor("python:twinflow.evaluation.extractors:my_features")
    assert found(torch.ones(2, 3, 4, 4)).shape == (2, 3)


class Counted:
    name, hash = "counted", "1"

    def __init__(self) -> None:
        self.seen, self.inner = 0, open_extractor("texture")

    def __call__(self, pixels):
        self.seen += len(pixels)
        return self.inner(pixels)


def test_features_are_computed_once_and_again_for_a_changed_picture(tmp_path):
    pictures = folder_of(tmp_path / "p", 7, seed=1)
    extractor = Counted()
    bank = FeatureBank(tmp_path / "p", pictures, extractor, cache=tmp_path / "cache", batch=2, shard=3)
    first = bank.features()
    assert extractor.seen == 7
    torch.testing.assert_close(bank.features(), first, rtol=0, atol=0)
    assert extractor.seen == 7
    Image.new("RGB", (24, 24)).save(tmp_path / "p" / "4.png")
    second = bank.features()
    assert extractor.seen == 10  # its shard of three
    assert (second != first).any(dim=1).tolist() == [i == 4 for i in range(7)]
    statistics = bank.statistics()
    assert statistics.count == 7
    torch.testing.assert_close(statistics.mean, second.mean(0))


def test_a_distance_from_itself_is_nothing_and_statistics_stand_in_for_pictures(tmp_path):
    pictures = folder_of(tmp_path / "real", 12, seed=1)
    folder_of(tmp_path / "drawn", 12, seed=2)
    own = Distribution(str(tmp_path / "real")).measure(tmp_path / "real", pictures, cache=tmp_path / "c0")
    assert own["frechet"].value == pytest.approx(0, abs=1e-9)
    assert own["kid"].value < 0.1
    assert (own["precision"].value, own["coverage"].value) == (1, 1)
    measure = Distribution(str(tmp_path / "real"))
    found = measure.measure(tmp_path / "drawn", pictures, cache=tmp_path / "a" / "c1")
    assert found["frechet"].value > 0
    file = tmp_path / "c0" / "statistics.safetensors"
    by_statistics = Distribution(str(file)).measure(tmp_path / "drawn", pictures, cache=tmp_path / "c2")
    assert by_statistics["frechet"].value == pytest.approx(found["frechet"].value, rel=1e-9)
    assert set(by_statistics) == {"frechet"}
    with pytest.raises(TwinflowError, match="texture-1.*pixels"):
        Distribution(str(file), features="pixels")


def test_distances_compare_for_equal_references_and_neighbours_alone(tmp_path):
    folder_of(tmp_path / "a" / "real", 3, seed=1)
    folder_of(tmp_path / "b" / "real", 3, seed=1)
    first = Distribution(str(tmp_path / "a" / "real")).protocol
    assert Distribution(str(tmp_path / "b" / "real")).protocol == first
    assert Distribution(str(tmp_path / "a" / "real"), k=2).protocol != first
    Image.new("RGB", (24, 24)).save(
        tmp_path / "b" / "real" / "2.png"
    )  # another set of the same name and count
    assert Distribution(str(tmp_path / "b" / "real")).protocol != first
    pictures = folder_of(tmp_path / "drawn", 3, seed=2)
    measure = Distribution(str(tmp_path / "a" / "real"))
    keys = []
    for name in ("a", "b"):
        folder = tmp_path / name / "real"
        measure.measure(folder, pictures, cache=tmp_path / "cache")
        file = (tmp_path / "cache" / "statistics.safetensors").rename(tmp_path / name / "s.safetensors")
        keys.append(Distribution(str(file)).protocol["reference"])
    assert keys[0] != keys[1]


def test_references_that_are_none(tmp_path):
    folder_of(tmp_path / "one", 1, seed=1)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for reference, message in (
        (None, "needs reference pictures"),
        (str(tmp_path / "none"), "no reference pictures"),
        (str(tmp_path / "one"), "at least 2"),
        (str(tmp_path / "x.safetensors"), "has no statistics"),
    ):
        with pytest.raises(TwinflowError, match=message):
            Distribution(reference)
    pictures = folder_of(tmp_path / "two", 2, seed=1)
    with pytest.raises(TwinflowError, match="at least 2"):
        Distribution(str(tmp_path / "two")).ready(pictures[:1])


@pytest.mark.parametrize("features", ["texture", "dinov2"])
def test_equal_pictures_have_no_diversity(features, tmp_path):
    if features == "dinov2":
        features = f"dinov2:{tiny_dino(tmp_path / 'dino')}"
    pictures = folder_of(tmp_path / "various", 8, seed=1)
    measure = SeedDiversity(features)
    found = measure.measure(tmp_path / "various", pictures, cache=tmp_path / "c1")
    assert found["seed_distance"].value > 0
    assert 1 < found["vendi"].value <= 4
    for picture in pictures:
        Image.new("RGB", (24, 24), "red").save(tmp_path / "various" / picture.file)
    same = measure.measure(tmp_path / "various", pictures, cache=tmp_path / "c2")
    assert same["seed_distance"].value == pytest.approx(0, abs=1e-6)
    assert same["vendi"].value == pytest.approx(1, abs=1e-4)
    with pytest.raises(TwinflowError, match="one picture"):
        SeedDiversity().ready(pictures[:2])
    with pytest.raises(TwinflowError, match="cosine"):
        SeedDiversity(distance="l3")


def test_prompt_scores_and_sharpness_say_their_interval(clip, tmp_path):
    pictures = folder_of(tmp_path / "p", 40, seed=1)
    measure = PromptScore("pickscore", "PickScore", ClipScorer("pickscore", str(clip)))
    found = measure.measure(tmp_path / "p", pictures, cache=tmp_path / "c")["pickscore"]
    scores = [
        measure.scorer.score(pixels, [picture.prompt])
        for picture in pictures
        for pixels in read_pixels(tmp_path / "p", [picture])
    ]
    values = torch.cat(scores)
    assert found.value == pytest.approx(values.mean().item(), rel=1e-4)
    assert found.error == pytest.approx(1.96 * values.std().item() / 40**0.5, rel=1e-3)
    assert "clip" in measure.protocol["pickscore"]
    from transformers import CLIPImageProcessorPil

    prepared = shutil.copytree(clip, tmp_path / "prepared")
    CLIPImageProcessorPil(do_center_crop=False, size={"height": 24, "width": 24}).save_pretrained(prepared)
    other = ClipScorer("pickscore", str(clip), processor=str(prepared))
    assert PromptScore("pickscore", "PickScore", other).protocol != measure.protocol
    sharp = Sharpness().measure(tmp_path / "p", pictures, cache=tmp_path / "c")
    assert sharp["contrast"].value == pytest.approx(0.19, abs=0.02)  # of uniform noise in three channels


def test_scores_of_prompts_are_kept_too_and_taken_again_for_a_changed_picture(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "SHARD", 3)
    pictures = folder_of(tmp_path / "p", 7, seed=1)
    seen = []

    class Counting(ClipScorer):
        def score(self, pixels, prompts):
            seen.append(len(prompts))
            return super().score(pixels, prompts)

    def measured(kind="pickscore"):
        measure = PromptScore(kind, kind, Counting(kind, str(clip)))
        return measure.measure(tmp_path / "p", pictures, cache=tmp_path / "cache")[kind].value

    first = measured()
    assert (measured(), seen) == (first, [3, 3, 1])
    Image.new("RGB", (24, 24)).save(tmp_path / "p" / "4.png")
    assert measured() != first
    assert seen[3:] == [3]
    assert measured("hps") != measured()  # of another scale: not the other's scores
    assert seen[4:] == [3, 3, 1]


def test_statistics_of_two_processes_are_those_of_one(tmp_path):
    pictures = folder_of(tmp_path / "p", 9, seed=1)
    extractor = open_extractor("texture")
    whole = FeatureBank(tmp_path / "p", pictures, extractor, cache=tmp_path / "c").statistics()
    halves = [
        FeatureBank(tmp_path / "p", pictures[rank::2], extractor, cache=tmp_path / "c").statistics()
        for rank in (0, 1)
    ]
    assert frechet_distance(whole, halves[0].merge(halves[1])) == pytest.approx(0, abs=1e-9)
