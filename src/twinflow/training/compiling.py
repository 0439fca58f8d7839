"""``torch.compile`` of the networks that a run calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from twinflow.errors import TwinflowError
from twinflow.pipelines.blocks import repeated_blocks


def compile_networks(networks: Iterable[nn.Module], *, how: bool | Literal["blocks"]) -> None:
    """Compile each network in place, as ``train.compile`` says: ``how`` it is.

    ``True``: each as one graph, which is fastest and takes minutes to compile for a network of many blocks.
    ``"blocks"``: each repeated block; blocks that are alike share a graph, also those of an average and of a teacher.
    A network without parameters calls another with other weights, and is compiled with that.
    :class:`TwinflowError` if one has no repeated blocks.
    """
    if how is False:
        return
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
