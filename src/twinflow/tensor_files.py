"""Safetensors files that can be read by whoever may read the files beside them.

The safetensors library lets nobody but their owner read what it writes, whatever the umask says: checkpoints on a
shared disk could not be used by others.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """``safetensors.torch.save_file``, with the permissions that any new file gets, or that the file had."""
    file = Path(path)
    there = file.exists()
    file.touch()  # which gives them
    mode = file.stat().st_mode
    try:
        save_file(dict(tensors), file, metadata=dict(metadata) if metadata is not None else None)
    except BaseException:
        if not there:
            file.unlink(missing_ok=True)
        raise
    file.chmod(mode)


def let_read(folder: str | Path, *, like: str) -> None:
    """Give the safetensors files in the parts of a pipeline's ``folder``, which another library wrote, the permissions
    of its file ``like``."""
    for file in Path(folder).glob("*/*.safetensors"):
        shutil.copymode(Path(folder) / like, file)
