"""The repeated blocks of a transformer: what is planned, recomputed and sharded as one piece."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def block_lists(module: nn.Module) -> list[tuple[nn.Module, str, nn.ModuleList]]:
    """The lists of repeated blocks, with the module and the name that they are found under."""
    lists = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) > 0
    ]
    named = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    whole = [entry for entry in lists if type(entry[2][0]).__name__ in named]
    if not whole and lists:
        largest = max(lists, key=lambda entry: sum(p.numel() for p in entry[2].parameters()))
        whole = [largest]
    inner = {id(m) for _, _, blocks in whole for block in blocks for m in block.modules()}
    return [entry for entry in whole if id(entry[2]) not in inner]


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    for _, _, blocks in block_lists(module):
        yield from blocks
