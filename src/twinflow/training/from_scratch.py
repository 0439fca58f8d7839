"""The pipelines that recipes start from scratch, by what ``model.path`` calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from twinflow.data.digits import DIGIT_CAPTIONS
from twinflow.data.shapeworld import TASKS, all_captions
from twinflow.pipelines.new import Architecture


def shapeworld() -> Architecture:
    """Of the embedded model. It knows the words of both levels, so that one text encoder serves them."""
    words, longest = _read([caption["prompt"] for task in TASKS for caption in all_captions("full", task)])
    return Architecture(words=words, max_words=longest)


def shapeworld_full() -> Architecture:
    """Of level full: six shapes and ten colours are more numbers a scene. Its sizes are those that ran (a base of
    0.570, docs/experiments.md)."""
    return replace(shapeworld(), latent_channels=8, width=128)


def digits() -> Architecture:
    words, longest = _read(DIGIT_CAPTIONS)
    return Architecture(
        words=words,
        max_words=longest,
        image_size=8,
        autoencoder_channels=(16, 32),
        autoencoder_attention=False,
        latent_channels=8,
        width=96,
        layers=3,
        text_width=32,
    )


FROM_SCRATCH: dict[str, Callable[[], Architecture]] = {
    "new:shapeworld": shapeworld,
    "new:shapeworld-full": shapeworld_full,
    "new:digits": digits,
}


def _read(prompts: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The words of ``prompts``, and how many the longest has."""
    split = [prompt.split() for prompt in prompts]
    return tuple(sorted({word for words in split for word in words})), max(map(len, split))
