"""Watches tensors come and go: bytes that live at the same time, and floating-point operations.

It works on real tensors, and on fake ones that have shapes but no data, in the same way: every storage that an
operation makes is counted until the last tensor that shares it is gone. So what is measured is what Python and
autograd really keep, and no formula of any model is needed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twinflow.planner.flops import operations


@dataclass
class Segment:
    """A stretch of a step: what it leaves behind, and how far it rises above its start on the way."""

    label: str
    change: int = 0  # bytes alive at its end, less those at its start
    rise: int = 0  # highest point over its start
    flops: int = 0
    host: int = 0  # bytes moved to the host, less those brought back
    freed: dict[int, int] = field(default_factory=dict)  # bytes, by the number of the segment that made them


@dataclass
class StorageTracker(TorchDispatchMode):
    """Counts bytes and operations of all that runs inside, cut into segments by :meth:`mark`.

    Tensors given to :meth:`ignore` (weights, say) are not counted, and neither are those made before.
    """

    segments: list[Segment] = field(default_factory=lambda: [Segment("start")])
    live: int = 0
    peak: int = 0
    host: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._known: dict[int, Any] = {}  # by the address of the storage object
        self._sizes: dict[int, int] = {}  # counted bytes, likewise
        self._start = 0
        self._busy = False

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave these tensors' storages out of the count."""
        for tensor in tensors:
            self._register(tensor.untyped_storage(), counted=False)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made outside."""
        for tensor in tensors:
            self._register(tensor.untyped_storage(), counted=True)

    def forget(self, tensor: Tensor) -> None:
        """Count ``tensor`` no longer, though it is still there: something else that is counted takes its place."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes:
            self._change(-self._sizes[key])
            self._sizes[key] = 0

    def mark(self, label: str) -> None:
        """End the present segment and begin another."""
        self._start = self.live
        self.segments.append(Segment(label))

    def to_host(self, count: int) -> None:
        """Note that ``count`` bytes went to the host (or came back, if negative)."""
        self.host += count
        self.segments[-1].host += count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._busy:  # entered a second time, outside of a fake mode: what that does inside is not ours
            return func(*args, **(kwargs or {}))
        self._busy = True
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self._busy = False
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._register(leaf.untyped_storage(), counted=True)
        self.segments[-1].flops += operations(func, args, kwargs or {}, out)
        return out

    def _register(self, storage: torch.UntypedStorage, *, counted: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size, born = storage.nbytes() if counted else 0, len(self.segments) - 1

        def freed(_: Any) -> None:
            del self._known[key]
            left = self._sizes.pop(key)
            self._change(-left)
            freed_here = self.segments[-1].freed
            freed_here[born] = freed_here.get(born, 0) + left

        self._known[key], self._sizes[key] = weakref.ref(storage, freed), size
        self._change(size)

    def _change(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)
        segment = self.segments[-1]
        segment.change += size
        segment.rise = max(segment.rise, self.live - self._start)
