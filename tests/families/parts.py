"""Tokenizers, text encoders and autoencoders, as small as they get. Vocabularies are single bytes."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
ASCII = [chr(code) for code in range(33, 127)]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}


def clip_tokenizer() -> CLIPTokenizer:
    pieces = [*BYTES, *(byte + "</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab=_numbered(pieces), merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(piece, -2.0 - 0.001 * i) for i, piece in enumerate(ASCII)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=64)


def qwen_tokenizer() -> Qwen2Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += [
        f"<|{name}|>" for name in ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
    ]
    tokenizer = Qwen2Tokenizer(
        vocab=_numbered([*BYTES, *special]),
        merges=[],
        model_max_length=256,
        additional_special_tokens=special[1:],
    )
    tokenizer.padding_side = "right"
    tokenizer.chat_template = CHAT
    return tokenizer


def gemma_tokenizer() -> GemmaTokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    return GemmaTokenizer(vocab=_numbered([*pieces, *ASCII]), merges=[], model_max_length=512)


def clip_encoder(tokenizer: Any, *, width: int, kind: type = CLIPTextModelWithProjection) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            projection_dim=width,
            num_attention_heads=2,
            num_hidden_layers=2,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def t5_encoder(tokenizer: Any, *, kind: type = T5EncoderModel, config: type = T5Config) -> Any:
    return kind(
        config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    )


def qwen_sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }


def qwen3_sizes(tokenizer: Any) -> dict[str, Any]:
    return {**qwen_sizes(tokenizer), "head_dim": 8, "max_position_embeddings": 512}


def gemma_encoder(tokenizer: Any) -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            head_dim=8,
            hidden_size=16,
            intermediate_size=32,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=2,
            attn_implementation="eager",
        )
    )


def image_autoencoder(channels: int, *, levels: int = 2) -> AutoencoderKL:
    """Latents are ``2 ** (levels - 1)`` times smaller than the picture."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def qwen_encoder(tokenizer: Any) -> Any:
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    text = {**qwen_sizes(tokenizer), "rope_scaling": rope, "rope_theta": 1e6}
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
