"""From the data section of a recipe to its data set."""

from __future__ import annotations

from typing import Any, Literal

from twinflow.data.buckets import Buckets
from twinflow.data.prompts import WithoutPictures


def open_data(settings: Any, *, seed: int) -> Any:
    """The data set of ``settings``, a data section of :mod:`twinflow.recipes.data`.

    Everything that can be wrong with it is found here. ``seed`` chooses among captions.
    """
    if settings.kind == "shapeworld":
        from twinflow.data.shapeworld import ShapeWorldDataset

        scenes = ShapeWorldDataset(settings.level, length=settings.length, seed=settings.seed)
        return scenes if settings.pictures else WithoutPictures(scenes)
    if settings.kind == "digits":
        from twinflow.data.digits import DigitsDataset

        return DigitsDataset(channels=3)
    on_error: Literal["raise", "skip"] = "raise" if settings.on_error == "stop" else "skip"
    if settings.kind == "prompts":
        from twinflow.data.prompts import PromptsDataset

        return PromptsDataset(settings.path, on_error=on_error)
    size = settings.size
    if settings.buckets:
        size = Buckets.of_area(size, multiple=settings.multiple, longest=settings.longest)
    if settings.kind == "folder":
        from twinflow.data.folder import FolderDataset

        return FolderDataset(
            settings.path,
            size=size,
            on_error=on_error,
            seed=seed,
            pictures=settings.pictures,
            check=settings.check,
        )
    if settings.kind == "video":
        from twinflow.data.video import VideoDataset

        return VideoDataset(
            settings.path,
            size=size,
            frames=settings.frames,
            fps=settings.fps,
            clips=settings.clips,
            first_frame=settings.source == "first_frame",
            on_error=on_error,
            seed=seed,
            check=settings.check,
        )
    from twinflow.data.shards import open_table
    from twinflow.data.stream import StreamDataset
    from twinflow.data.table import Columns, TableDataset

    table = open_table(
        settings.path,
        split=settings.split,
        streaming=settings.streaming,
        on_error=on_error,
        options=settings.options,
    )
    columns = Columns(**settings.columns.model_dump())
    common = {"columns": columns, "on_error": on_error, "pictures": settings.pictures}
    if settings.streaming:
        return StreamDataset(table, size=size, window=settings.window, **common)
    return TableDataset(table, size=size, **common)
