"""Which weights a folder holds, told apart without reading forty gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

SAMPLE = 1 << 20  # bytes read from the beginning, the middle and the end of a file
_IGNORED = {".md", ".png", ".jpg", ".txt~"}


def fingerprint(path_or_id: str | Path) -> str:
    """A short hash of a model's files: names, sizes and a sample of the bytes of each.

    Training moves every weight of a file, so a sample tells any two checkpoints apart. A hub id is known by the commit
    that was fetched, whichever of its files were; where there is none, the id itself is the fingerprint.
    """
    folder = model_folder(path_or_id)
    if folder is None:
        return str(path_or_id)
    state = hashlib.sha256()
    if not Path(path_or_id).exists():
        state.update(f"{path_or_id}\0{folder.name}".encode())  # snapshots/<commit>
        return state.hexdigest()[:16]
    for file in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if not file.is_file() or file.suffix.lower() in _IGNORED or file.name.startswith("."):
            continue
        size = file.stat().st_size
        state.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            for start in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
                stream.seek(start)
                state.update(stream.read(SAMPLE))
    return state.hexdigest()[:16]


def weights_name(path_or_id: str | Path) -> str:
    """Which weights a protocol means: a local folder by its name and fingerprint, a hub id by itself, which is the same
    before it was fetched and afterwards."""
    path = Path(path_or_id)
    return f"{path.name} {fingerprint(path)}" if path.exists() else str(path_or_id)


def weights_hash(network: nn.Module) -> str:
    """A short hash of a network in memory: of every weight, bit for bit."""
    state = hashlib.sha256()
    for name, value in network.state_dict().items():
        state.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


def model_folder(path_or_id: str | Path) -> Path | None:
    """The folder of a local path, or the snapshot of a hub id that was fetched; ``None`` if there is none."""
    path = Path(path_or_id)
    if path.exists():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("model_index.json", "config.json"):
        try:
            found = try_to_load_from_cache(str(path_or_id), name)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None
