"""What a benchmark needs before it can run: told before anything is fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinflow.errors import TwinflowError


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A file or a set of weights that doesn't ship with twinflow."""

    name: str  # short: "detector"
    what: str  # one line for people
    size: str  # "275 MB"
    licence: str
    source: str  # hub id, URL or package; what it is fetched from, or converted from
    option: str = ""  # of the command line, that names a local copy
    optional: bool = False  # an alternative to another one, or only for part of the scores


def config_of(path_or_id: str | Path, *, what: str) -> Any:
    """transformers' configuration of weights. ``TwinflowError`` if they are not there, as far as can be told without
    reading or fetching them."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path_or_id))
    except (OSError, ValueError) as error:
        raise TwinflowError(f"the weights of {what}, {path_or_id}, are not there: {error}") from error
    folder = Path(path_or_id)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise TwinflowError(
            f"the weights of {what}, {path_or_id}, are not there: the folder has a configuration and no .safetensors"
        )
    return config
