"""Diffusers' own call as a model that an evaluation draws with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.evaluation.pictures import Picture
from twinflow.evaluation.ranks import device
from twinflow.evaluation.samplers import Sampler
from twinflow.hub import hub_or_cache


class StockModel:
    """Any diffusers pipeline by its own call: for models without a field, and to compare with.

    Its scheduler decides how many network evaluations a step takes; they are counted, not believed.
    """

    def __init__(self, pipe: Any, *, identity: str, size: tuple[int, int] | None = None) -> None:
        self.pipe, self.size, self.native_size = pipe, size, native_size(pipe)
        self._steps: dict[tuple[int, float], int] = {}  # by NFE and guidance
        self._last: tuple[Picture, Sampler, Tensor] | None = None  # and the state of its generator after it
        network = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
        if network is None:
            raise TwinflowError(f"{type(pipe).__name__} has neither a transformer nor a unet to count")
        self.network: torch.nn.Module = network
        weight = next(self.network.parameters())
        dtype = str(weight.dtype).removeprefix("torch.")
        self.identity = {"stock": identity, "dtype": dtype, "size": size, "device": weight.device.type}

    def sampler(self, nfe: int, guidance: float | None) -> Sampler:
        options: dict[str, Any] = {"style": "stock"}
        return Sampler(nfe=nfe, guidance=1.0 if guidance is None else guidance, options=options)

    def check(self, prompts: Sequence[str], samplers: Sequence[Sampler]) -> None:
        for sampler in samplers:
            self._steps[sampler.nfe, sampler.guidance] = self.steps(sampler)

    def encode(self, prompts: Sequence[str]) -> None:
        """The stock call encodes its prompts itself."""

    def steps(self, sampler: Sampler) -> int:
        """Steps that cost ``sampler.nfe`` network evaluations; measured by drawing a picture in one, two and three: the
        second may cost more than those after it (PNDM's does)."""
        costs = []
        for count in (1, 2, 3):
            with _Counter(self.network) as counter:
                self._call([Picture(file="", prompt="a photo", seed=0)], sampler, count)
            costs.append(counter.rows)
        one, two, three = costs
        each = three - two
        if sampler.nfe == one:
            return 1
        if each < 1 or sampler.nfe < two or (sampler.nfe - two) % each:
            raise TwinflowError(
                f"--nfe {sampler.nfe} is not possible with the stock call of {type(self.pipe).__name__} at guidance "
                f"{sampler.guidance:g}: one step costs {one} network evaluations, two cost {two}, and each further one "
                f"{each} more"
            )
        return 2 + (sampler.nfe - two) // each

    def draw(self, pictures: Sequence[Picture], sampler: Sampler) -> Tensor:
        steps = self._steps[sampler.nfe, sampler.guidance]
        if len(pictures) > 1 and not any(picture.skip for picture in pictures):
            return self._call(pictures, sampler, steps)
        return torch.cat([self._draw_in_turn(picture, sampler, steps) for picture in pictures])

    def _draw_in_turn(self, picture: Picture, sampler: Sampler, steps: int) -> Tensor:
        """One picture. Those before it in its generator's order are drawn again, unless the last one was just drawn:
        how many numbers a picture takes, only the call itself knows."""
        generator, start = torch.Generator().manual_seed(picture.seed), 0
        if self._last is not None:
            before, how, state = self._last
            if how == sampler and before == replace(picture, file=before.file, skip=picture.skip - 1):
                generator.set_state(state)
                start = picture.skip
        for _ in range(start, picture.skip + 1):
            drawn = self._call([picture], sampler, steps, generators=[generator])
        self._last = (picture, sampler, generator.get_state())
        return drawn

    def _call(
        self,
        pictures: Sequence[Picture],
        sampler: Sampler,
        steps: int,
        *,
        generators: list[torch.Generator] | None = None,
    ) -> Tensor:
        size = {} if self.size is None else {"height": self.size[0], "width": self.size[1]}
        drawn = self.pipe(
            prompt=[picture.prompt for picture in pictures],
            generator=generators or [torch.Generator().manual_seed(picture.seed) for picture in pictures],
            num_inference_steps=steps,
            guidance_scale=sampler.guidance,
            output_type="pt",
            **size,
        ).images
        return drawn.float().cpu() * 2 - 1


def native_size(pipe: Any) -> tuple[int, int]:
    """Of the pictures that the pipeline makes unless told otherwise; 1024 squared where it does not say."""
    sample, scale = getattr(pipe, "default_sample_size", None), getattr(pipe, "vae_scale_factor", None)
    unet = getattr(pipe, "unet", None)
    if sample is None and unet is not None:
        sample = getattr(unet.config, "sample_size", None)
    side = sample * scale if isinstance(sample, int) and isinstance(scale, int) else 1024
    return side, side


class _Counter:
    """Counts the rows that a network is evaluated on, for one picture."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.rows = network, 0

    def __enter__(self) -> _Counter:
        self._hook = self.network.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _count(self, module: Any, args: tuple, kwargs: dict) -> None:
        state: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        self.rows += len(state)  # a tensor, or a list of one entry a row


def stock_pipeline(path: str, dtype: str) -> Any:
    from diffusers import DiffusionPipeline

    try:
        with hub_or_cache(path):
            pipe = DiffusionPipeline.from_pretrained(path, dtype=getattr(torch, dtype), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise TwinflowError(f"{path} is no pipeline that diffusers can load: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device())
