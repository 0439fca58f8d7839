"""Parameters that keep their values, by patterns of their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from twinflow.errors import TwinflowError


def freeze_parameters(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop training what ``patterns`` name (``*.img_mod.*``); :class:`TwinflowError` for one that names nothing."""
    frozen = []
    names = dict(module.named_parameters())
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            some = ", ".join(list(names)[:3])
            raise TwinflowError(
                f"model.freeze: {pattern!r} matches no parameter of the network; its names are such as {some}"
            )
        for name in matching:
            names[name].requires_grad_(False)
            frozen.append(name)
    return frozen
