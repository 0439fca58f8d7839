"""Models as the command line names them.

``[NAME=]MODEL[@NFE]``, where MODEL is a diffusers folder or hub id, an any-step checkpoint, the folder of a run, an
embedded model, ``stock:MODEL`` for diffusers' own call, or ``images:FOLDER`` (or just the folder) for pictures
that were drawn before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from twinflow.assets import locate
from twinflow.errors import TwinflowError
from twinflow.evaluation.pictures import pictures_in

STOCK, IMAGES = "stock:", "images:"


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What a model's name on the command line says; nothing is loaded."""

    name: str  # in tables and folders
    path: str
    kind: str  # "any-step", "stock" or "images"
    nfe: int | None = None  # of pictures that were drawn before, where it is known

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """``TwinflowError`` for a folder that is neither a model nor pictures."""
        name, equals, path = text.partition("=")
        if not equals:
            name, path = "", text
        match = re.fullmatch(r"(.*)@(\d+)", path)
        nfe = int(match[2]) if match else None
        path = match[1] if match else path
        kind = "any-step"
        for prefix, meant in ((STOCK, "stock"), (IMAGES, "images")):
            if path.startswith(prefix):
                path, kind = path.removeprefix(prefix), meant
        path = locate(path)
        if kind != "images":
            path, kind = _found(path, kind)
        if not name:
            parts = [part for part in Path(path).parts if part not in ("pipeline", "..", ".", "/")]
            name = parts[-1] if parts else path
        if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
            raise TwinflowError(f"the model's name {name!r} can't name a folder: give another, NAME={path}")
        return cls(name=name, path=path, kind=kind, nfe=nfe)


def _found(path: str, kind: str) -> tuple[str, str]:
    """The path of the pipeline, and what it is."""
    folder = Path(path)
    if not folder.is_dir():
        return path, kind  # a hub id, or an error when it is loaded
    if (folder / "model_index.json").is_file() or (folder / "twinflow.json").is_file():
        return path, kind
    if (folder / "pipeline" / "model_index.json").is_file():
        return str(folder / "pipeline"), kind
    if (folder / "recipe.yaml").is_file():
        raise TwinflowError(
            f"the run in {folder} has written no pipeline yet: let it end (the same `twinflow train` goes on)"
        )
    if (folder / "state.json").is_file():
        raise TwinflowError(
            f"{folder} is a checkpoint of a run: `twinflow export-checkpoint {folder} FOLDER` makes a pipeline of it"
        )
    if kind == "any-step" and pictures_in(folder):
        return path, "images"
    raise TwinflowError(
        f"{folder} is no model and has no pictures: it has no model_index.json, and no PNG file"
    )
