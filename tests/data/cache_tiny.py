"""``python -m data.cache_tiny FOLDER [N]``: write a cache; die by SIGKILL in the writing of the N-th shard."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from training.tiny import Colors, TinyPipeline
from twinflow.data import cache
from twinflow.data.encoding import ItemEncoder

IDENTITY = {"model": {"files": {"vae": "1"}}, "data": {"size": 4}}


def write(folder: Path, *, progress: Any = None, rows: int = 22, identity: Any = None) -> int:
    return cache.write_cache(
        folder,
        Colors(rows),
        ItemEncoder(TinyPipeline(), unconditional=""),
        identity=identity or IDENTITY,
        shard_rows=5,
        progress=progress,
    )


def die_while_writing(count: int) -> None:
    """Let shard number ``count`` be half written, and then be killed."""
    whole, written = cache.save_tensors, 0

    def write_or_die(tensors: Any, path: Path, *, metadata: Any) -> None:
        nonlocal written
        written += 1
        whole(tensors, path, metadata=metadata)
        if written == count:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    cache.save_tensors = write_or_die


if __name__ == "__main__":
    folder, *count = sys.argv[1:]
    if count:
        die_while_writing(int(count[0]))
    write(Path(folder))
