"""How well pictures suit their prompts, by CLIP models: CLIPScore, PickScore, HPSv2.1.

All three are a cosine of CLIP embeddings; they differ in the weights and in the scale.

- CLIPScore (arXiv 2104.08718): ``100 max(cos, 0)``. Name the model with the number.
- PickScore (arXiv 2305.01569): ``exp(logit_scale) cos`` with ``yuvalkirstain/PickScore_v1``.
- HPSv2.1 (arXiv 2306.09341): ``100 cos`` with ``HPS_v2.1_compressed.pt``, a CLIP ViT-H/14 in open_clip's layout.
  It sees the whole of a picture, with black bars where it is not square; the other two see the square in its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.evaluation.fingerprint import fingerprint, weights_name
from twinflow.evaluation.ranks import device
from twinflow.evaluation.weights_file import read_weights
from twinflow.pipelines import to_pil

SCALES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "clip": lambda cosine, scale: 100 * cosine.clamp_min(0),
    "pickscore": lambda cosine, scale: scale * cosine,
    "hps": lambda cosine, scale: 100 * cosine,
}


class ClipScorer:
    """``score(pixels, prompts)`` with one of :data:`SCALES`. ``processor``: where preprocessing and tokenizer lie,
    for weights that came without. ``prefix`` is put before each prompt."""

    def __init__(self, kind: str, model: str, *, processor: str | None = None, prefix: str = "") -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.kind, self.prefix = kind, prefix
        self.processor = weights_name(processor) if processor else ""  # beside the model's own
        beside = processor or model
        try:
            self.network = _network(model, like=processor).to(device()).eval()
            self.images = AutoImageProcessor.from_pretrained(beside)
            self.tokenizer = AutoTokenizer.from_pretrained(beside)
        except (OSError, ValueError) as error:
            raise TwinflowError(f"{kind}: the CLIP model {model} can't be loaded: {error}") from error
        self.name = f"{model.rstrip('/').rpartition('/')[2]} {fingerprint(model)}"
        self.longest = self.network.config.text_config.max_position_embeddings
        self.side: int = self.network.config.vision_config.image_size

    @torch.no_grad()
    def score(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N,) fp64 of pixels (N, 3, H, W) in [-1, 1] and N prompts; long prompts are cut at the model's length."""
        shown = to_pil(pixels)
        if self.kind == "hps":
            shown = [whole(image, self.side) for image in shown]
        images = self.images(images=shown, return_tensors="pt")["pixel_values"]
        texts = self.tokenizer(
            [self.prefix + prompt for prompt in prompts],
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
        )
        where = self.network.device
        seen = _embedding(self.network.get_image_features(pixel_values=images.to(where)))
        said = _embedding(
            self.network.get_text_features(
                input_ids=texts["input_ids"].to(where), attention_mask=texts["attention_mask"].to(where)
            )
        )
        cosine = torch.nn.functional.cosine_similarity(seen, said)
        return SCALES[self.kind](cosine, self.network.logit_scale.double().exp().item()).cpu()


def whole(image: Image.Image, side: int) -> Image.Image:
    """A picture as HPSv2 prepares it: its longer side is ``side``, black bars make it a square, nothing is cut off.

    A square one stays as it is, since the model's own preprocessing does the same with it.
    """
    width, height = image.size
    if width == height:
        return image
    scale = side / max(width, height)
    size = (round(width * scale), round(height * scale))
    square = Image.new("RGB", (side, side))
    square.paste(image.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _embedding(output: Any) -> Tensor:
    """transformers 5 returns an output object, 4 returned the tensor."""
    return (output if isinstance(output, Tensor) else output.pooler_output).double()


def _network(model: str, *, like: str | None) -> Any:
    """A CLIP model in transformers' layout, or a file in open_clip's with the configuration of ``like``."""
    from transformers import CLIPConfig, CLIPModel

    if not Path(model).is_file():
        return CLIPModel.from_pretrained(model, use_safetensors=True)
    if like is None:
        raise TwinflowError(f"{model} has weights alone: say whose configuration they have, processor=MODEL")
    network = CLIPModel(CLIPConfig.from_pretrained(like))
    missing, unexpected = network.load_state_dict(
        from_open_clip(read_weights(model, what="a CLIP")), strict=False
    )
    wrong = [name for name in missing if not name.endswith("position_ids")] + list(unexpected)
    if wrong:
        raise TwinflowError(f"{model} does not fit the configuration of {like}: {', '.join(wrong[:4])} …")
    return network


_TOWERS = {"visual.": "vision_model.", "": "text_model."}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_DROPPED = ("attn_mask",)  # a constant


def from_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's weights in transformers' names and shapes, from open_clip's. ``TwinflowError`` names a stranger."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _OUTSIDE:
            found[_OUTSIDE[name]] = value
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = value.T.contiguous()
        elif name not in _DROPPED:
            found |= _block(name, value)
    return found


def _block(name: str, value: Tensor) -> dict[str, Tensor]:
    """Of one transformer block: ``[visual.]transformer.resblocks.3.attn.in_proj_weight``."""
    tower = "visual." if name.startswith("visual.") else ""
    start = f"{tower}transformer.resblocks."
    number, _, rest = name.removeprefix(start).partition(".")
    if not name.startswith(start) or not number.isdecimal():
        raise TwinflowError(f"{name} is no weight of a CLIP in open_clip's layout")
    home = f"{_TOWERS[tower]}encoder.layers.{number}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {
            f"{home}self_attn.{part}_proj.{kind}": rows.clone() for part, rows in zip("qkv", value.chunk(3))
        }
    part, _, kind = rest.rpartition(".")
    if part not in _BLOCK:
        raise TwinflowError(f"{name} is no weight of a CLIP in open_clip's layout")
    return {f"{home}{_BLOCK[part]}.{kind}": value}
