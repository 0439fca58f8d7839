"""CLIPScore, PickScore and HPSv2.1: a CLIP of random weights, in both layouts, beside arithmetic written out."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from twinflow.errors import TwinflowError
from twinflow.evaluation.clip_scores import ClipScorer, from_open_clip
from twinflow.evaluation.pictures import read_pixels

from .folders import folder_of


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
        logits = scorer.network(
            **{k: v.to(scorer.network.device) for k, v in (inputs | images).items()}
        ).logits_per_image.cpu()
    torch.testing.assert_close(logits.diagonal().double(), scale * cosines, rtol=1e-4, atol=1e-5)
    # A picture's score does not depend on its neighbours, nor on the padding that their prompts bring.
    alone = torch.cat([scorer.score(pixels[i : i + 1], prompts[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, scale * cosines, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        ClipScorer("hps", str(clip), prefix="red ").score(pixels, prompts) / 100, cosines
    )


def test_clip_score_is_torchmetrics(clip, tmp_path):
    multimodal = pytest.importorskip("torchmetrics.multimodal.clip_score")
    from transformers import CLIPModel, CLIPProcessor

    class Plain(CLIPModel):
        """torchmetrics wants the features themselves, as transformers 4 gave them."""

        def get_image_features(self, *arguments, **options):
            return super().get_image_features(*arguments, **options).pooler_output

        def get_text_features(self, *arguments, **options):
            return super().get_text_features(*arguments, **options).pooler_output

    turned = shutil.copytree(
        clip, tmp_path / "turned"
    )  # this one's cosines are below zero, where all scores are 0
    model = CLIPModel.from_pretrained(clip)
    model.text_projection.weight.data.neg_()
    model.save_pretrained(turned)
    scorer = ClipScorer("clip", str(turned))
    both = CLIPProcessor(image_processor=scorer.images, tokenizer=scorer.tokenizer)
    theirs = multimodal.CLIPScore(model_name_or_path=lambda: (Plain.from_pretrained(turned), both))
    pictures = folder_of(tmp_path / "p", 4, seed=1)
    pixels = next(iter(read_pixels(tmp_path / "p", pictures)))
    prompts = [picture.prompt for picture in pictures]
    levels = ((pixels + 1) * 127.5).round().byte()
    expected = [theirs(picture, prompt).item() for picture, prompt in zip(levels, prompts)]
    assert min(expected) > 1
    assert scorer.score(pixels, prompts).tolist() == pytest.approx(expected, abs=1e-3)


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
