"""The ``data`` section: one kind of section for each kind of data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from twinflow.recipes.section import AtLeastOne, Section, Seed

# Before training decode every file, or read what it begins with: a million pictures take long.
Check = Literal["all", "headers"]


class DataSection(Section):
    """What all data sets have in common."""

    # true: encode every example once and keep it in memory; a folder: use what `twinflow cache` wrote there
    cache: Any = False
    encode_batch: AtLeastOne = (
        1  # examples encoded together; with 1, none depends on its companions in any bit
    )

    @field_validator("cache")
    @classmethod
    def _flag_or_folder(cls, cache: Any) -> bool | str:
        if isinstance(cache, bool) or (isinstance(cache, str) and cache):
            return cache
        raise ValueError(f"data.cache = {cache!r} is not allowed: use true, false, or a folder")


class ShapeWorldData(DataSection):
    """Procedural scenes with captions."""

    kind: Literal["shapeworld"] = "shapeworld"
    level: str = "tiny"
    length: AtLeastOne = 50_000
    seed: Seed = 0
    pictures: bool = True  # false: captions alone, for image-free training
    cache: Any = True
    encode_batch: AtLeastOne = 64

    @field_validator("level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        from twinflow.data.shapeworld.world import LEVELS

        if level not in LEVELS:
            raise ValueError(
                f"data.level = {level!r} is not a level of ShapeWorld: use {' or '.join(LEVELS)}"
            )
        return level


class DigitsData(DataSection):
    """scikit-learn's handwritten digits."""

    kind: Literal["digits"]
    cache: Any = True
    encode_batch: AtLeastOne = 64


class PictureData(DataSection):
    """Pictures of any shape, brought to one size, or to several of about the same area."""

    size: Any = 512  # side in pixels, or [height, width]
    buckets: bool = False  # sizes of about size x size pixels, of which each picture gets the nearest
    multiple: AtLeastOne = 64  # buckets: what their sides are multiples of
    longest: Annotated[float, Field(ge=1)] = (
        2.0  # buckets: the longer side is at most so many times the other
    )
    on_error: Literal["stop", "skip"] = "stop"  # a broken picture, shard, or one without a caption

    @field_validator("size")
    @classmethod
    def _side_or_sides(cls, size: Any) -> int | tuple[int, int]:
        sides = list(size) if isinstance(size, (list, tuple)) else [size]
        whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
        if not whole or len(sides) > 2 or not sides:
            raise ValueError(f"data.size = {size!r} is not allowed: use a side in pixels, or [height, width]")
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])

    @model_validator(mode="after")
    def _possible_buckets(self) -> PictureData:
        if self.buckets and not isinstance(self.size, int):
            raise ValueError(f"data.buckets needs one side as data.size, got {self.size}")
        if self.buckets and self.size < self.multiple:
            raise ValueError(f"data.multiple = {self.multiple} must not exceed data.size = {self.size}")
        return self


class FolderData(PictureData):
    """Pictures with a caption each: ``.txt`` files beside them or one ``metadata.jsonl``."""

    kind: Literal["folder"]
    path: Annotated[str, Field(min_length=1)]
    pictures: bool = True  # false: captions, and sources of edits, alone: for image-free training
    check: Check = "all"


class ColumnNames(Section):
    """Names of a table's columns; ``json.caption`` is an entry of a column. Usual names are found."""

    image: str | None = None
    text: str | None = None
    source: str | None = None  # the picture that the text says how to edit


class TableData(PictureData):
    """Parquet, webdataset shards, or whatever else ``datasets`` opens, the hub included."""

    kind: Literal["dataset"]
    path: Annotated[str, Field(min_length=1)]  # files, folder, pattern, or the name of a data set on the hub
    split: str = "train"  # of a data set on the hub
    columns: ColumnNames = ColumnNames()
    pictures: bool = True  # as for folders
    streaming: bool = False  # read the shards in turn, instead of preparing a table on the disk
    window: AtLeastOne = 1000  # streaming: successive rows that are shuffled among themselves
    # Further arguments of datasets.load_dataset, such as {name: …, revision: …}
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible_stream(self) -> TableData:
        for key in ("cache", "buckets"):
            if self.streaming and getattr(self, key):
                raise ValueError(
                    f"data.streaming = true can't be with data.{key} = {getattr(self, key)!r}, which has to know "
                    f"all rows: set data.{key}=false, or data.streaming=false"
                )
        return self


class VideoData(PictureData):
    """Videos with a caption each, as pictures in a folder have."""

    kind: Literal["video"]
    path: Annotated[str, Field(min_length=1)]
    frames: AtLeastOne  # of a clip
    fps: Annotated[float, Field(gt=0, strict=False)] = (
        16.0  # pictures taken a second, whatever the video's own rate
    )
    clips: AtLeastOne | None = (
        1  # at most so many of each video, one after another; null: as many as there are
    )
    # first_frame: the source picture of a model that sets pictures in motion is the first frame of the clip
    source: Literal["first_frame"] | None = None
    check: Check = "all"


class PromptsData(DataSection):
    """Prompts alone: a text file with one a line, or ``.jsonl``."""

    kind: Literal["prompts"]
    path: Annotated[str, Field(min_length=1)]
    on_error: Literal["stop", "skip"] = "stop"


Data = Annotated[
    ShapeWorldData | DigitsData | FolderData | TableData | VideoData | PromptsData,
    Field(discriminator="kind"),
]
