"""What the output of a network depends on, found by watching one forward pass (never by names).

Some layers run in vain: the text stream of the last block of Qwen-Image is computed and thrown away. Their
parameters never get a gradient, which breaks whatever waits for one. And the layers that a LoRA is best put on are
those that work on tokens: attention and feed-forward layers, not the modulations, which see one row a sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from twinflow.errors import TwinflowError
from twinflow.pipelines.absent import where_the_weights_are
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.time_path import linears
from twinflow.pipelines.wiring import PROMPTS
from twinflow.sampling import seeded_noise

if TYPE_CHECKING:
    from twinflow.pipelines.any_step import AnyStepPipeline


@dataclass(kw_only=True)
class _Run:
    """What a module did in the pass: rows of its input for each sample, and the operations that made its outputs."""

    rows: float
    made_by: list[Node] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What :func:`watch` saw, by the name of the module inside the transformer.

    ``nodes``: the operations that the output depends on. ``moving``: modules of whose outputs one got a gradient
    that is not zero.
    """

    runs: dict[str, _Run]
    nodes: set[Node]
    moving: set[str]

    def in_vain(self, name: str) -> bool:
        """Whether the module ran, and the output does not depend on it.

        Its output is thrown away, or is asked for in a way that gives no gradient while the module of that name in
        another block gets one: the queries of text in a last block that keeps the picture alone.
        """
        made_by = self.runs[name].made_by if name in self.runs else []
        if not made_by:
            return False  # did not run, or nothing it was given has a gradient: nothing is known
        if not self.nodes.intersection(made_by):
            return True
        return name not in self.moving and _shape(name) in self._moving_shapes

    @cached_property
    def _moving_shapes(self) -> set[str]:
        return {_shape(name) for name in self.moving}


@torch.enable_grad()
def watch(pipe: AnyStepPipeline) -> Reach:
    """One forward and one backward pass of ``pipe`` on one or two samples, as if no weight were trained."""
    # The prompts that the pipeline was opened with: known where its encoders have been left out since.
    prompts = PROMPTS[-1:] if pipe.adapter.wiring.one_prompt_a_call else PROMPTS
    cond = _with_gradient(pipe.encode_prompts(prompts).to(pipe.device))
    x = seeded_noise(pipe.latent_shape, range(len(prompts))).to(pipe.device).requires_grad_()
    t = torch.full((len(prompts),), 0.75, device=pipe.device)
    with _not_trained(pipe.network), _recorded(pipe.pipe.transformer, len(prompts)) as (runs, moving):
        output = pipe.network(x, t, 0.5 * t, cond)
        nodes = _operations(output)
        output.float().square().sum().backward()
    return Reach(runs=runs, nodes=nodes, moving=moving)


def lora_targets(pipe: AnyStepPipeline, wanted: tuple[str, ...] | None) -> list[str]:
    """Names of the layers that a LoRA is put on: those that are ``wanted``, or the default ones."""
    return default_targets(pipe) if wanted is None else chosen_targets(pipe, wanted)


def default_targets(pipe: AnyStepPipeline) -> list[str]:
    """Names of the layers that a LoRA is put on: the Linears of repeated blocks that work on tokens and have an
    effect, which are those of attention and feed-forward, and those of the time MLP (not of its branch)."""
    transformer = pipe.pipe.transformer
    blocks = in_repeated_blocks(transformer)

    def on_tokens() -> list[str]:
        reach = watch(pipe)
        return [
            name
            for name, module in transformer.named_modules()
            if isinstance(module, nn.Linear)
            and name in blocks
            and name in reach.runs
            and not reach.in_vain(name)
            # One row a sample, or two where clean tokens have a time of their own, is a modulation.
            and reach.runs[name].rows > 2
        ]

    found: list[str] = where_the_weights_are(transformer, on_tokens)
    mlp_path = pipe.adapter.wiring.time_path.mlp
    mlp = transformer.get_submodule(mlp_path)
    layers = {id(layer) for layer in linears(mlp)}
    return found + [f"{mlp_path}.{name}" for name, module in mlp.named_modules() if id(module) in layers]


def chosen_targets(pipe: AnyStepPipeline, wanted: tuple[str, ...]) -> list[str]:
    """Full names of the Linears whose names are, or end with, one of ``wanted``; never of the branch."""
    branch = f"{pipe.adapter.wiring.time_path.mlp}.target_embedder."
    names = [
        name
        for name, module in pipe.pipe.transformer.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(branch)
    ]
    for end in wanted:
        if not any(_ends_with(name, end) for name in names):
            kinds = sorted({name.rpartition(".")[2] for name in names} - {str(i) for i in range(10)})
            raise TwinflowError(
                f"targets: no Linear layer of {type(pipe.pipe.transformer).__name__} is named {end!r}, or ends so; "
                f"there are {', '.join(kinds)}"
            )
    return [name for name in names if any(_ends_with(name, end) for end in wanted)]


def unused_parameters(pipe: AnyStepPipeline) -> dict[str, nn.Parameter]:
    """Trained parameters of modules that run in vain, by their name in the network.

    A module that did not run at all is left alone: another condition may need it.
    """

    def in_vain() -> tuple[str, ...]:
        reach = watch(pipe)
        return tuple(f"transformer.{name}." for name in reach.runs if reach.in_vain(name))

    vain = where_the_weights_are(pipe.pipe.transformer, in_vain)
    named = pipe.network.named_parameters()
    return {name: p for name, p in named if p.requires_grad and name.startswith(vain)}


@contextmanager
def _recorded(transformer: nn.Module, samples: int) -> Iterator[tuple[dict[str, _Run], set[str]]]:
    runs: dict[str, _Run] = {}
    moving: set[str] = set()

    def hook(name: str) -> Any:
        def moved(gradient: Tensor) -> None:
            if gradient.any():
                moving.add(name)

        def record(module: nn.Module, args: tuple, output: Any) -> None:
            if name not in runs:
                given = args[0] if args and isinstance(args[0], Tensor) else None
                rows = 0 if given is None or given.dim() == 0 else given.numel() / given.shape[-1] / samples
                runs[name] = _Run(rows=rows)
            if isinstance(output, Tensor) and output.grad_fn is not None:
                runs[name].made_by.append(output.grad_fn)
                output.register_hook(moved)

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in transformer.named_modules()]
    try:
        yield runs, moving
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _not_trained(network: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _operations(output: Tensor) -> set[Node]:
    """All operations that ``output`` was computed by."""
    seen: set[Node] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [earlier for earlier, _ in node.next_functions]
    return seen


def in_repeated_blocks(transformer: nn.Module) -> set[str]:
    """Names of all modules inside the elements of a ModuleList."""
    lists = [name for name, module in transformer.named_modules() if isinstance(module, nn.ModuleList)]
    names = (name for name, _ in transformer.named_modules())
    return {name for name in names if any(name.startswith(f"{path}.") for path in lists)}


def _with_gradient(cond: Condition) -> Condition:
    """Embeddings that ask for a gradient, so that the graph begins before the first layer."""

    def asking(name: str, value: Any) -> Any:
        is_embedding = isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2
        return value.detach().clone().requires_grad_() if is_embedding and "mask" not in name else value

    return replace(
        cond,
        tensors={name: asking(name, value) for name, value in cond.tensors.items()},
        lists={name: [asking(name, entry) for entry in entries] for name, entries in cond.lists.items()},
    )


def _shape(name: str) -> str:
    """``name`` with its numbers left open."""
    return re.sub(r"\d+", "#", name)


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
