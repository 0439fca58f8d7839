"""A whole pipeline in a few hundred weights: pictures of 4 x 4 in one colour, named by their caption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twinflow.config import Recipe, make_recipe

COLORS = {
    "": (0.0, 0.0, 0.0),
    "red": (0.8, -0.8, -0.8),
    "green": (-0.8, 0.8, -0.8),
    "blue": (-0.8, -0.8, 0.8),
}
SIZE = 4


class TinyNetwork(nn.Module):
    """F(x_t, t, r, cond) on latents (B, 3, 4, 4); ``cond`` (B,) int64 numbers the colour."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(len(COLORS), 4)
        inputs = 3 * SIZE * SIZE
        self.first = nn.Linear(inputs + 2 + 4, width)
        self.last = nn.Linear(width, inputs)

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return self.last(self.hidden(x_t, t, r, cond)).reshape(x_t.shape)

    def hidden(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        inputs = torch.cat([x_t.flatten(1), t[:, None], r[:, None], self.words(cond)], dim=1)
        return nn.functional.silu(self.first(inputs))

    def features(self, x_t: Tensor, t: Tensor, cond: Tensor) -> list[Tensor]:
        """The hidden layer, as four places of a discriminator."""
        return [self.hidden(x_t, t, t, cond).reshape(len(x_t), 4, -1)]


class TinyPipeline:
    """As a trainer sees it; latents are the pixels."""

    def __init__(self, *, seed: int = 0, width: int = 16) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network: nn.Module = TinyNetwork(width)
        self.encoded = 0  # pictures so far

    @property
    def field(self) -> nn.Module:
        return self.network

    def field_of(self, network: nn.Module) -> nn.Module:
        return network

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (3, SIZE, SIZE)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        return torch.tensor([list(COLORS).index(prompt) for prompt in prompts])

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)

    def save_pretrained(self, path: Path) -> None:
        path.mkdir(parents=True)
        save_file(self.network.state_dict(), path / "model.safetensors")
        (path / "model.json").write_text(json.dumps({"size": SIZE}))

    @staticmethod
    def weights(path: Path) -> dict[str, Tensor]:
        return load_file(path / "model.safetensors")


class Colors:
    """Pictures of one colour with a little noise."""

    def __init__(self, length: int = 40) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        caption = ("red", "green", "blue")[index % 3]
        noise = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index))
        pixels = torch.tensor(COLORS[caption])[:, None, None] + 0.1 * noise
        return {"pixels": pixels.clamp(-1, 1), "caption": caption}


def tiny_recipe(output: Path | str, **sections: Any) -> Recipe:
    """A recipe for :class:`TinyPipeline`; ``sections`` replace single keys of sections, or whole values."""
    raw: dict[str, Any] = {
        "model": {"path": "tiny"},
        "data": {"kind": "shapeworld"},
        "objective": {"name": "twinflow", "guidance": 0.3, "teacher": "ema", "longest_jump": None},
        "caption_dropout": 0.1,
        "optimizer": {"lr": 1e-2},
        "ema": {"decay": 0.9, "teacher_decay": 0.8},
        "train": {"steps": 12, "batch": 3},
        "checkpoint": {"every": 4},
        "log": {"every": 2, "tensorboard": False},
        "output": str(output),
    }
    for name, value in sections.items():
        merge = isinstance(value, dict) and isinstance(raw.get(name), dict) and "name" not in value
        raw[name] = {**raw[name], **value} if merge else value
    return make_recipe(raw)
