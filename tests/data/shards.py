"""Small tables on the disk: parquet and webdataset shards of pictures whose grey value is their number."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def png(grey: int, *, width: int = 12, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, *, shards: int = 3, rows: int = 5, text: str = "text") -> list[Path]:
    """Row ``i`` of all has grey value ``i`` and the caption "picture i"."""
    features = datasets.Features({"image": datasets.Image(), text: datasets.Value("string")})
    files = []
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        columns = {
            "image": [{"bytes": png(i), "path": None} for i in numbers],
            text: [f"picture {i}" for i in numbers],
        }
        files.append(folder / f"part-{shard}.parquet")
        datasets.Dataset.from_dict(columns, features=features).to_parquet(files[-1])
    return files


def write_tars(folder: Path, *, shards: int = 3, rows: int = 5) -> list[Path]:
    """As above; the entry "also" of the JSON lists two captions."""
    files = []
    for shard in range(shards):
        files.append(folder / f"part-{shard}.tar")
        with tarfile.open(files[-1], "w") as archive:
            for i in range(shard * rows, (shard + 1) * rows):
                parts = {
                    "png": png(i),
                    "txt": f"picture {i}".encode(),
                    "json": json.dumps({"also": [f"a {i}", f"b {i}"]}).encode(),
                }
                for suffix, data in parts.items():
                    member = tarfile.TarInfo(f"{i:05}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return files
