"""The part of a network that a training changes: trained parameters and persistent buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.training.ema import trained_parameters
from twinflow.training.protocols import FreezesUnused, Trainable
from twinflow.training.shards import local


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """All that has to be saved to get ``network`` back from the pipeline it started as; of a sharded one the slices."""
    persistent = network.state_dict().keys() & dict(network.named_buffers()).keys()
    buffers = {name: buffer for name, buffer in network.named_buffers() if name in persistent}
    trained = {name: local(p) for name, p in trained_parameters(network).items()}
    return {**trained, **buffers}


def freeze_unused(pipe: Trainable) -> list[str]:
    """Let ``pipe`` freeze what it computes in vain, if it can tell; a line about it for the user, if any."""
    if not isinstance(pipe, FreezesUnused):
        return []
    names = pipe.freeze_unused()
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (
        [f"not trained, as the output does not depend on them: {shown} ({len(names)} in all)"]
        if names
        else []
    )


@torch.no_grad()
def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill ``network`` in place, so that optimisers and averages keep their tensors.

    ``ValueError`` unless names and shapes are those of :func:`trained_weights`; parameters that are frozen now
    may be there too, from a version that trained them.
    """
    own = trained_weights(network)
    own |= {name: local(p) for name, p in network.named_parameters() if name in weights}
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise ValueError(f"its weights have other names ({', '.join(odd[:3])}, …)")
    for name, weight in own.items():
        if weight.shape != weights[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(weights[name].shape)} there, and {tuple(weight.shape)} here"
            )
    for name, weight in own.items():
        weight.copy_(weights[name])


@torch.no_grad()
def overwrite(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill the parameters and buffers of ``network`` that ``weights`` names; ``TwinflowError`` if one does not fit."""
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    for name, weight in weights.items():
        if name not in own or own[name].shape != weight.shape:
            raise TwinflowError(
                f"the checkpoint is of another model: its {name} is not in this one, or differs"
            )
        own[name].copy_(weight)


def leave_device(pipe: Any, *, keep: Sequence[str]) -> None:
    """Move the networks of a pipeline that the steps don't need to the host: :func:`spare_parts`."""
    for part in spare_parts(pipe, keep=keep).values():
        if any(parameter.is_cuda for parameter in part.parameters()):
            part.to("cpu")


def spare_parts(pipe: Any, *, keep: Sequence[str]) -> dict[str, nn.Module]:
    """The networks of a pipeline, by name, that are neither trained, in whole or in part, nor among ``keep``."""
    trained = {id(module) for module in pipe.network.modules()}
    return {
        name: part
        for name, part in getattr(getattr(pipe, "pipe", None), "components", {}).items()
        if isinstance(part, nn.Module)
        and name not in keep
        and not any(id(module) in trained for module in part.modules())
    }
