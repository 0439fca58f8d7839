"""Tiny pipelines that make video clips."""

from __future__ import annotations

from typing import Any

import diffusers
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    UMT5Config,
    UMT5EncoderModel,
)

from families import parts
from families.family import Family

Euler = diffusers.FlowMatchEulerDiscreteScheduler


def _wan_parts(**transformer: Any) -> dict[str, Any]:
    tokenizer = parts.t5_tokenizer()
    return dict(
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            out_channels=16,
            text_dim=32,
            freq_dim=256,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
            **transformer,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=diffusers.AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        text_encoder=parts.t5_encoder(tokenizer, kind=UMT5EncoderModel, config=UMT5Config),
        tokenizer=tokenizer,
    )


def wan() -> Any:
    return diffusers.WanPipeline(**_wan_parts(in_channels=16))


def wan_i2v() -> Any:
    """Wan 2.1 image-to-video: the source picture is channels beside the state, and tokens of CLIP beside the text."""
    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
    )
    # 16 of the state, 16 of the picture's own latents, and 4 that say which frames they are.
    made = _wan_parts(in_channels=36, image_dim=16, added_kv_proj_dim=24)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return diffusers.WanImageToVideoPipeline(**made, image_encoder=encoder, image_processor=processor)


def ltx() -> Any:
    tokenizer = parts.t5_tokenizer()
    return diffusers.LTXPipeline(
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=32,
        ),
        scheduler=Euler(
            base_image_seq_len=1024,
            base_shift=0.95,
            max_image_seq_len=4096,
            max_shift=2.05,
            shift_terminal=0.1,
            use_dynamic_shifting=True,
        ),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
        ),
        text_encoder=parts.t5_encoder(tokenizer),
        tokenizer=tokenizer,
    )


def hunyuan_video() -> Any:
    tokenizer, clip = parts.qwen_tokenizer(), parts.clip_tokenizer()
    return diffusers.HunyuanVideoPipeline(
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        ),
        scheduler=Euler(shift=7.0),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8,) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.476986,
        ),
        text_encoder=LlamaModel(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_attention_heads=4,
                num_hidden_layers=2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        tokenizer=tokenizer,
        text_encoder_2=parts.clip_encoder(clip, width=8, kind=CLIPTextModel),
        tokenizer_2=clip,
    )


WAN_CALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
HUNYUAN_CALL = {"max_sequence_length": 16, "prompt_template": {"template": "{}", "crop_start": 0}}
VIDEO_FAMILIES = (
    Family("wan", wan, WAN_CALL, video=True),
    Family(
        "wan_i2v",
        wan_i2v,
        # The tokens of text are 512 to its attention, which takes all before them for CLIP's.
        WAN_CALL | {"max_sequence_length": 512, "image": Image.new("RGB", (32, 32), (120, 60, 200))},
        video=True,
        edits=True,
    ),
    Family("ltx", ltx, {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}, video=True),
    Family(
        "hunyuan_video",
        hunyuan_video,
        {"height": 16, "width": 16, "num_frames": 9} | HUNYUAN_CALL,
        video=True,
    ),
)
