"""Names of transformers' weights in the layout that their authors published, as ComfyUI and others load it.

diffusers converts original files to its own layout (``diffusers.loaders.single_file_utils``), not back. Here are the
original names only: an ordered list of substitutions turns a diffusers name into the original one, and names that
become the same are parts of one fused weight. In which order they lie in it, and whether halves are swapped, is found
out by running diffusers' conversion on numbered rows: see :mod:`twinflow.export.single_file`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``names``: (pattern, replacement) by regular expressions, each applied once, in order. ``comfyui``: likewise from
    the original names to those that ComfyUI gives the weights as it loads such a file, and ``older``: from those to
    what earlier versions of it call them. ``why_not``: what makes it impossible to write a file.
    """

    names: tuple[tuple[str, str], ...] = ()
    comfyui: tuple[tuple[str, str], ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    why_not: str = ""

    def original(self, name: str) -> str:
        return _renamed(name, self.names)

    def in_comfyui(self, original: str) -> tuple[str, ...]:
        """Names that a LoRA in ComfyUI's format has to give the weight ``original``: two where its versions differ, for
        what has a name that one does not know is passed over there, with a line in its log."""
        name = _renamed(original, self.comfyui)
        return tuple(dict.fromkeys((name, _renamed(name, self.older))))


def _renamed(name: str, substitutions: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in substitutions:
        name = re.sub(pattern, replacement, name)
    return name


SD3 = Layout(
    names=(
        (r"^pos_embed\.pos_embed$", "pos_embed"),
        (r"^pos_embed\.proj\.", "x_embedder.proj."),
        (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
        (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
        (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
        (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
        (r"^transformer_blocks\.", "joint_blocks."),
        (r"\.(attn2?)\.to_[qkv]\.", r".x_block.\1.qkv."),
        (r"\.attn\.add_[qkv]_proj\.", ".context_block.attn.qkv."),
        (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
        (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
        (r"\.(attn2?)\.to_out\.0\.", r".x_block.\1.proj."),
        (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
        (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
        (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
        (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."),
        (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
        (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
        (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    )
)

_FLUX_STREAMS = (
    (r"^transformer_blocks\.", "double_blocks."),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"^(double_blocks\.\d+)\.attn\.to_[qkv]\.", r"\1.img_attn.qkv."),
    (r"^(double_blocks\.\d+)\.attn\.add_[qkv]_proj\.", r"\1.txt_attn.qkv."),
    (r"^(double_blocks\.\d+)\.attn\.norm_q\.weight$", r"\1.img_attn.norm.query_norm.scale"),
    (r"^(double_blocks\.\d+)\.attn\.norm_k\.weight$", r"\1.img_attn.norm.key_norm.scale"),
    (r"^(double_blocks\.\d+)\.attn\.norm_added_q\.weight$", r"\1.txt_attn.norm.query_norm.scale"),
    (r"^(double_blocks\.\d+)\.attn\.norm_added_k\.weight$", r"\1.txt_attn.norm.key_norm.scale"),
    (r"^(double_blocks\.\d+)\.attn\.to_out\.0\.", r"\1.img_attn.proj."),
    (r"^(double_blocks\.\d+)\.attn\.to_add_out\.", r"\1.txt_attn.proj."),
    (r"^(single_blocks\.\d+)\.attn\.norm_q\.weight$", r"\1.norm.query_norm.scale"),
    (r"^(single_blocks\.\d+)\.attn\.norm_k\.weight$", r"\1.norm.key_norm.scale"),
    (r"^x_embedder\.", "img_in."),
    (r"^context_embedder\.", "txt_in."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
)

# What ComfyUI calls the norms of queries and keys, and what its older versions do, as the authors.
_FLUX_NORMS = ((r"\.(query|key)_norm\.scale$", r".\1_norm.weight"),)
_FLUX_NORMS_BEFORE = ((r"\.(query|key)_norm\.weight$", r".\1_norm.scale"),)

FLUX = Layout(
    names=(
        *_FLUX_STREAMS,
        (r"^time_text_embed\.timestep_embedder\.", "time_in."),
        (r"^time_text_embed\.guidance_embedder\.", "guidance_in."),
        (r"^time_text_embed\.text_embedder\.", "vector_in."),
        (r"^((?:time|guidance|vector)_in)\.linear_1\.", r"\1.in_layer."),
        (r"^((?:time|guidance|vector)_in)\.linear_2\.", r"\1.out_layer."),
        (r"\.norm1\.linear\.", ".img_mod.lin."),
        (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
        (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
        (r"\.ff\.net\.2\.", ".img_mlp.2."),
        (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
        (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
        (r"^(single_blocks\.\d+)\.norm\.linear\.", r"\1.modulation.lin."),
        (r"^(single_blocks\.\d+)\.(?:attn\.to_[qkv]|proj_mlp)\.", r"\1.linear1."),
        (r"^(single_blocks\.\d+)\.proj_out\.", r"\1.linear2."),
    ),
    comfyui=_FLUX_NORMS,
    older=_FLUX_NORMS_BEFORE,
)

FLUX2 = Layout(
    names=(
        *_FLUX_STREAMS,
        (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
        (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
        (r"^time_guidance_embed\.guidance_embedder\.linear_1\.", "guidance_in.in_layer."),
        (r"^time_guidance_embed\.guidance_embedder\.linear_2\.", "guidance_in.out_layer."),
        (r"^((?:double|single)_stream_modulation(?:_img|_txt)?)\.linear\.", r"\1.lin."),
        (r"\.ff\.linear_in\.", ".img_mlp.0."),
        (r"\.ff\.linear_out\.", ".img_mlp.2."),
        (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
        (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
        (r"^(single_blocks\.\d+)\.attn\.to_qkv_mlp_proj\.", r"\1.linear1."),
        (r"^(single_blocks\.\d+)\.attn\.to_out\.", r"\1.linear2."),
    ),
    comfyui=_FLUX_NORMS,
    older=_FLUX_NORMS_BEFORE,
)

LTX = Layout(
    names=(
        (r"^proj_in\.", "patchify_proj."),
        (r"^time_embed\.", "adaln_single."),
        (r"\.norm_([qk])\.", r".\1_norm."),
    )
)

WAN = Layout(
    names=(
        (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
        (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
        (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
        (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
        (r"^condition_embedder\.time_proj\.", "time_projection.1."),
        (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
        (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
        (r"^scale_shift_table$", "head.modulation"),
        (r"^proj_out\.", "head.head."),
        (r"\.scale_shift_table$", ".modulation"),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_out\.0\.", ".o."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.add_([kv])_proj\.", r".\1_img."),
        (r"\.norm_added_k\.", ".norm_k_img."),
        (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
        (r"\.ffn\.net\.2\.", ".ffn.2."),
        (r"\.norm2\.", ".norm_swapped."),
        (r"\.norm3\.", ".norm2."),
        (r"\.norm_swapped\.", ".norm3."),
    )
)

HUNYUAN_VIDEO = Layout(
    names=(
        (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_1\.", "txt_in.t_embedder.mlp.0."),
        (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_2\.", "txt_in.t_embedder.mlp.2."),
        (r"^context_embedder\.time_text_embed\.text_embedder\.", "txt_in.c_embedder."),
        (r"^context_embedder\.proj_in\.", "txt_in.input_embedder."),
        (
            r"^context_embedder\.token_refiner\.refiner_blocks\.",
            "txt_in.individual_token_refiner.blocks.",
        ),
        (r"^(txt_in\..*)\.attn\.to_[qkv]\.", r"\1.self_attn_qkv."),
        (r"^(txt_in\..*)\.attn\.to_out\.0\.", r"\1.self_attn_proj."),
        (r"^(txt_in\..*)\.norm_out\.linear\.", r"\1.adaLN_modulation.1."),
        (r"^(txt_in\..*)\.ff\.net\.0\.proj\.", r"\1.mlp.fc1."),
        (r"^(txt_in\..*)\.ff\.net\.2\.", r"\1.mlp.fc2."),
        (r"^time_text_embed\.timestep_embedder\.linear_1\.", "time_in.mlp.0."),
        (r"^time_text_embed\.timestep_embedder\.linear_2\.", "time_in.mlp.2."),
        (r"^time_text_embed\.guidance_embedder\.linear_1\.", "guidance_in.mlp.0."),
        (r"^time_text_embed\.guidance_embedder\.linear_2\.", "guidance_in.mlp.2."),
        (r"^time_text_embed\.text_embedder\.linear_1\.", "vector_in.in_layer."),
        (r"^time_text_embed\.text_embedder\.linear_2\.", "vector_in.out_layer."),
        (r"^x_embedder\.", "img_in."),
        (r"^transformer_blocks\.", "double_blocks."),
        (r"^single_transformer_blocks\.", "single_blocks."),
        (r"^(double_blocks\.\d+)\.attn\.to_[qkv]\.", r"\1.img_attn_qkv."),
        (r"^(double_blocks\.\d+)\.attn\.add_[qkv]_proj\.", r"\1.txt_attn_qkv."),
        (r"^(double_blocks\.\d+)\.attn\.norm_added_([qk])\.", r"\1.txt_attn_\2_norm."),
        (r"^(double_blocks\.\d+)\.attn\.norm_([qk])\.", r"\1.img_attn_\2_norm."),
        (r"^(double_blocks\.\d+)\.attn\.to_out\.0\.", r"\1.img_attn_proj."),
        (r"^(double_blocks\.\d+)\.attn\.to_add_out\.", r"\1.txt_attn_proj."),
        (r"\.norm1\.linear\.", ".img_mod.linear."),
        (r"\.norm1_context\.linear\.", ".txt_mod.linear."),
        (r"\.ff\.net\.0\.proj\.", ".img_mlp.fc1."),
        (r"\.ff\.net\.2\.", ".img_mlp.fc2."),
        (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.fc1."),
        (r"\.ff_context\.net\.2\.", ".txt_mlp.fc2."),
        (r"^(single_blocks\.\d+)\.(?:attn\.to_[qkv]|proj_mlp)\.", r"\1.linear1."),
        (r"^(single_blocks\.\d+)\.proj_out\.", r"\1.linear2."),
        (r"^(single_blocks\.\d+)\.attn\.norm_([qk])\.", r"\1.\2_norm."),
        (r"^(single_blocks\.\d+)\.norm\.linear\.", r"\1.modulation.linear."),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    ),
    comfyui=(  # it loads them into a network with the names of FLUX.1
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.mlp\.0\.", r"\1.in_layer."),
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.mlp\.2\.", r"\1.out_layer."),
        (r"^(txt_in\.c_embedder)\.linear_1\.", r"\1.in_layer."),
        (r"^(txt_in\.c_embedder)\.linear_2\.", r"\1.out_layer."),
        (r"_attn_(qkv|proj)\.", r"_attn.\1."),
        (r"mlp\.fc1\.", "mlp.0."),
        (r"mlp\.fc2\.", "mlp.2."),
        (r"(_mod|\.modulation)\.linear\.", r"\1.lin."),
        (r"[._]q_norm\.", ".norm.query_norm."),
        (r"[._]k_norm\.", ".norm.key_norm."),
    ),
    older=_FLUX_NORMS_BEFORE,
)

LUMINA2 = Layout(
    names=(
        (r"^time_caption_embed\.caption_embedder\.", "cap_embedder."),
        (r"^time_caption_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
        (r"^time_caption_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
        (r"^norm_out\.linear_1\.", "final_layer.adaLN_modulation.1."),
        (r"^norm_out\.linear_2\.", "final_layer.linear."),
        (r"^(context_refiner\.\d+)\.norm1\.", r"\1.attention_norm1."),
        (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
        (r"\.norm1\.norm\.", ".attention_norm1."),
        (r"\.norm2\.", ".attention_norm2."),
        (r"\.attn\.to_[qkv]\.", ".attention.qkv."),
        (r"\.attn\.to_out\.0\.", ".attention.out."),
        (r"\.attn\.norm_([qk])\.", r".attention.\1_norm."),
        (r"\.feed_forward\.linear_([123])\.", r".feed_forward.w\1."),
    )
)

Z_IMAGE = Layout(
    names=(
        (r"^all_final_layer\.2-1\.", "final_layer."),
        (r"^all_x_embedder\.2-1\.", "x_embedder."),
        (r"\.attention\.to_[qkv]\.", ".attention.qkv."),
        (r"\.attention\.to_out\.0\.", ".attention.out."),
        (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
    )
)

SANA = Layout(
    why_not="SANA's original file also holds y_embedder.y_embedding, the trained embedding of no prompt, which "
    "diffusers' weights lack"
)

# By the class's name in diffusers. The authors of Qwen-Image published in diffusers' own layout.
LAYOUTS: dict[str, Layout] = {
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": FLUX,
    "Flux2Transformer2DModel": FLUX2,
    "LTXVideoTransformer3DModel": LTX,
    "WanTransformer3DModel": WAN,
    "HunyuanVideoTransformer3DModel": HUNYUAN_VIDEO,
    "Lumina2Transformer2DModel": LUMINA2,
    "ZImageTransformer2DModel": Z_IMAGE,
    "QwenImageTransformer2DModel": Layout(),
    "SanaTransformer2DModel": SANA,
}
