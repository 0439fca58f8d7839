"""Train a pipeline's text encoders to read ShapeWorld captions: what is where, of which colour, how many.

SD3's transformer sees a caption twice: as pooled features and as the words' features below the last layer. Both
have to tell the same facts, so that a linear layer can use them: shape and colour of the first and the second
object mentioned, their number and their relation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from twinflow.data.relations import RELATIONS
from twinflow.data.shapeworld.captions import TASKS, Caption, all_captions
from twinflow.data.shapeworld.world import Level, get_level
from twinflow.objectives.objective import Field, Objective, RowLog, Step
from twinflow.tensor_files import let_read


class CaptionFacts:
    """Map-style dataset of captions and their facts; ``pixels`` holds the facts (6,) as whole numbers."""

    def __init__(self, level: str | Level, *, length: int, seed: int = 0) -> None:
        self.level, self.length, self.seed = get_level(level), length, seed
        self._captions = [all_captions(self.level, task) for task in TASKS]
        shapes, colors = len(self.level.shapes), len(self.level.colors)
        self.sizes = [shapes + 1, colors + 1, shapes + 1, colors + 1, self.level.max_count + 1, 5]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < 0.08:  # the empty caption, which guidance compares with, has no facts
            return {"pixels": torch.zeros(6), "caption": ""}
        captions = self._captions[rng.integers(len(TASKS))]
        caption = captions[rng.integers(len(captions))]
        return {
            "pixels": torch.tensor(self.facts(caption), dtype=torch.float32),
            "caption": caption["prompt"],
        }

    def facts(self, caption: Caption) -> list[int]:
        """Shape and colour of the first and second object mentioned, number, relation; 0 where unsaid."""
        level, needs = self.level, caption["include"]
        relation = needs[-1].get("position", [None])[0]
        mentioned = needs[::-1] if relation else needs  # GenEval lists the object of reference first
        facts: list[int] = []
        for need in [*mentioned, None][:2]:
            facts.append(0 if need is None else level.shapes.index(need["class"]) + 1)
            colored = need is not None and "color" in need
            facts.append(level.colors.index(need["color"]) + 1 if need and colored else 0)
        facts.append(needs[0]["count"] if len(needs) == 1 else 0)
        facts.append(RELATIONS.index(relation) + 1 if relation else 0)
        return facts


class TextReader(nn.Module):
    """Both text encoders, each with linear heads for the facts on its two outputs."""

    def __init__(self, encoders: list[Any], sizes: list[int]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        width = encoders[0].config.hidden_size
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, size) for size in sizes) for _ in range(2 * len(encoders))
        )

    def _encoders(self) -> list[Any]:
        return list(self.encoders)

    def forward(self, ids: Tensor) -> list[list[Tensor]]:
        """Logits of every fact from every output: lists of (B, size)."""
        features = []
        for encoder in self._encoders():
            out = encoder(ids, output_hidden_states=True)
            end = torch.eq(ids, encoder.config.eos_token_id).int().argmax(1)
            features += [out.text_embeds, out.hidden_states[-2][torch.arange(len(ids)), end]]
        return [
            [head(feature) for head in cast(nn.ModuleList, heads)]
            for feature, heads in zip(features, self.heads, strict=True)
        ]


@dataclass(kw_only=True)
class CaptionReading(Objective):
    """Sum of the cross-entropies of all facts, read from every output of every encoder."""

    def step(
        self,
        field: Field,
        x: Tensor,
        cond: Any,
        *,
        uncond: Any = None,
        teacher: Field | None = None,
        generator: Generator | None = None,
    ) -> Step:
        """``field`` is a :class:`TextReader`, ``x`` the facts (B, 6), ``cond`` token ids (B, L)."""
        facts = x.long()
        rows = torch.zeros(x.shape[0], device=x.device)
        right = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        for logits in field(cond):  # type: ignore[call-arg]
            for k, fact_logits in enumerate(logits):
                rows = rows + cross_entropy(fact_logits, facts[:, k], reduction="none")
                right &= fact_logits.argmax(1) == facts[:, k]
        zeros = torch.zeros(x.shape[0])
        return Step(
            loss=rows.mean(),
            losses={"reading": rows.detach().mean()},
            metrics={"captions_read": right.float().mean()},
            rows=RowLog(roles=["text"] * x.shape[0], t=zeros, r=zeros, loss=rows.detach()),
        )


class TextEncodersPart:
    """A pipeline's text encoders; the heads are thrown away when it is saved."""

    def __init__(self, pipe: Any, *, sizes: list[int]) -> None:
        self.pipe = pipe
        self.network = TextReader([pipe.text_encoder, pipe.text_encoder_2], sizes).to(
            pipe.text_encoder.device  # the heads, which are new
        )

    def field_of(self, network: nn.Module) -> nn.Module:
        return network

    @property
    def field(self) -> nn.Module:
        return self.network

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        length = self.pipe.tokenizer.model_max_length
        ids = self.pipe.tokenizer(prompts, padding="max_length", max_length=length).input_ids
        return torch.tensor(ids)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return pixels

    def save_pretrained(self, path: str | Path) -> None:
        self.pipe.text_encoder, self.pipe.text_encoder_2 = self.network.encoders
        self.pipe.save_pretrained(path, safe_serialization=True)
        let_read(path, like="model_index.json")
