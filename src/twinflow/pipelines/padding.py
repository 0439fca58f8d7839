"""Attention over repeated padding tokens, computed once (Stable Diffusion 3 without its T5 encoder).

Without T5 the stock SD3 pipeline appends 256 equal zero tokens to the prompt. SD3 gives text tokens no
positions, so the 256 stay equal through every layer, and a softmax over 256 equal keys is the softmax over one
key whose logit is larger by log 256. Keeping one token and adding that bias is the same function at a fraction
of the cost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class FoldedPaddingAttention:
    """SD3's joint attention, in which the last text token may stand for ``last_token_repeats`` equal ones.

    The number comes with the call, in ``joint_attention_kwargs``. A call without it, such as the stock
    pipeline's own with all its padding, is the stock attention bit for bit.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,  # (B, S, D) picture tokens
        encoder_hidden_states: Tensor | None = None,  # (B, L, D) text tokens
        attention_mask: Tensor | None = None,
        last_token_repeats: int = 1,
        **kwargs: object,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = _heads(attn, hidden_states, "to_q", "to_k", "to_v", "norm_q", "norm_k")
        bias = None
        if encoder_hidden_states is not None:
            text = _heads(
                attn,
                encoder_hidden_states,
                "add_q_proj",
                "add_k_proj",
                "add_v_proj",
                "norm_added_q",
                "norm_added_k",
            )
            query, key, value = (torch.cat(pair, dim=2) for pair in zip((query, key, value), text))
            if last_token_repeats > 1:
                bias = torch.zeros(1, 1, 1, key.shape[2], dtype=query.dtype, device=query.device)
                bias[..., -1] = math.log(last_token_repeats)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).flatten(2).to(query.dtype)  # (B, S + L, D)
        length = hidden_states.shape[1]
        picture = attn.to_out[1](attn.to_out[0](mixed[:, :length]))
        if encoder_hidden_states is None:
            return picture
        words = mixed[:, length:]
        return picture, (words if attn.context_pre_only else attn.to_add_out(words))


def _heads(attn: Any, x: Tensor, q: str, k: str, v: str, norm_q: str, norm_k: str) -> tuple[Tensor, ...]:
    """Query, key and value of the tokens ``x``, each (B, heads, tokens, head dimension)."""

    def split(name: str) -> Tensor:
        return getattr(attn, name)(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    query, key, value = split(q), split(k), split(v)
    query_norm, key_norm = getattr(attn, norm_q), getattr(attn, norm_k)
    return (
        query if query_norm is None else query_norm(query),
        key if key_norm is None else key_norm(key),
        value,
    )
