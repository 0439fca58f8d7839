"""What ships inside the package: the embedded model and the recipe of the quick start."""

from __future__ import annotations

import shutil
from pathlib import Path

from twinflow.errors import TwinflowError, check_place

ROOT = Path(__file__).parent
EMBEDDED_MODELS = ("shapeworld-tiny",)
QUICKSTART_RECIPE = ROOT / "quickstart.yaml"


def locate(path_or_id: str | Path) -> str:
    """The folder of an embedded model if ``path_or_id`` names one and no such path exists; else itself."""
    name = str(path_or_id)
    if name in EMBEDDED_MODELS and not Path(name).exists():
        return str(ROOT / name)
    return name


def copy_model(name: str, folder: str | Path) -> Path:
    """Write the embedded model ``name`` to ``folder``, for programs that know models by folders alone.

    :class:`TwinflowError` for a name that there is not, and for a folder that is there already.
    """
    if name not in EMBEDDED_MODELS:
        raise TwinflowError(f"{name!r} is no embedded model: one of {', '.join(EMBEDDED_MODELS)}")
    target = Path(folder)
    if target.exists():
        raise TwinflowError(f"{target} is there already: choose another folder")
    check_place(target, name="the folder")
    shutil.copytree(ROOT / name, target)
    return target
