"""Measures on folders of pictures, with encoders of random weights in the real layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from twinflow.errors import TwinflowError
from twinflow.evaluation import extractors, measures
from twinflow.evaluation.clip_scores import ClipScorer, from_open_clip
from twinflow.evaluation.extractors import open_extractor
from twinflow.evaluation.feature_bank import FeatureBank
from twinflow.evaluation.frechet import frechet_distance
from twinflow.evaluation.measures import Distribution, PromptScore, SeedDiversity, Sharpness
from twinflow.evaluation.pictures import Picture, read_pixels

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, DINOv2's
TOKENS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]


def folder_of(path: Path, count: int, *, seed: int, prompts: int = 2) -> list[Picture]:
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    pictures = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path / f"{i}.png")
        pictures.append(Picture(file=f"{i}.png", prompt=("a red circle", "blue")[i % prompts], seed=i))
    return pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A complete CLIP with random weights, as the hub has them: config, weights, tokenizer, preprocessing."""
    import json

    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=20)
    tokenizer.save_pretrained(folder)
    text = {"vocab_size": 54, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 20}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text | sizes | {"hidden_act": "gelu"},
        vision_config=sizes | {"hidden_act": "gelu", "image_size": 24, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for parameter in model.parameters():  # nothing at zero or one, so that nothing can be mixed up
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def test_scores_are_cosines_times_their_scales(clip, tmp_path):
    pictures = folder_of(tmp_path / "p", 6, seed=1)
    pixels = next(iter(read_pixels(tmp_path / "p", pictures)))
    prompts = [picture.prompt for picture in pictures]
    cosines = ClipScorer("hps", str(clip)).score(pixels, prompts) / 100
    assert cosines.abs().max() <= 1
    assert cosines.std() > 0.01
    scorer = ClipScorer("pickscore", str(clip))
    scale = scorer.network.logit_scale.exp().item()
    torch.testing.assert_close(scorer.score(pixels, prompts), scale * cosines, rtol=1e-5, atol=1e-6)
    shown = ClipScorer("clip", str(clip)).score(pixels, prompts)
    torch.testing.assert_close(shown, 100 * cosines.clamp_min(0))
    # transformers' own forward says the same of the cosines.
    inputs = scorer.tokenizer(prompts, padding=True, return_tensors="pt")
    images = scorer.images(
        images=[Image.open(tmp_path / "p" / p.file) for p in pictures], return_tensors="pt"
    )
    with torch.no_grad():
        logits = scorer.network(**inputs, **images).logits_per_image
    torch.testing.assert_close(logits.diagonal().double(), scale * cosines, rtol=1e-4, atol=1e-5)
    # A picture's score does not depend on its neighbours, nor on the padding that their prompts bring.
    alone = torch.cat([scorer.score(pixels[i : i + 1], prompts[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, scale * cosines, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        ClipScorer("hps", str(clip), prefix="red ").score(pixels, prompts) / 100, cosines
    )


def test_hps_sees_the_whole_of_a_wide_picture_and_the_others_its_middle(clip):
    """As HPSv2 prepares pictures: the longer side becomes the model's, black bars fill the square."""
    wide = torch.rand(1, 3, 24, 60, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ends = wide.clone()
    ends[..., :15], ends[..., -15:] = -1, -1
    prompts = ["a red circle"]
    hps, clip_score = (ClipScorer(kind, str(clip)) for kind in ("hps", "pickscore"))
    assert not torch.allclose(hps.score(ends, prompts), hps.score(wide, prompts))
    torch.testing.assert_close(clip_score.score(ends, prompts), clip_score.score(wide, prompts))
    # By hand: 24 x 60 becomes 10 x 24, in the middle of 24 x 24.
    image = Image.fromarray(((wide[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    square = np.zeros((24, 24, 3), np.uint8)
    square[7:17] = np.array(image.resize((24, 10), Image.Resampling.BICUBIC))
    by_hand = torch.from_numpy(square).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(hps.score(wide, prompts), hps.score(by_hand, prompts))


def to_open_clip(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The other way round, written out, as open_clip names a CLIP's weights."""
    found = {"logit_scale": state["logit_scale"]}
    for ours, theirs in (("visual.", "vision_model."), ("", "text_model.")):
        for i in range(layers):
            a, b = f"{ours}transformer.resblocks.{i}", f"{theirs}encoder.layers.{i}"
            for kind in ("weight", "bias"):
                parts = [state[f"{b}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                found[f"{a}.attn.in_proj_{kind}"] = torch.cat(parts)
                found[f"{a}.attn.out_proj.{kind}"] = state[f"{b}.self_attn.out_proj.{kind}"]
                for n in (1, 2):
                    found[f"{a}.ln_{n}.{kind}"] = state[f"{b}.layer_norm{n}.{kind}"]
                found[f"{a}.mlp.c_fc.{kind}"] = state[f"{b}.mlp.fc1.{kind}"]
                found[f"{a}.mlp.c_proj.{kind}"] = state[f"{b}.mlp.fc2.{kind}"]
    vision, text = "vision_model.", "text_model."
    found["visual.class_embedding"] = state[f"{vision}embeddings.class_embedding"]
    found["visual.positional_embedding"] = state[f"{vision}embeddings.position_embedding.weight"]
    found["visual.conv1.weight"] = state[f"{vision}embeddings.patch_embedding.weight"]
    found["positional_embedding"] = state[f"{text}embeddings.position_embedding.weight"]
    found["token_embedding.weight"] = state[f"{text}embeddings.token_embedding.weight"]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = state[f"{vision}pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = state[f"{vision}post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = state[f"{text}final_layer_norm.{kind}"]
    found["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    found["text_projection"] = state["text_projection.weight"].T.contiguous()
    return found


def open_clip_text(state: dict[str, torch.Tensor], tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """open_clip's text tower as its weights mean it: pre-norm blocks of torch's own attention, causal."""
    width = state["ln_final.weight"].numel()
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][: tokens.shape[1]]
    mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)

    def norm(x, name):
        return nn.functional.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"])

    i = 0
    while f"transformer.resblocks.{i}.ln_1.weight" in state:
        start = f"transformer.resblocks.{i}"
        attention = nn.MultiheadAttention(width, heads, batch_first=True)
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({n: state[f"{start}.attn.{n}"] for n in names})
        y = norm(x, f"{start}.ln_1")
        x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = norm(x, f"{start}.ln_2") @ state[f"{start}.mlp.c_fc.weight"].T + state[f"{start}.mlp.c_fc.bias"]
        y = nn.functional.gelu(y)
        x = x + y @ state[f"{start}.mlp.c_proj.weight"].T + state[f"{start}.mlp.c_proj.bias"]
        i += 1
    last = (tokens == 1).int().argmax(1)
    return norm(x, "ln_final")[torch.arange(len(x)), last] @ state["text_projection"]


def test_weights_in_open_clip_s_layout_are_the_same_model(clip, tmp_path):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip).eval()
    state = to_open_clip(dict(model.state_dict()), layers=2)
    back = from_open_clip(state)
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)
    tokens = torch.tensor([[0, 2, 3, 4, 1], [0, 5, 1, 1, 1]])
    with torch.no_grad():
        theirs = open_clip_text(state, tokens, heads=2)
        output = model.get_text_features(input_ids=tokens)
    ours = output if isinstance(output, torch.Tensor) else output.pooler_output
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 1, "state_dict": state}, file)
    pixels, prompts = torch.zeros(1, 3, 24, 24), ["a red circle"]
    one = ClipScorer("hps", str(file), processor=str(clip)).score(pixels, prompts)
    other = ClipScorer("hps", str(clip)).score(pixels, prompts)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(TwinflowError, match="whose configuration"):
        ClipScorer("hps", str(file))
    with pytest.raises(TwinflowError, match="no weight of a CLIP"):
        from_open_clip({"visual.trunk.stem.weight": torch.zeros(1)})


def test_encoders_of_transformers_give_their_own_embeddings(clip, tmp_path):
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessorPil(**size).save_pretrained(tmp_path / "dino")
    pixels = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for kind, path, width in (("dinov2", tmp_path / "dino", 16), ("clip", clip, 12)):
        extractor = open_extractor(f"{kind}:{path}")
        features = extractor(pixels)
        assert features.shape == (3, width)
        assert features.std(dim=0).min() > 0
        torch.testing.assert_close(extractor(pixels[1:2]), features[1:2], rtol=1e-4, atol=1e-5)
        assert extractor.name == f"{kind}:{path.name}"


def test_dinov2_sees_whole_pictures_squeezed_as_fd_dinov2_is_defined(tmp_path):
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
        expected = extractor.network(by_hand).pooler_output
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


def test_equal_pictures_have_no_diversity(tmp_path):
    pictures = folder_of(tmp_path / "various", 8, seed=1)
    found = SeedDiversity().measure(tmp_path / "various", pictures, cache=tmp_path / "c1")
    assert found["seed_distance"].value > 0
    assert 1 < found["vendi"].value <= 4
    for picture in pictures:
        Image.new("RGB", (24, 24), "red").save(tmp_path / "various" / picture.file)
    same = SeedDiversity().measure(tmp_path / "various", pictures, cache=tmp_path / "c2")
    assert same["seed_distance"].value == pytest.approx(0, abs=1e-12)
    assert same["vendi"].value == pytest.approx(1)
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
