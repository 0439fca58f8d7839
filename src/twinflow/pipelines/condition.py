"""What a stock transformer is conditioned on, row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# The prompt's tokens, and the masks that families pass beside them: true where a token counts.
TOKENS = "encoder_hidden_states"
MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask")
# No argument of the transformer: (B, tokens) true where a token's time is t, false where it is 0.
NOISY = "noisy_tokens"
# Nor is this: (B, …) what the transformer sees of source pictures, after the state: tokens, or channels of its size.
TAIL = "source_tokens"


@dataclass(frozen=True)
class Condition:
    """Arguments of the transformer besides state and time, in a form that has rows.

    ``tensors``: one row each along the first dimension. ``lists``: one entry a row, of any kind, such as
    prompts of different lengths or picture sizes. ``shared``: the same for every row, such as position ids.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    lists: dict[str, list[Any]] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        columns: list[Any] = [*self.tensors.values(), *self.lists.values()]
        if not columns:
            raise ValueError("this condition has no rows: it is the same for every row")
        return len(columns[0])

    def take(self, rows: Tensor) -> Condition:
        """Rows ``rows`` (K,) int64, in that order; repeats are allowed."""
        picked = rows.tolist() if self.lists else []
        return Condition(
            tensors={name: value[rows.to(value.device)] for name, value in self.tensors.items()},
            lists={name: [value[i] for i in picked] for name, value in self.lists.items()},
            shared=self.shared,
        )

    @classmethod
    def concat(cls, conditions: list[Condition]) -> Condition:
        """The rows of all ``conditions`` after one another.

        Prompts of different lengths, where the transformer takes a mask, are padded to the longest with masked
        zeros. ValueError if they can't be joined: of other transformers, or of another picture size.
        """
        lengths = {c._text_length() for c in conditions}
        if len(lengths) > 1 or len({frozenset(c.tensors) for c in conditions}) > 1:
            conditions = [c._padded(max(lengths)) for c in conditions]
        first = conditions[0]
        for other in conditions[1:]:
            if set(other.tensors) != set(first.tensors) or set(other.lists) != set(first.lists):
                raise ValueError(
                    f"conditions of different transformers can't be joined: {sorted(first.tensors | first.lists)} "
                    f"and {sorted(other.tensors | other.lists)}"
                )
            differing = [n for n, value in first.shared.items() if not same(value, other.shared.get(n))]
            if differing:
                raise ValueError(
                    f"conditions that differ in {', '.join(differing)} can't be joined: give all rows of a batch "
                    "the same picture size"
                )
        return cls(
            tensors={n: torch.cat([c.tensors[n] for c in conditions]) for n in first.tensors},
            lists={n: [entry for c in conditions for entry in c.lists[n]] for n in first.lists},
            shared=first.shared,
        )

    def to(self, device: torch.device | str) -> Condition:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=tensor.device.type == "cpu"))

    def cast(self, dtype: torch.dtype) -> Condition:
        """Embeddings in ``dtype``; masks, indices and numbers for a whole row (guidance, …) as they are."""

        def embedding(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() and tensor.dim() >= 2 else tensor

        return Condition(
            tensors={name: embedding(value) for name, value in self.tensors.items()},
            lists={name: [_on_tensor(embedding, e) for e in value] for name, value in self.lists.items()},
            shared=self.shared,
        )

    def arguments(self) -> dict[str, Any]:
        """All of it as keyword arguments of the transformer."""
        return {**self.shared, **self.lists, **self.tensors}

    # For files: tensors, and the rest as JSON can hold it

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything as named tensors and a JSON-able rest; :meth:`from_tensors` is the inverse.

        Entries of lists are numbered: ``list|name|0``. ValueError names what neither can hold.
        """
        tensors = {f"rows|{name}": value for name, value in self.tensors.items()}
        rest: dict[str, Any] = {"lists": {}, "shared": {}}
        for name, entries in self.lists.items():
            if all(isinstance(entry, Tensor) for entry in entries):
                tensors |= {f"list|{name}|{i}": entry for i, entry in enumerate(entries)}
                rest["lists"][name] = len(entries)
            else:
                rest["lists"][name] = [_plain(name, entry) for entry in entries]
        for name, value in self.shared.items():
            if isinstance(value, Tensor):
                tensors[f"shared|{name}"] = value
            else:
                rest["shared"][name] = _plain(name, value)
        return {name: value.contiguous() for name, value in tensors.items()}, rest

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> Condition:
        lists: dict[str, list[Any]] = {}
        for name, entries in rest["lists"].items():
            stored = isinstance(entries, int)
            lists[name] = (
                [tensors[f"list|{name}|{i}"] for i in range(entries)]
                if stored
                else [_tuples(entry) for entry in entries]
            )
        shared = {name: _tuples(value) for name, value in rest["shared"].items()}
        columns: dict[str, dict[str, Tensor]] = {"rows": {}, "list": {}, "shared": {}}
        for key, value in tensors.items():
            kind, _, name = key.partition("|")
            columns[kind][name] = value
        return cls(tensors=columns["rows"], lists=lists, shared=shared | columns["shared"])

    # Parts

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(
            tensors={name: change(value) for name, value in self.tensors.items()},
            lists={
                name: [_on_tensor(change, entry) for entry in value] for name, value in self.lists.items()
            },
            shared={name: _on_tensor(change, value) for name, value in self.shared.items()},
        )

    def _text_length(self) -> int:
        return self.tensors[TOKENS].shape[1] if TOKENS in self.tensors else 0

    def _padded(self, length: int) -> Condition:
        """With a mask, and the prompt's tokens padded to ``length``."""
        mask_name = next((name for name in MASKS if name in self.tensors or name in self.shared), None)
        if mask_name is None or TOKENS not in self.tensors:
            return self
        tokens = self.tensors[TOKENS]
        mask = self.tensors.get(mask_name)
        if mask is None:  # no mask: all tokens count
            mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        missing = length - tokens.shape[1]
        changed = {TOKENS: pad(tokens, (0, 0, 0, missing)), mask_name: pad(mask, (0, missing))}
        shared = {name: value for name, value in self.shared.items() if name != mask_name}
        return Condition(tensors=self.tensors | changed, lists=self.lists, shared=shared)


def _on_tensor(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    return change(value) if isinstance(value, Tensor) else value


def same(one: Any, other: Any) -> bool:
    """Whether two entries of conditions are equal."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def _plain(name: str, value: Any) -> Any:
    """``value`` if JSON can hold it."""
    try:
        json.dumps(value)
    except TypeError as error:
        raise ValueError(f"the condition {name} = {value!r} can't be written to a file: {error}") from error
    return value


def _tuples(value: Any) -> Any:
    """JSON's lists of numbers as tuples again: sizes, scales."""
    if isinstance(value, list):
        inner = [_tuples(entry) for entry in value]
        return tuple(inner) if all(isinstance(entry, (int, float)) for entry in inner) else inner
    return value
