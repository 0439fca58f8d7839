"""OpenMMLab's Mask2Former checkpoint (mmdet 2.x, Swin, COCO instances) as a transformers folder.

It is the detector that GenEval's published numbers come from; with this, neither mmdet nor mmcv is needed.

Most parameters only change their names. Two change their order: a Swin block's joint ``qkv`` becomes three matrices,
and the patch merging's 4C inputs are ordered by channel first in mmdet (``nn.Unfold``), by pixel first in transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval.detector import PROVENANCE_FILE
from twinflow.evaluation.geneval.requirements import MMDET_SHA256_START, MMDET_URL
from twinflow.evaluation.weights_file import read_weights

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

ENCODER = "model.pixel_level_module.encoder."
DECODER = "model.pixel_level_module.decoder."
TRANSFORMER = "model.transformer_module."

# mmdet's name (a whole-match pattern) -> transformers' name. The first pattern that matches is taken.
RENAMED: tuple[tuple[str, str], ...] = (
    (r"backbone\.patch_embed\.projection\.(.+)", ENCODER + r"swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm\.(.+)", ENCODER + r"swin.embeddings.norm.\1"),
    (r"backbone\.stages\.(\d+)\.downsample\.(.+)", ENCODER + r"swin.encoder.layers.\1.downsample.\2"),
    *(
        (
            rf"backbone\.stages\.(\d+)\.blocks\.(\d+)\.{re.escape(old)}(.*)",
            rf"{ENCODER}swin.encoder.layers.\1.blocks.\2.{new}\3",
        )
        for old, new in (
            (
                "attn.w_msa.relative_position_bias_table",
                "attention.relative_position_bias.relative_position_bias_table",
            ),
            ("attn.w_msa.proj.", "attention.o_proj."),
            ("norm1.", "layernorm_before."),
            ("norm2.", "layernorm_after."),
            ("ffn.layers.0.0.", "mlp.fc1."),
            ("ffn.layers.1.", "mlp.fc2."),
        )
    ),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.conv\.(.+)", DECODER + r"input_projections.\1.0.\2"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.gn\.(.+)", DECODER + r"input_projections.\1.1.\2"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv\.(.+)", DECODER + r"adapter_1.0.\1"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn\.(.+)", DECODER + r"adapter_1.1.\1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv\.(.+)", DECODER + r"layer_1.0.\1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn\.(.+)", DECODER + r"layer_1.1.\1"),
    (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", DECODER + "level_embed"),
    (r"panoptic_head\.pixel_decoder\.mask_feature\.(.+)", DECODER + r"mask_projection.\1"),
    *(
        (
            rf"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.{re.escape(old)}(.+)",
            rf"{DECODER}encoder.layers.\1.{new}\2",
        )
        for old, new in (
            ("attentions.0.", "self_attn."),
            ("ffns.0.layers.0.0.", "fc1."),
            ("ffns.0.layers.1.", "fc2."),
            ("norms.0.", "self_attn_layer_norm."),
            ("norms.1.", "final_layer_norm."),
        )
    ),
    (r"panoptic_head\.query_embed\.weight", TRANSFORMER + "queries_embedder.weight"),
    (r"panoptic_head\.query_feat\.weight", TRANSFORMER + "queries_features.weight"),
    (r"panoptic_head\.level_embed\.weight", TRANSFORMER + "level_embed.weight"),
    (r"panoptic_head\.cls_embed\.(.+)", r"class_predictor.\1"),
    (r"panoptic_head\.transformer_decoder\.post_norm\.(.+)", TRANSFORMER + r"decoder.layernorm.\1"),
    *(
        (
            rf"panoptic_head\.transformer_decoder\.layers\.(\d+)\.{re.escape(old)}(.+)",
            rf"{TRANSFORMER}decoder.layers.\1.{new}\2",
        )
        for old, new in (  # in the order of a layer: masked cross-attention, self-attention, feed-forward
            ("attentions.0.attn.", "cross_attn."),
            ("norms.0.", "cross_attn_layer_norm."),
            ("attentions.1.attn.out_proj.", "self_attn.out_proj."),
            ("norms.1.", "self_attn_layer_norm."),
            ("ffns.0.layers.0.0.", "fc1."),
            ("ffns.0.layers.1.", "fc2."),
            ("norms.2.", "final_layer_norm."),
        )
    ),
)
LEVELS, POINTS = 3, 4  # of the pixel decoder's deformable attention
IGNORED = re.compile(r".*relative_position_index|panoptic_head\.loss_.*")
SWIN_QKV = re.compile(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.qkv\.(weight|bias)")
SELF_QKV = re.compile(
    r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.attentions\.1\.attn\.in_proj_(weight|bias)"
)
STAGE_NORM = re.compile(r"backbone\.norm(\d)\.(weight|bias)")
MASK_MLP = re.compile(r"panoptic_head\.mask_embed\.(\d)\.(weight|bias)")
DOWNSAMPLE = re.compile(r"backbone\.stages\.\d+\.downsample\.")


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmdet's state dict with transformers' names and orders. Raises TwinflowError for a name that it doesn't know."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if not IGNORED.fullmatch(name):
            converted |= _convert(name, value)
    return {name: value.detach().clone().contiguous() for name, value in converted.items()}


def _convert(name: str, value: Tensor) -> dict[str, Tensor]:
    if match := SWIN_QKV.fullmatch(name):
        stage, block, kind = match.groups()
        prefix = f"{ENCODER}swin.encoder.layers.{stage}.blocks.{block}.attention."
        return {f"{prefix}{part}_proj.{kind}": rows for part, rows in zip("qkv", value.chunk(3))}
    if match := SELF_QKV.fullmatch(name):
        prefix = f"{TRANSFORMER}decoder.layers.{match[1]}.self_attn."
        return {f"{prefix}{part}_proj.{match[2]}": rows for part, rows in zip("qkv", value.chunk(3))}
    if match := STAGE_NORM.fullmatch(name):
        stage = int(match[1])
        named = {f"{ENCODER}hidden_states_norms.stage{stage + 1}.{match[2]}": value}
        if stage == 3:  # transformers' Swin owns a last norm, too, which no mask depends on
            named[f"{ENCODER}swin.layernorm.{match[2]}"] = value
        return named
    if match := MASK_MLP.fullmatch(name):  # linear layers at 0, 2, 4 of a sequence with activations
        place = int(match[1]) // 2
        return {f"{TRANSFORMER}decoder.mask_predictor.mask_embedder.{place}.0.{match[2]}": value}
    if DOWNSAMPLE.match(name):
        value = pixel_first(value)
    for pattern, replacement in RENAMED:
        if re.fullmatch(pattern, name):
            return {re.sub(pattern, replacement, name): value}
    raise TwinflowError(
        f"{name!r} is no parameter of mmdet 2.x's Mask2Former with a Swin backbone: is this the checkpoint of "
        f"{MMDET_URL}?"
    )


def pixel_first(values: Tensor) -> Tensor:
    """(…, 4C) ordered channel first over the 2 x 2 pixels (0,0), (0,1), (1,0), (1,1) -> pixel first over
    (0,0), (1,0), (0,1), (1,1), in (row, column)."""
    channels = values.shape[-1] // 4
    by_pixel = values.reshape(*values.shape[:-1], channels, 4).transpose(-1, -2)
    return by_pixel[..., [0, 2, 1, 3], :].reshape(values.shape)


def infer_config(state: Mapping[str, Tensor]) -> Mask2FormerConfig:
    """The configuration that mmdet's state dict belongs to, read off its shapes.

    The heads of the masked attention leave no trace in them; they are taken to be as many as the pixel decoder has,
    as in every published checkpoint.
    """
    from transformers import Mask2FormerConfig, SwinConfig

    def count(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    try:
        stages = count(r"backbone\.stages\.(\d+)\.")
        tables = [
            state[f"backbone.stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table"]
            for i in range(stages)
        ]
        head = "panoptic_head."
        embedding = state["backbone.patch_embed.projection.weight"]
        hidden = state[f"{head}query_feat.weight"]
        weights = state[f"{head}pixel_decoder.encoder.layers.0.attentions.0.attention_weights.weight"]
        backbone: dict[str, Any] = dict(
            depths=[count(rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(stages)],
            num_heads=[table.shape[1] for table in tables],
            window_size=(round(tables[0].shape[0] ** 0.5) + 1) // 2,  # the table has (2w - 1)² rows
            embed_dim=embedding.shape[0],
            patch_size=embedding.shape[-1],
            mlp_ratio=state["backbone.stages.0.blocks.0.ffn.layers.0.0.weight"].shape[0] / embedding.shape[0],
            image_size=224,
            out_features=[f"stage{i + 1}" for i in range(stages)],
        )
        model: dict[str, Any] = dict(
            num_labels=state[f"{head}cls_embed.weight"].shape[0] - 1,
            num_queries=hidden.shape[0],
            hidden_dim=hidden.shape[1],
            feature_size=state[f"{head}pixel_decoder.level_encoding.weight"].shape[1],
            mask_feature_size=state[f"{head}pixel_decoder.mask_feature.weight"].shape[0],
            encoder_layers=count(r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\."),
            encoder_feedforward_dim=state[
                f"{head}pixel_decoder.encoder.layers.0.ffns.0.layers.0.0.weight"
            ].shape[0],
            decoder_layers=count(r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.") + 1,
            dim_feedforward=state[f"{head}transformer_decoder.layers.0.ffns.0.layers.0.0.weight"].shape[0],
            num_attention_heads=weights.shape[0] // (LEVELS * POINTS),
        )
        return Mask2FormerConfig(backbone_config=SwinConfig(**backbone), **model)
    except KeyError as error:
        raise TwinflowError(
            f"the checkpoint has no {error}: it is not a Mask2Former of mmdet 2.x with a Swin backbone. GenEval's is "
            f"{MMDET_URL}"
        ) from error


def convert_model(state: Mapping[str, Tensor]) -> Mask2FormerForUniversalSegmentation:
    """transformers' model with the weights of mmdet's state dict; every parameter must be there."""
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation(infer_config(state))
    result = model.load_state_dict(convert_state_dict(state), strict=False)
    missing = [name for name in result.missing_keys if not name.startswith("criterion.")]  # of training
    if missing or result.unexpected_keys:
        raise TwinflowError(
            f"the checkpoint does not fill transformers' Mask2Former: missing {missing[:3]}, unknown "
            f"{result.unexpected_keys[:3]}. Is it complete, and is transformers the version of constraints.txt?"
        )
    return model.eval()


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file, read without running any code that it may contain."""
    if not Path(path).exists():
        raise TwinflowError(f"there is no checkpoint {path}; GenEval's is {MMDET_URL}")
    remedy = (
        f"Is it complete, and GenEval's ({MMDET_URL})? Where you trust the file, load it yourself and give its state "
        "dict to twinflow.evaluation.geneval.convert_model."
    )
    return read_weights(path, what="mmdet's Mask2Former", remedy=remedy)


def convert_checkpoint(path: str | Path, output: str | Path) -> str:
    """Convert mmdet's ``.pth`` to a transformers folder (safetensors); returns the detector's name in results.

    The name tells the first digits of the file's SHA-256, which OpenMMLab also writes into its file names.
    """
    output = Path(output)
    ours = not output.exists() or (output / PROVENANCE_FILE).is_file()
    if not ours and not (output.is_dir() and not any(output.iterdir())):
        raise TwinflowError(f"{output} is there and is no converted detector: give another folder to write")
    model = convert_model(read_checkpoint(path))
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    official = digest.startswith(MMDET_SHA256_START)
    kind = "mmdet Mask2Former Swin-S" if official else f"mmdet Mask2Former {Path(path).name}"
    name = f"{kind} ({digest[:8]})"
    model.save_pretrained(output)
    provenance = {"name": name, "official": official, "source": Path(path).name, "sha256": digest}
    (output / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=1) + "\n")
    return name
