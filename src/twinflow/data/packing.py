"""Encoded rows as the tensors and the JSON of one safetensors file, equal tensors stored once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from twinflow.data.rows import EncodedRow

Fetch = Callable[[str], Tensor]


class Packer:
    """Collects tensors by the hash of their contents: position ids, masks and repeated captions come once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[
            int, tuple[Tensor, str]
        ] = {}  # by identity: rows share their unconditional condition

    def pack_row(self, row: EncodedRow) -> dict[str, Any]:
        """The row as JSON that names its tensors."""
        return {
            "x": self.pack(row.x),
            "conds": [self.pack(cond) for cond in row.conds],
            "uncond": self.pack(row.uncond),
            "captions": list(row.captions),
            "own_uncond": row.own_uncond,
        }

    def pack(self, value: Any) -> Any:
        """A condition: a tensor, None, a dict, list or tuple of conditions, or one with ``to_tensors``."""
        if value is None:
            return None
        if isinstance(value, Tensor):
            return {"tensor": self._add(value)}
        if hasattr(value, "to_tensors"):
            tensors, rest = value.to_tensors()
            named = {name: self._add(tensor) for name, tensor in tensors.items()}
            return {"condition": named, "rest": rest}
        if isinstance(value, dict):
            return {"dict": {name: self.pack(part) for name, part in value.items()}}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [self.pack(part) for part in value]}
        raise TypeError(f"a condition of type {type(value).__name__} can't be written to a file")

    def _add(self, tensor: Tensor) -> str:
        known = self._names.get(id(tensor))
        if known is not None:
            return known[1]
        plain = tensor.detach().to("cpu").contiguous()
        kind = f"{plain.dtype} {tuple(plain.shape)} ".encode()
        raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        name = hashlib.blake2b(kind + raw, digest_size=12).hexdigest()
        self.tensors.setdefault(name, plain)
        self._names[id(tensor)] = (tensor, name)  # the tensor is kept, so that its id stays its own
        return name


def unpack_row(packed: dict[str, Any], fetch: Fetch, *, number: int | None = None) -> EncodedRow:
    """The inverse of :meth:`Packer.pack_row`; ``fetch`` returns the tensor of a name.

    With ``number`` the conditions of other captions than this one are left out as ``None``.
    """
    conds = [
        unpack(cond, fetch) if number is None or i == number else None
        for i, cond in enumerate(packed["conds"])
    ]
    return EncodedRow(
        x=unpack(packed["x"], fetch),
        conds=conds,
        uncond=unpack(packed["uncond"], fetch),
        captions=tuple(packed["captions"]),
        own_uncond=packed["own_uncond"],
    )


def unpack(packed: Any, fetch: Fetch) -> Any:
    if packed is None:
        return None
    if "tensor" in packed:
        return fetch(packed["tensor"])
    if "condition" in packed:
        from twinflow.pipelines.condition import Condition

        tensors = {name: fetch(key) for name, key in packed["condition"].items()}
        return Condition.from_tensors(tensors, packed["rest"])
    if "dict" in packed:
        return {name: unpack(part, fetch) for name, part in packed["dict"].items()}
    kind: Any = list if "list" in packed else tuple
    return kind(unpack(part, fetch) for part in packed.get("list", packed.get("tuple")))


def rows_json(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(list(rows), separators=(",", ":"))
