"""What an evaluation draws with, opened by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from twinflow.conditions import concat_rows
from twinflow.errors import TwinflowError
from twinflow.evaluation.fingerprint import fingerprint
from twinflow.evaluation.model_names import STOCK, ModelName
from twinflow.evaluation.pictures import Picture
from twinflow.evaluation.ranks import device
from twinflow.evaluation.samplers import Sampler, sampler_for
from twinflow.evaluation.stock_model import StockModel, native_size, stock_pipeline
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.geometry import Size
from twinflow.sampling import make_schedule, resolve_settings, sample, seeded_noise


class Model(Protocol):
    """What pictures are drawn with."""

    identity: dict[str, Any]  # JSON: all that a picture depends on besides its prompt, seed and sampler
    size: tuple[int, int] | None  # height and width that were asked for
    native_size: tuple[int, int]  # and those of the model itself

    def sampler(self, nfe: int, guidance: float | None) -> Sampler: ...

    def check(self, prompts: Sequence[str], samplers: Sequence[Sampler]) -> None:
        """``TwinflowError`` for prompts or samplers that it can't draw, before anything is drawn."""

    def encode(self, prompts: Sequence[str]) -> None:
        """Get ready for ``prompts``; work that was done before is not done again."""

    def draw(self, pictures: Sequence[Picture], sampler: Sampler) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1], each a function of its own prompt and seeds; of a checked sampler."""


class AnyStepModel:
    """A pipeline sampled by :func:`twinflow.sampling.sample`. Each prompt is encoded once, alone."""

    def __init__(self, pipe: AnyStepPipeline, *, identity: str, size: tuple[int, int] | None = None) -> None:
        if pipe.edits:
            raise TwinflowError(
                f"{type(pipe.pipe).__name__} edits pictures: the benchmarks have prompts without a source picture"
            )
        self.pipe, self.size, self.native_size = pipe, size, native_size(pipe.pipe)
        dtype = str(next(pipe.network.parameters()).dtype).removeprefix("torch.")
        self.identity = {"model": identity, "dtype": dtype, "size": size, "device": pipe.device.type}
        self._encoded: dict[str, Any] = {}

    def sampler(self, nfe: int, guidance: float | None) -> Sampler:
        return sampler_for(self.pipe, nfe, guidance)

    def check(self, prompts: Sequence[str], samplers: Sequence[Sampler]) -> None:
        if self.pipe.words is not None:
            check_prompts(prompts, self.pipe.words)
        for sampler in samplers:
            options = dict(sampler.options)
            style = options.pop("style", "few")
            overrides = options | ({"guidance": sampler.guidance} if sampler.guidance != 1.0 else {})
            if "guidance" in overrides and self.pipe.guidance_is_an_input:
                raise TwinflowError(
                    f"guidance {sampler.guidance} is not possible: {type(self.pipe.pipe).__name__} takes its "
                    "guidance as an input of the network; leave --guidance out"
                )
            try:
                settings = resolve_settings(nfe=sampler.nfe, style=style, settings=None, overrides=overrides)  # type: ignore[arg-type]
                schedule = make_schedule(sampler.nfe, settings)
                if self.pipe.exported is not None:
                    self.pipe.exported.check_schedule(schedule, settings)
            except ValueError as error:
                raise TwinflowError(f"--nfe {sampler.nfe}: {error}") from error

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> None:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._encoded:
                self._encoded[prompt] = self.pipe.encode_prompts([prompt]).to("cpu")

    @torch.no_grad()
    def draw(self, pictures: Sequence[Picture], sampler: Sampler) -> Tensor:
        self.encode([picture.prompt for picture in pictures])
        size = None if self.size is None else Size(*self.size)
        cond = concat_rows([self._encoded[picture.prompt] for picture in pictures]).to(self.pipe.device)
        options = dict(sampler.options)
        if sampler.guidance != 1.0:
            self.encode([""])
            uncond = self._encoded[""].to(self.pipe.device)
            options |= {"guidance": sampler.guidance, "uncond": self.pipe.at_size(uncond, size)}
        shape = self.pipe.adapter.geometry(size).state_shape if size else self.pipe.latent_shape
        seeds, skip = [picture.seed for picture in pictures], [picture.skip for picture in pictures]
        noise = seeded_noise(shape, seeds, skip=skip).to(self.pipe.device)
        latents = sample(self.pipe.field, noise, self.pipe.at_size(cond, size), nfe=sampler.nfe, **options)
        return self.pipe.decode(latents, size=size)


def open_model(name: ModelName, *, size: tuple[int, int] | None = None, dtype: str = "float32") -> Model:
    """Load what ``name`` says, on this process's GPU if there is one."""
    if name.kind == "stock":
        stock = stock_pipeline(name.path, dtype)
        return StockModel(stock, identity=fingerprint(name.path), size=size)
    try:
        pipe = load_model(name.path, dtype=dtype, size=size)
    except ValueError as error:
        raise TwinflowError(
            f"{name.path} is no flow that can be sampled here: {error}. Try its own call, {STOCK}{name.path}"
        ) from error
    # Now that it is here: what is fetched by its first evaluation is known by the same files in the next one.
    return AnyStepModel(pipe, identity=fingerprint(name.path), size=size)


def load_model(
    path_or_id: str, *, dtype: str = "float32", size: tuple[int, int] | None = None, **call: Any
) -> AnyStepPipeline:
    """The pipeline of a model for sampling, on the GPU if there is one; its progress bar is off. ``call``: further
    arguments of the stock pipeline's call that it is opened for."""
    if size is not None:
        call |= {"height": size[0], "width": size[1]}
    pipe = AnyStepPipeline.from_pretrained(
        path_or_id,
        target_time=False,
        device=device(),
        dtype=getattr(torch, dtype),
        call=call or None,
    )
    pipe.pipe.set_progress_bar_config(disable=True)
    return pipe


def check_prompts(prompts: Sequence[str], words: Sequence[str]) -> None:
    """Raise unless every word of every prompt is among ``words``, those that the model was trained on."""
    known = set(words)
    for prompt in prompts:
        unknown = [word for word in prompt.split() if word not in known]
        if unknown:
            raise TwinflowError(
                f"the prompt {prompt!r} has words that this model does not know: {', '.join(unknown)}. "
                f"It knows: {' '.join(sorted(known))}"
            )
