"""Recipes without a file: a model, data, and changes, as they are typed behind a command."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinflow.assets import locate
from twinflow.errors import TwinflowError
from twinflow.recipes.data import DigitsData, PictureData, PromptsData, ShapeWorldData
from twinflow.recipes.load import DATA_KINDS, changed_recipe, load_recipe, parse_overrides
from twinflow.recipes.sections import Recipe

OBJECTIVE = {"name": "twinflow"}  # its defaults are what won here
# A length and a batch that a model of any size can begin with.
TRAIN = {"steps": 3000, "batch": 16}
LARGEST = 512  # pixels a side, where nobody says
SOURCE = "the command line"
_CHANGE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def recipe_of(arguments: Sequence[str | Path]) -> Recipe:
    """The recipe that a command's ``arguments`` say: the file of a recipe and changes to it, or changes alone.

    The latter need ``model=…`` and ``data=…``; what they leave out is :func:`typed_recipe`'s.
    """
    words = list(map(str, arguments))
    return load_recipe(words[0], words[1:]) if names_recipe(words) else typed_recipe(words)


def names_recipe(arguments: Sequence[str]) -> bool:
    """Whether the first of ``arguments`` can only be the file of a recipe, or was meant to be.

    A file may have a name with an equals sign (runs/lr=1e-3/recipe.yaml), and may have been typed behind a change.
    """
    first, *changes = arguments
    return Path(first).is_file() or not _CHANGE.match(first) or any(Path(name).is_file() for name in changes)


def typed_recipe(changes: Sequence[str]) -> Recipe:
    """TwinFlow, as ``changes`` (``"model=PATH"``, ``"data=PATH"``, ``"a.b=c"``) say.

    ``data=`` is a folder of pictures; a file, a pattern, or the name of a data set on the hub is a table; ``.txt``
    are prompts. The output is ``runs/`` and the name of the model. ``TwinflowError`` says what is missing.
    """
    changes = _with_data_kind(changes)
    typed = parse_overrides(changes)
    model, data = _section(typed, "model"), _section(typed, "data")
    missing = []
    if not model.get("path"):
        missing.append("model=PATH, a diffusers folder, a hub id or shapeworld-tiny")
    if not data.get("kind"):
        missing.append("data=PATH, a folder of pictures with captions")
    if missing:
        raise TwinflowError(
            f"{SOURCE} does not say what to train: add {', and '.join(missing)}; or name the file of a recipe first"
        )
    path = str(model["path"])
    layer: dict[str, Any] = {
        "objective": dict(OBJECTIVE),
        "train": dict(TRAIN),
        "output": f"runs/{_name(path)}",
    }
    kind = DATA_KINDS.get(str(data["kind"]))
    if kind is not None and issubclass(kind, PictureData):
        layer["data"] = {"size": _size(path)}
    return changed_recipe(layer, changes, source=SOURCE)


def _with_data_kind(changes: Sequence[str]) -> list[str]:
    """``data=PATH`` as ``data.path=PATH`` and the kind that the path is of, unless ``data.kind`` is said."""
    said = any(change.startswith("data.kind=") for change in changes)
    spelt: list[str] = []
    for change in changes:
        key, _, value = change.partition("=")
        if key != "data" or not value or value.startswith("{"):
            spelt.append(change)
        elif value in (_kind(ShapeWorldData), _kind(DigitsData)) and not Path(value).exists():
            spelt.append(f"data.kind={value}")
        else:
            spelt += [f"data.path={value}", *([] if said else [f"data.kind={_kind_of(value)}"])]
    return spelt


def _kind_of(path: str) -> str:
    place = Path(path)
    if place.is_dir():
        return "folder"
    if place.suffix == ".txt":
        return _kind(PromptsData)
    table = place.is_file() or glob.has_magic(path) or _HUB_ID.fullmatch(path)
    return "dataset" if table else "folder"


def _kind(section: type) -> str:
    return next(name for name, kind in DATA_KINDS.items() if kind is section)


def _section(typed: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = typed.get(name)
    return section if isinstance(section, Mapping) else {}


def _name(model: str) -> str:
    """The last part of a folder's name or hub id."""
    place = Path(model)
    return (place.resolve() if place.is_dir() else place).name or "model"


def _size(model: str) -> int:
    """512 pixels a side, or those of a model whose folder says that it makes smaller pictures."""
    folder = Path(locate(model))
    try:
        side, widths = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8"))[key]
            for part, key in (("transformer", "sample_size"), ("vae", "block_out_channels"))
        )
        return min(LARGEST, int(side) * 2 ** (len(widths) - 1))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # of the hub, or of a family that has no size of its own
        return LARGEST
