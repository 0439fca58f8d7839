"""DPG-Bench's pictures: the four of a prompt in one 2 x 2 grid without padding, ``<folder>/<item_id>.png``.

The order is top left, top right, bottom left, bottom right. Grids of others may be of any format that Pillow reads;
ours are PNG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from twinflow.errors import TwinflowError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SHOWN = 5  # items named in a message


def make_grid(images: Sequence[Image.Image]) -> Image.Image:
    """Four pictures of one size in a grid; a single one as it is."""
    if len(images) not in (1, 4):
        raise ValueError(f"a grid has 1 or 4 pictures, got {len(images)}")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise TwinflowError(f"the pictures of a grid have different sizes: {sorted(sizes)}")
    if len(images) == 1:
        return images[0].convert("RGB")
    width, height = images[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for k, image in enumerate(images):
        grid.paste(image.convert("RGB"), (k % 2 * width, k // 2 * height))
    return grid


def split_grid(path: str | Path, *, count: int = 4, resolution: int | None = None) -> list[Image.Image]:
    """The pictures of a grid file, in order.

    ``resolution`` is the side of one picture, if it must be that (the official ``--resolution``). TwinflowError if
    the file can't be read or can't be such a grid.
    """
    try:
        with Image.open(path) as file:
            grid = file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise TwinflowError(f"{path} can't be read as a picture: {error}. Draw it again.") from error
    if count == 1:
        cells = [grid]
    elif count == 4:
        if grid.width % 2 or grid.height % 2:
            raise TwinflowError(
                f"{path} has {grid.width} x {grid.height} pixels: no grid of 2 x 2 equal pictures without padding "
                "(torchvision's make_grid adds 2 pixels around each: use padding=0)"
            )
        width, height = grid.width // 2, grid.height // 2
        corners = [(0, 0), (width, 0), (0, height), (width, height)]
        cells = [grid.crop((x, y, x + width, y + height)) for x, y in corners]
    else:
        raise ValueError(f"a grid has 1 or 4 pictures, got {count}")
    if resolution is not None and cells[0].size != (resolution, resolution):
        width, height = cells[0].size
        raise TwinflowError(
            f"{path} holds pictures of {width} x {height}, expected {resolution} x {resolution}"
        )
    return cells


def find_grids(folder: str | Path, items: Iterable[str]) -> dict[str, Path]:
    """The grid of every item. TwinflowError, naming the items, if one is missing, there twice, or not asked for."""
    folder = Path(folder)
    if not folder.is_dir():
        raise TwinflowError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and (other := found.setdefault(path.stem, path)) is not path:
            raise TwinflowError(f"{other} and {path} are both of item {path.stem}: remove one")
    wanted = list(items)
    if missing := [item for item in wanted if item not in found]:
        raise TwinflowError(
            f"{folder} lacks {len(missing)} of {len(wanted)} grids: {listed(missing)}. A mean without them would not "
            "be DPG-Bench's score: draw them."
        )
    if extra := sorted(found.keys() - set(wanted)):
        raise TwinflowError(f"{folder} has grids of items that are not asked for: {listed(extra)}")
    return {item: found[item] for item in wanted}


def listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
