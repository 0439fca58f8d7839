"""Low-rank adapters (LoRA, arXiv 2106.09685) on a stock transformer, by PEFT.

The network is asked at its true (t, r): the target-time branch is trained and saved with the adapter. The base is
never changed, and with the adapters switched off it is there again, bit for bit: as a teacher it costs no memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.pipelines import target_time as tt

ADAPTER = "default"  # PEFT's name of the one adapter that a network has
FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """``W + (alpha / rank) B A`` with A (rank, inputs) and B (outputs, rank).

    ``alpha``: None is the rank, that is, no scale, which is what loaders assume that know no alpha. ``dropout``:
    share of the inputs of A that are zero during a training step. ``targets``: names of layers, or ends of them
    such as "to_q"; None for the default, see :func:`twinflow.pipelines.reach.default_targets`. ``init`` of A; B
    starts at zero, so that the network at birth is the base.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    init: Literal["kaiming", "gaussian"] = "kaiming"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.init not in ("kaiming", "gaussian"):
            raise ValueError(f"init must be 'kaiming' or 'gaussian', got {self.init!r}")


class StepDropout(nn.Module):
    """Dropout whose mask stays the same for all calls of a training step.

    Objectives compare calls of a step, some of them divided by a small step of time: fresh masks in each call
    would drown that. Every row has the same mask, and copies of the network share it, a teacher's too.
    """

    def __init__(self, share: float, *, channels: int) -> None:
        super().__init__()
        self.share, self.channels = share, channels
        self._mask: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> StepDropout:
        return self

    def draw(self) -> None:
        """A new mask, from torch's own generator, whose state every checkpoint holds."""
        self._mask = (torch.rand(self.channels) >= self.share).float() / (1 - self.share)

    def clear(self) -> None:
        self._mask = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self._mask is None else x * self._mask.to(x)


def attach_lora(transformer: Any, settings: LoraSettings, *, targets: Sequence[str]) -> None:
    """Put an adapter on the layers ``targets`` (full names), in place; it and the branch alone are trained.

    Factors and branch are fp32 whatever the base is: small updates of bf16 weights would be rounded away.
    """
    from peft import LoraConfig

    if has_lora(transformer):
        raise ValueError("this transformer has a LoRA already")
    if not hasattr(transformer, "add_adapter"):
        raise TwinflowError(f"{type(transformer).__name__} takes no LoRA: diffusers gives it no adapters")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=_alpha(settings),  # type: ignore[arg-type]  # PEFT takes any number
        target_modules=name_pattern(targets),
        init_lora_weights=True if settings.init == "kaiming" else settings.init,
    )
    transformer.add_adapter(config, ADAPTER)
    for layer in lora_layers(transformer).values():
        for factor in FACTORS:
            getattr(layer, factor).float()
        if settings.dropout > 0:
            layer.lora_dropout[ADAPTER] = StepDropout(settings.dropout, channels=layer.in_features)
    if tt.has_target_time(transformer):
        tt.train_branch(transformer, dtype=torch.float32)


def has_lora(transformer: nn.Module) -> bool:
    return bool(lora_layers(transformer))


def lora_layers(transformer: nn.Module) -> dict[str, Any]:
    """PEFT's layers by the name of the stock layer that each stands for."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def dropouts(transformer: nn.Module) -> list[StepDropout]:
    return [module for module in transformer.modules() if isinstance(module, StepDropout)]


@contextmanager
def switched_off(transformer: nn.Module) -> Iterator[None]:
    """The base alone, for the length of a block; blocks that activation checkpointing computes again, later too."""
    # Not by PEFT's own switch, which would make every adapter trainable again, those that were frozen too.
    layers = {layer: layer._disable_adapters for layer in lora_layers(transformer).values()}
    for layer in layers:
        layer._disable_adapters = True
    try:
        with _recomputed_without(transformer) if torch.is_grad_enabled() else nullcontext():
            yield
    finally:
        for layer, former in layers.items():
            layer._disable_adapters = former


@contextmanager
def _recomputed_without(transformer: nn.Module) -> Iterator[None]:
    """Let diffusers' checkpointing compute blocks again, in the backward pass, without adapters as well."""
    checkpointed = {
        module: module._gradient_checkpointing_func
        for module in transformer.modules()
        if getattr(module, "gradient_checkpointing", False)
    }

    def without(checkpoint: Any) -> Any:
        def of(block: nn.Module, *arguments: Any) -> Any:
            def run(*arguments: Any) -> Any:
                with switched_off(block):
                    return block(*arguments)

            return checkpoint(run, *arguments)

        return of

    for module, checkpoint in checkpointed.items():
        module._gradient_checkpointing_func = without(checkpoint)  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, checkpoint in checkpointed.items():
            module._gradient_checkpointing_func = checkpoint


@torch.no_grad()
def merge_lora(transformer: Any) -> None:
    """Add the adapter to the weights, in place; afterwards every layer is a stock one, and trained.

    :class:`TwinflowError` if the base is quantised: rounding it anew would not give the trained network.
    """
    layers = lora_layers(transformer)
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise TwinflowError(
                f"the LoRA can't be merged: {name} is quantised ({type(weight).__name__}). Load the adapter on the "
                "base as it is stored, without quantize"
            )
    for name, layer in layers.items():
        layer.merge()
        transformer.set_submodule(name, layer.get_base_layer())
    transformer.unload_lora()  # diffusers' own notes about it
    transformer.requires_grad_(True)


def lora_state_dict(transformer: nn.Module) -> dict[str, Tensor]:
    """The factors, under the names that diffusers gives them inside the transformer."""
    return {
        f"{name}.{factor}.weight": getattr(layer, factor)[ADAPTER].weight
        for name, layer in lora_layers(transformer).items()
        for factor in FACTORS
    }


@torch.no_grad()
def load_lora(transformer: Any, factors: Mapping[str, Tensor], settings: LoraSettings) -> None:
    """Attach an adapter with the weights ``factors``; ValueError names what does not fit the transformer."""
    modules = dict(transformer.named_modules())
    targets = sorted({name.rpartition(".lora_")[0] for name in factors})
    for name in targets:
        if not isinstance(getattr(modules.get(name), "weight", None), Tensor):
            raise ValueError(f"there is no layer {name}")
    attach_lora(transformer, settings, targets=targets)
    own = lora_state_dict(transformer)
    for name, weight in own.items():
        if name not in factors or factors[name].shape != weight.shape:
            there = tuple(factors[name].shape) if name in factors else "missing"
            raise ValueError(f"{name} should be {tuple(weight.shape)} and is {there}")
        weight.copy_(factors[name])


def diffusers_metadata(settings: LoraSettings, targets: Sequence[str]) -> dict[str, Any]:
    """What diffusers reads beside the factors: without it, it would take alpha for the rank."""
    return {"r": settings.rank, "lora_alpha": _alpha(settings), "target_modules": name_pattern(targets)}


def name_pattern(names: Sequence[str]) -> str:
    """A regular expression of exactly ``names``; those that differ in numbers alone are put together."""
    by_shape: dict[str, list[list[str]]] = {}
    for name in names:
        by_shape.setdefault(re.sub(r"\d+", "#", name), []).append(re.findall(r"\d+", name))
    patterns = []
    for shape, numbers in by_shape.items():
        literal, columns = re.escape(shape).split(r"\#"), list(zip(*numbers))
        whole = 1
        for column in columns:
            whole *= len(set(column))
        if whole == len(numbers):  # every combination is there
            choices = [_choice(sorted(set(column), key=int)) for column in columns]
            patterns.append("".join(a + b for a, b in zip(literal, [*choices, ""])))
        else:
            patterns += [
                "".join(a + b for a, b in zip(literal, [*combination, ""])) for combination in numbers
            ]
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _choice(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


def _alpha(settings: LoraSettings) -> float:
    return settings.rank if settings.alpha is None else settings.alpha
