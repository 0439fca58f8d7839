"""``torch.compile`` of the networks that a run calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from twinflow.errors import TwinflowError
from twinflow.pipelines.blocks import repeated_blocks

GRAPHS = 64


def compile_networks(networks: Iterable[nn.Module], *, how: bool | Literal["blocks"]) -> None:
    """Compile each network in place, as ``train.compile`` says: ``how`` it is.

    ``True``: each as one graph, which is fastest and takes minutes to compile for a network of many blocks.
    ``"blocks"``: each repeated block; blocks that are alike share a graph, also those of an average and of a teacher.
    A network without parameters calls another with other weights, and is compiled with that.
    :class:`TwinflowError` if one has no repeated blocks.
    """
    if how is False:
        return
    _allow_graphs()
    for network in networks:
        if next(network.parameters(), None) is None:
            continue
        if how is True:
            network.compile()
            continue
        blocks = list(repeated_blocks(network))
        if not blocks:
            raise TwinflowError(
                f"train.compile = 'blocks': {type(network).__name__} has no repeated blocks: set it to true"
            )
        for block in blocks:
            block.compile()


def _allow_graphs() -> None:
    """Let torch keep :data:`GRAPHS` of one function: beyond its own 8 it runs what else comes as it is written, slowly.

    A block has one with and one without gradient, for weights that are trained and that are not, for the first count of
    rows and for any other, and for whatever else its layers differ in.
    """
    from torch._dynamo import config  # imports the compiler

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * GRAPHS)
