"""Tensors of a file that the user names; no code in it is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twinflow.errors import TwinflowError


def read_weights(
    file: str | Path, *, what: str, remedy: str = "Give a .safetensors, or a .pth of tensors alone."
) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors``, or of a ``.pt`` or ``.pth`` of tensors alone (``weights_only``).

    ``TwinflowError`` with the ``remedy`` if it can't be read as the weights of ``what``.
    """
    file = Path(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise TwinflowError(
            f"{file} can't be read as the weights of {what}, and twinflow runs no pickled code "
            f"({type(error).__name__}). {remedy}"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise TwinflowError(f"{file} holds no state dict, and should be the weights of {what}")
    return tensors
