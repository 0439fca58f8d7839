"""The few families that need more than what watching the pipeline tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.adapter import Adapter
from twinflow.pipelines.condition import TOKENS, Condition
from twinflow.pipelines.padding import FoldedPaddingAttention
from twinflow.pipelines.watching import Stop, Watcher, run_stock
from twinflow.pipelines.wiring import PROMPTS

TOKENS_MASK = "encoder_attention_mask"


class FoldedStableDiffusion3(Adapter):
    """Stable Diffusion 3 whose T5 is absent or silent: its many equal tokens are computed once."""

    def __init__(self, pipe: Any, *, call: Mapping[str, Any] | None = None) -> None:
        super().__init__(pipe, call=call)
        self.padding_tokens = int((call or {}).get("max_sequence_length", 256))  # the stock call's default
        tokens = super()._encode(["a"]).tensors[TOKENS][:, -self.padding_tokens :]
        self.folds = _all_equal(tokens)
        if self.folds:
            pipe.transformer.set_attn_processor(FoldedPaddingAttention())

    def _encode(self, prompts: list[str], image: Any = None, size: Any = None) -> Condition:
        cond = super()._encode(prompts, image, size)
        if not getattr(self, "folds", False):
            return cond
        tokens = cond.tensors[TOKENS]
        kept = tokens[:, : tokens.shape[1] - self.padding_tokens + 1]
        folded = {"joint_attention_kwargs": {"last_token_repeats": self.padding_tokens}}
        return replace(cond, tensors=cond.tensors | {TOKENS: kept}, shared=cond.shared | folded)


def _all_equal(tokens: Tensor) -> bool:
    """Whether the tokens (B, L, D) of each row are all the same: no T5, or a silent one."""
    return bool((tokens == tokens[:, :1]).all())


class MeanOfTokens(Adapter):
    """HunyuanVideo, whose network takes the mean of a prompt's tokens, and divides zero by zero where there are none.

    Its own template leaves a token of every prompt, the empty one too; with another one stock diffusers makes NaN.
    """

    def _encode(self, prompts: list[str], image: Any = None, size: Any = None) -> Condition:
        cond = super()._encode(prompts, image, size)
        mask = cond.tensors.get(TOKENS_MASK)
        if mask is not None:
            for prompt, known in zip(prompts, mask.bool().any(dim=1).tolist(), strict=True):
                if not known:
                    network = type(self.pipe.transformer).__name__
                    raise TwinflowError(
                        f"the prompt {prompt!r} has no token here, and {network} takes the mean of its tokens, which "
                        "would be NaN: give another prompt (for training, unconditional_prompt), or a "
                        "prompt_template that leaves a token"
                    )
        return cond


class PlainEmptyPrompt(Adapter):
    """SANA and Lumina2, whose pipelines put an instruction before every prompt, but not before the negative one that
    guidance compares with. An empty prompt is encoded as the latter is.
    """

    def _encode(self, prompts: list[str], image: Any = None, size: Any = None) -> Condition:
        if all(prompt.strip() for prompt in prompts):
            return super()._encode(prompts, image, size)
        return Condition.concat(
            [
                super(PlainEmptyPrompt, self)._encode([p], image, size) if p.strip() else self._negative()
                for p in prompts
            ]
        )

    def _negative(self) -> Condition:
        """What a guided call of the stock pipeline conditions on beside its prompt: of the rows of one network call
        the first, or a second call.
        """
        seen: list[dict[str, Any]] = []

        def network(arguments: dict[str, Any]) -> Any:
            seen.append(arguments)
            state = arguments[self.wiring.state]
            if len(state) > 1 or len(seen) > 1:
                raise Stop
            return (torch.zeros_like(state),)

        call = {**self.wiring.call, "guidance_scale": 2.0, "negative_prompt": ""}
        run_stock(self.pipe, PROMPTS[:1], call=call, watcher=Watcher(network=network))
        cond = self._condition(seen[-1])
        return cond.take(torch.tensor([0]))


FOLDING: dict[str, type[Adapter]] = {"StableDiffusion3Pipeline": FoldedStableDiffusion3}
BY_TRANSFORMER: dict[str, type[Adapter]] = {
    "HunyuanVideoTransformer3DModel": MeanOfTokens,
    "SanaTransformer2DModel": PlainEmptyPrompt,
    "Lumina2Transformer2DModel": PlainEmptyPrompt,
}


def adapter_for(pipe: Any, *, fold_padding: bool = True, call: Mapping[str, Any] | None = None) -> Adapter:
    """The adapter of a stock pipeline; :class:`~twinflow.errors.TwinflowError` if there can be none."""
    kind = BY_TRANSFORMER.get(type(getattr(pipe, "transformer", None)).__name__, Adapter)
    if fold_padding:
        kind = FOLDING.get(type(pipe).__name__, kind)
    with torch.no_grad():
        return kind(pipe, call=call)
