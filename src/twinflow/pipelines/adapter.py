"""How a stock diffusers pipeline is driven as a field ``F(x_t, t, r, cond)``.

The adapter knows what :mod:`twinflow.pipelines.wiring` found out, and passes to the transformer what the stock
pipeline would. It changes nothing in the pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.pipelines.condition import NOISY, TAIL, Condition
from twinflow.pipelines.geometry import Geometry, Size
from twinflow.pipelines.single_frame import use_single_frames
from twinflow.pipelines.watching import Stop, Watcher, check_arguments, run_stock
from twinflow.pipelines.wiring import Wiring, discover


class Adapter:
    """Any pipeline that :func:`twinflow.pipelines.wiring.discover` can make sense of."""

    folds = False  # whether equal padding tokens are computed once

    def __init__(self, pipe: Any, *, call: Mapping[str, Any] | None = None) -> None:
        self.pipe = pipe
        self.wiring: Wiring = discover(pipe, call=call)
        use_single_frames(getattr(pipe, "vae", None))
        self._geometries: dict[Size | None, Geometry] = {}
        known = inspect.signature(type(pipe.transformer).forward).parameters
        self._plain_output = {"return_dict": False} if "return_dict" in known else {}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's state, at the picture size of the call that was watched."""
        return self.wiring.state_shape

    # The field

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity (B, …) of the stock network at the state ``x_t`` (B, …) and times ``t`` (B,) fp32.

        State and embeddings may be of any floating dtype; times are never cast.
        """
        wiring, dtype = self.wiring, network.dtype  # once: diffusers looks at all modules to tell
        arguments = cond.cast(dtype).arguments()
        state = x_t.to(dtype)
        tail = arguments.pop(TAIL, None)
        noisy = arguments.pop(NOISY, None)
        time = (t + wiring.offset / wiring.slope) * wiring.slope
        if noisy is not None:
            time = torch.where(noisy.bool(), time[:, None], torch.full_like(time, wiring.offset)[:, None])
        arguments[wiring.time] = time
        if tail is not None:
            assert wiring.tail_axis is not None
            state = torch.cat([state, tail], dim=wiring.tail_axis)
        arguments[wiring.state] = wiring.argument_of(state)
        return wiring.velocity_of(network(**arguments, **self._plain_output), like=x_t)

    # Conditions

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[str], *, images: Sequence[Image.Image] | None = None, size: Size | None = None
    ) -> Condition:
        """Conditions of ``prompts``, with the source picture of each where the pipeline edits.

        ``size`` of what is drawn matters where sources are brought to it (:attr:`Wiring.source_has_size`).
        """
        if images is not None and len(images) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many source images, got {len(images)}")
        if images is None and not self.wiring.one_prompt_a_call:
            return self._encode(list(prompts), size=size)
        sources: Sequence[Any] = images or [None] * len(prompts)
        return Condition.concat(
            [self._encode([prompt], image, size) for prompt, image in zip(prompts, sources, strict=True)]
        )

    def _encode(
        self, prompts: list[str], image: Image.Image | None = None, size: Size | None = None
    ) -> Condition:
        """What the stock pipeline conditions its first network call on."""
        call = dict(self.wiring.call)
        if size is not None and self.wiring.source_has_size:
            call |= size.arguments()
        if image is not None:
            check_arguments(self.pipe, {"image": image})
            if self.wiring.tail_axis is None:  # FLUX.2 draws without one as well
                raise TwinflowError(
                    f"{type(self.pipe).__name__} was opened without a source picture, and draws: to edit, open it with "
                    "one of the size to train at, call={'image': …} (in a recipe, model.call.image: FILE)"
                )
            call["image"] = image
        return self._condition(self._first_call(prompts, call))

    def _condition(self, arguments: dict[str, Any]) -> Condition:
        """Of the arguments of a network call; they are used up."""
        wiring = self.wiring
        state, time = arguments.pop(wiring.state), arguments.pop(wiring.time)
        arguments.pop("return_dict", None)
        tensors: dict[str, Tensor] = {}
        lists: dict[str, list[Any]] = {}
        for name in [n for n in arguments if n in wiring.rows or n.endswith("_mask")]:
            value = arguments[name]
            if isinstance(value, Tensor):
                tensors[name] = arguments.pop(name).detach()
            elif isinstance(value, list):
                lists[name] = list(arguments.pop(name))
        if wiring.tail_axis is not None:
            own = wiring.state_shape[wiring.tail_axis - 1]
            tensors[TAIL] = state.narrow(wiring.tail_axis, own, state.shape[wiring.tail_axis] - own).detach()
        if wiring.time_per_token:
            tensors[NOISY] = wiring.noisy(time)
        return Condition(tensors=tensors, lists=lists, shared=arguments)

    def _first_call(self, prompts: list[str], call: Mapping[str, Any]) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []

        def network(arguments: dict[str, Any]) -> Any:
            seen.append(arguments)
            raise Stop

        run_stock(self.pipe, prompts, call=call, watcher=Watcher(network=network))
        return seen[0]

    # Pictures of any size

    def geometry(self, size: Size | None = None) -> Geometry:
        """What depends on the picture size; None is the size that the pipeline was opened with."""
        if size not in self._geometries:
            self._geometries[size] = Geometry.watch(self.pipe, self.wiring, size)
        return self._geometries[size]

    def at_size(self, cond: Condition, size: Size | None) -> Condition:
        """``cond``, which :meth:`encode_prompts` made for the opened size, for pictures of another."""
        return cond if size is None else self.geometry(size).condition(cond, like=self.geometry())

    def encode_images(self, pixels: Tensor) -> Tensor:
        """See :meth:`Geometry.encode`; any size that the pipeline accepts."""
        return self.geometry(Size.of(pixels)).encode(pixels)

    def decode(self, latents: Tensor, *, size: Size | None = None) -> Tensor:
        """See :meth:`Geometry.decode`."""
        return self.geometry(size).decode(latents)
