"""Words for what is wrong with a recipe: the key, the value, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def disallowed(key: str, value: Any, allowed: str) -> str:
    return f"{key} = {value!r} is not allowed: {allowed[:1].lower()}{allowed[1:]}"


def unknown_key(
    name: str, allowed: Iterable[str], *, where: str, noun: str = "key", whole: str = "recipe"
) -> str:
    """``name`` is not among ``allowed`` in the section ``where`` of a ``whole`` ("" is that itself)."""
    choices = list(allowed)
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    if noun == "key":
        path = f"{where}.{name}" if where else name
        place = where or f"a {whole}"
        return f"{path} is not a {whole} key{hint}; allowed in {place}: {', '.join(choices)}"
    return f"{where} = {name!r} is not known{hint}; use one of {', '.join(choices)}"
