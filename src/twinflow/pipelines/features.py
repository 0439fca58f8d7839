"""What a transformer computes on its way, for discriminators: the outputs of some of its repeated blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from twinflow.errors import TwinflowError

TAPS = 4  # at most, at equal distances, the last block among them
_TRUNK = 0.2  # share of the blocks' parameters from which on a list of blocks belongs to the trunk


def trunk(transformer: nn.Module) -> list[nn.Module]:
    """The repeated blocks that the picture passes through, from input to output.

    These are the transformer's own lists of modules, without small ones (a few layers of projections) and
    refiners, which may see nothing but text.
    """
    lists = {
        name: (list(child), sum(p.numel() for p in child.parameters()))
        for name, child in transformer.named_children()
        if isinstance(child, nn.ModuleList) and "refiner" not in name
    }
    whole = sum(count for _, count in lists.values())
    blocks = [block for some, count in lists.values() if count >= _TRUNK * whole > 0 for block in some]
    if not blocks:
        raise TwinflowError(
            f"{type(transformer).__name__} has no repeated blocks whose features could be judged"
        )
    return blocks


@contextmanager
def tapped(
    transformer: nn.Module, *, taps: int = TAPS, blocks: Sequence[nn.Module] | None = None
) -> Iterator[list[Tensor]]:
    """Collect, during a block of code, the features (B, N, D) of the trunk, shallow to deep, of one call.

    ``blocks``: take those of these, from input to output, instead.
    """
    features: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        features.append(_picture_stream(args, named, output))

    if blocks is None:
        whole = trunk(transformer)
        count = min(taps, len(whole))
        blocks = [whole[len(whole) * (i + 1) // count - 1] for i in range(count)]
    handles = [block.register_forward_hook(keep, with_kwargs=True) for block in blocks]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def _picture_stream(args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
    """What a block makes of the picture: the output of its first input's shape, as (B, N, D).

    Blocks of two streams return text and picture, in either order; the picture is their "hidden_states". Of two
    outputs of this shape the last is taken.
    """
    state = named["hidden_states"] if "hidden_states" in named else args[0]
    outputs = [output] if isinstance(output, Tensor) else [o for o in output if isinstance(o, Tensor)]
    stream = next((o for o in reversed(outputs) if o.shape == state.shape), outputs[-1])
    return stream.flatten(2).transpose(1, 2) if stream.dim() == 4 else stream
