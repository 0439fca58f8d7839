"""What ships inside the package: the embedded model and the recipe of the quick start."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
EMBEDDED_MODELS = ("shapeworld-tiny",)
QUICKSTART_RECIPE = ROOT / "quickstart.yaml"


def locate(path_or_id: str | Path) -> str:
    """The folder of an embedded model if ``path_or_id`` names one and no such path exists; else itself."""
    name = str(path_or_id)
    if name in EMBEDDED_MODELS and not Path(name).exists():
        return str(ROOT / name)
    return name
