"""What a transformer is called with, from its configuration alone.

The arguments of diffusers' transformers go by common names, and their sizes by common names in the configuration.
Which form the state has (tokens, a picture, a clip, a list) is found by trying.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.planner.network import FakeNetwork, quiet

# Names in configurations for the width of a text token, the one that counts first where there are two.
_TEXT_WIDTHS = ("caption_channels", "text_embed_dim", "text_dim", "cap_feat_dim", "joint_attention_dim")
_STATES, _TIMES = ("hidden_states", "x"), ("timestep", "t")
IMAGE_TOKENS = 257  # that the CLIP of published models makes of a source picture, for Wan's image-to-video


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Of one picture or clip, as the autoencoder makes them."""

    channels: int
    height: int
    width: int
    frames: int | None = None  # None: the autoencoder knows pictures only

    @property
    def shape(self) -> tuple[int, ...]:
        frames = () if self.frames is None else (self.frames,)
        return (self.channels, *frames, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Call:
    """How to call a transformer for any number of rows."""

    network: FakeNetwork
    form: str
    state_shape: tuple[int, ...]  # of one row
    latents: Latents
    text_tokens: int
    patch: int  # latent pixels a side that a token packs, where the pipeline packs them
    beside: int = 0  # channels of a source picture, which follow those of the state
    image_tokens: int = IMAGE_TOKENS  # of a source picture, beside those of the text

    @classmethod
    def find(
        cls, network: FakeNetwork, latents: Latents, *, text_tokens: int, image_tokens: int = IMAGE_TOKENS
    ) -> Call:
        """The form in which ``network`` runs. :class:`TwinflowError` with what each form led to."""
        reasons = []
        for beside, form, (shape, patch) in _forms(network, latents):
            call = cls(
                network=network,
                form=form,
                state_shape=shape,
                latents=latents,
                text_tokens=text_tokens,
                image_tokens=image_tokens,
                patch=patch,
                beside=beside,
            )
            try:
                with network.mode, torch.no_grad(), quiet():
                    output = call(1)
                if output.numel() == prod(shape):
                    return call
                reasons.append(f"{form}: it returns {tuple(output.shape)} for a state of {shape}")
            except Exception as error:  # whatever a transformer raises when called in the wrong form
                reasons.append(f"{form}: {type(error).__name__}: {str(error)[:200]}")
        raise TwinflowError(
            f"{type(network.module).__name__} can't be called from its configuration alone: "
            + "; ".join(reasons)
        )

    @property
    def tokens(self) -> int:
        """Of the picture, that its attention sees."""
        size = network_patch(self.network.config) if self.form != "tokens" else (1, self.patch)
        frames = (self.latents.frames or 1) // (size[0] if self.latents.frames else 1)
        return frames * (self.latents.height // size[1]) * (self.latents.width // size[1])

    def __call__(self, rows: int, *, gradient: bool = False) -> Tensor:
        """Output of the transformer for ``rows`` rows, inside the network's fake mode.

        ``gradient``: whether the state wants one.
        """
        from twinflow.pipelines.target_time import has_target_time, times

        module = self.network.module
        arguments = self.arguments(rows, gradient=gradient)
        if has_target_time(module):
            with times(module, t=torch.rand(rows), r=torch.rand(rows)):
                output = module(**arguments)
        else:
            output = module(**arguments)
        first = output[0] if isinstance(output, tuple) else output.sample
        return torch.stack(list(first)) if isinstance(first, list) else first

    def layers(self) -> dict[bool, tuple[str, ...]]:
        """Patterns of the names of the blocks' Linears: those that see every token (True), and those that see one
        vector a sample (False), which modulate: a third of some models' weights, and none of their operations."""
        module, seen = self.network.module, dict[str, bool]()
        handles = []
        for block in self.network.repeats:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    name = name_pattern(next(n for n, m in module.named_modules() if m is layer))

                    def hook(
                        layer: nn.Module,
                        arguments: Any,
                        output: Any,
                        name: str = name,
                        width: int = layer.in_features,
                    ) -> None:
                        seen[name] = seen.get(name, False) or arguments[0].numel() > 2 * width

                    handles.append(layer.register_forward_hook(hook))
        try:
            with self.network.mode, torch.no_grad():
                self(2)
        finally:
            for handle in handles:
                handle.remove()
        return {kind: tuple(sorted(n for n, many in seen.items() if many == kind)) for kind in (True, False)}

    def in_vain(self) -> set[str]:
        """Names of the Linears without effect on the output, though their like in other blocks have one."""
        network = self.network
        with network.mode, torch.enable_grad():
            self(1).sum().backward()
        weights = {p: n.removesuffix(".weight") for p, n in network.names.items() if n.endswith(".weight")}
        live = {name_pattern(name) for p, name in weights.items() if p.grad is not None}
        kept = set(network.module.parameters())
        found = {
            name for p, name in weights.items() if p in kept and p.grad is None and name_pattern(name) in live
        }
        network.module.zero_grad(set_to_none=True)
        return found

    def arguments(self, rows: int, *, gradient: bool = False) -> dict[str, Any]:
        """By name, for the call with ``rows`` rows."""
        makers = self._makers(rows, gradient)
        found: dict[str, Any] = {}
        for name, parameter in inspect.signature(type(self.network.module).forward).parameters.items():
            maker = makers.get(name)
            if maker is not None:
                found[name] = maker()
            elif parameter.default is inspect.Parameter.empty and name != "self":
                raise TwinflowError(f"nothing is known of the argument {name}")
        return found

    def _makers(self, rows: int, gradient: bool) -> dict[str, Callable[[], Any]]:
        network, config, length = self.network, self.network.config, self.text_tokens
        dtype = network.dtype
        parameters = inspect.signature(type(network.module).forward).parameters
        height, width, frames = self.latents.height, self.latents.width, self.latents.frames or 1
        text_width = next((config[k] for k in _TEXT_WIDTHS if config.get(k)), 0)
        axes = len(config.get("axes_dims_rope") or ())

        def state() -> Any:
            made = torch.randn(rows, *self.state_shape, dtype=dtype, requires_grad=gradient)
            if self.beside:
                axis = 2 if self.form == "tokens" else 1
                shape = [self.beside if k == axis else length for k, length in enumerate(made.shape)]
                made = torch.cat([made, torch.randn(shape, dtype=dtype)], dim=axis)
            return list(made.unbind()) if self.form == "list" else made

        def text() -> Tensor:
            return torch.randn(rows, length, text_width, dtype=dtype)

        def mask() -> Tensor:
            return torch.tensor([[True] * length] * rows)  # its values are known: see network._Mode

        makers: dict[str, Callable[[], Any]] = {
            **dict.fromkeys(_STATES, state),
            **dict.fromkeys(_TIMES, lambda: torch.rand(rows)),
            "encoder_hidden_states": text,
            "cap_feats": lambda: list(text().unbind()),
            "img_shapes": lambda: [[(frames, height // self.patch, width // self.patch)]] * rows,
            "img_ids": lambda: torch.zeros(self.state_shape[0], axes),
            "txt_ids": lambda: torch.zeros(length, axes),
            "num_frames": lambda: frames,
            "height": lambda: height // self.patch,
            "width": lambda: width // self.patch,
        }
        if config.get("pooled_projection_dim"):
            makers["pooled_projections"] = lambda: torch.randn(
                rows, config["pooled_projection_dim"], dtype=dtype
            )
        if config.get("image_dim"):
            makers["encoder_hidden_states_image"] = lambda: torch.randn(
                rows, self.image_tokens, config["image_dim"], dtype=dtype
            )
        if config.get("guidance_embeds"):
            makers["guidance"] = lambda: torch.ones(rows)
        for name in ("encoder_attention_mask", "encoder_hidden_states_mask"):
            if name in parameters and parameters[name].default is inspect.Parameter.empty:
                makers[name] = mask
        if "return_dict" in parameters:
            makers["return_dict"] = lambda: False
        return makers


def name_pattern(name: str) -> str:
    """``blocks.*.attn.to_q`` for all blocks' ``blocks.3.attn.to_q``."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join("*" if i == number else part for i, part in enumerate(parts))


def network_patch(config: Any) -> tuple[int, int]:
    """Latent frames and pixels a side that the transformer itself makes one token of."""
    size = config.get("patch_size", config.get("all_patch_size", 1))
    if isinstance(size, (list, tuple)):
        return (int(size[0]) if len(size) == 3 else 1), int(size[-1])
    return int(config.get("patch_size_t") or 1), int(size)


def _forms(network: FakeNetwork, latents: Latents) -> Iterator[tuple[int, str, tuple[tuple[int, ...], int]]]:
    """What may be: channels of a source picture, the form's name, and its shapes as in :func:`_shapes`."""
    known, drawn = int(network.config["in_channels"]), network.config.get("out_channels")
    for channels in dict.fromkeys((known, min(int(drawn or known), known))):
        for form, shapes in _shapes(network, latents, channels).items():
            yield known - channels, form, shapes


def _shapes(network: FakeNetwork, latents: Latents, channels: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shapes of a row's state, and how many latent pixels a side a token packs, by the name of the form."""
    frames = latents.frames or 1
    plane = (latents.height, latents.width)
    forms: dict[str, tuple[tuple[int, ...], int]] = {}
    patch = max(isqrt(channels // latents.channels), 1)
    names = inspect.signature(type(network.module).forward).parameters
    if {"img_ids", "img_shapes", "num_frames"} & set(
        names
    ):  # tokens tell neither height nor width themselves
        count = frames * (latents.height // patch) * (latents.width // patch)
        forms["tokens"] = ((count, channels), patch)
    if latents.frames is None:
        forms["picture"] = ((channels, *plane), 1)
    forms["clip"] = ((channels, frames, *plane), 1)
    forms["list"] = ((channels, frames, *plane), 1)
    return forms
