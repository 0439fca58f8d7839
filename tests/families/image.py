"""Tiny pipelines that draw and edit pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
from PIL import Image
from transformers import (
    CLIPTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from families import parts
from families.family import Family

Euler = diffusers.FlowMatchEulerDiscreteScheduler
SMALL = {"height": 32, "width": 32}


def sd3() -> Any:
    clip, t5 = parts.clip_tokenizer(), parts.t5_tokenizer()
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),  # as 3.5 Medium has in its first blocks
        ),
        scheduler=Euler(shift=3.0),
        vae=parts.image_autoencoder(16),
        text_encoder=parts.clip_encoder(clip, width=16),
        tokenizer=clip,
        text_encoder_2=parts.clip_encoder(clip, width=16),
        tokenizer_2=clip,
        text_encoder_3=parts.t5_encoder(t5),
        tokenizer_3=t5,
    )


def flux() -> Any:
    clip, t5 = parts.clip_tokenizer(), parts.t5_tokenizer()
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=Euler(use_dynamic_shifting=True),
        vae=parts.image_autoencoder(4),
        text_encoder=parts.clip_encoder(clip, width=32, kind=CLIPTextModel),
        tokenizer=clip,
        text_encoder_2=parts.t5_encoder(t5),
        tokenizer_2=t5,
    )


def flux2_klein() -> Any:
    tokenizer = parts.qwen_tokenizer()
    return diffusers.Flux2KleinPipeline(
        transformer=diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=Euler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**parts.qwen3_sizes(tokenizer))),
        tokenizer=tokenizer,
    )


def sana() -> Any:
    tokenizer = parts.gemma_tokenizer()
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        text_encoder=parts.gemma_encoder(tokenizer),
        tokenizer=tokenizer,
    )


def _qwen_parts(**transformer: Any) -> dict[str, Any]:
    tokenizer = parts.qwen_tokenizer()
    return {
        "transformer": diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            **transformer,
        ),
        "scheduler": Euler(
            base_image_seq_len=256,
            base_shift=0.5,
            max_image_seq_len=8192,
            max_shift=0.9,
            shift_terminal=0.02,
            use_dynamic_shifting=True,
        ),
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.3, 0.7, 1.1, 2.0],
        ),
        "text_encoder": parts.qwen_encoder(tokenizer),
        "tokenizer": tokenizer,
    }


def qwen() -> Any:
    return diffusers.QwenImagePipeline(**_qwen_parts())


def qwen_edit() -> Any:
    """In the manner of Qwen-Image-Edit-2511: the tokens of the source picture are at time 0."""
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    def save_pretrained(self: Any, folder: Any, **_: Any) -> None:
        """The files of a real folder, its part for videos included."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        Path(folder, "chat_template.jinja").write_text(self.chat_template)
        Path(folder, "video_preprocessor_config.json").write_text(
            json.dumps({"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 14})
        )

    # Without the video processor, which needs torchvision and which pictures do not.
    own = {
        "check_argument_for_proper_class": lambda self, name, part: None,
        "save_pretrained": save_pretrained,
        "__module__": Qwen2VLProcessor.__module__,
    }
    Processor = type("Qwen2VLProcessor", (Qwen2VLProcessor,), own)
    made = _qwen_parts(zero_cond_t=True)
    tokenizer = made["tokenizer"]
    processor = Processor(
        image_processor=Qwen2VLImageProcessorPil(),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=tokenizer.chat_template,
    )
    return diffusers.QwenImageEditPlusPipeline(**made, processor=processor)


def zimage() -> Any:
    tokenizer = parts.qwen_tokenizer()
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        scheduler=Euler(shift=3.0),
        vae=parts.image_autoencoder(16),
        text_encoder=Qwen3Model(Qwen3Config(**parts.qwen3_sizes(tokenizer))),
        tokenizer=tokenizer,
    )


def lumina2() -> Any:
    tokenizer = parts.gemma_tokenizer()
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            cap_feat_dim=16,
        ),
        scheduler=Euler(use_dynamic_shifting=True),
        vae=parts.image_autoencoder(4, levels=4),
        text_encoder=parts.gemma_encoder(tokenizer),
        tokenizer=tokenizer,
    )


SANA_CALL = {"complex_human_instruction": None, "use_resolution_binning": False, "max_sequence_length": 32}
IMAGE_FAMILIES = (
    Family("sd3", sd3, SMALL | {"max_sequence_length": 16}),
    Family("flux", flux, SMALL | {"max_sequence_length": 32}),
    Family("flux2_klein", flux2_klein, SMALL | {"max_sequence_length": 64, "text_encoder_out_layers": (1,)}),
    Family("sana", sana, SMALL | SANA_CALL),
    Family("qwen", qwen, SMALL | {"max_sequence_length": 512}),
    Family(
        "qwen_edit",
        qwen_edit,
        SMALL | {"max_sequence_length": 64, "image": Image.new("RGB", (32, 32), (120, 60, 200))},
        edits=True,
    ),
    Family("zimage", zimage, SMALL | {"max_sequence_length": 64}),
    Family("lumina2", lumina2, SMALL | {"max_sequence_length": 64}),
)
