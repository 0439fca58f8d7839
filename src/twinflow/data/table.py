"""A table of pictures and captions as a data set: its columns, and what is wrong with its rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twinflow.data.buckets import Buckets
from twinflow.data.captioned_files import Problem, captions_of, decoded
from twinflow.data.encoding import Item
from twinflow.data.folder import OnError, describe_problems
from twinflow.data.pictures import fit, open_picture, to_pixels, to_rgb
from twinflow.data.shards import Table
from twinflow.errors import TwinflowError

logger = logging.getLogger(__name__)

# Where columns are not named, the first of these that is there.
IMAGE_NAMES = (
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "img",
    "picture",
    "target",
    "edited_image",
    "output_image",
)
FORMATS = ("jpg", "jpeg", "png", "webp")  # shards may mix them: a column each, of which a row has one
TEXT_NAMES = ("text", "caption", "captions", "txt", "prompt", "instruction", "edit_prompt")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; ``json.caption`` is the entry "caption" of the column "json", unless a column is called so.

    ``others``: where rows have their picture that have none in ``image``.
    ``source``: the picture that ``text`` says how to edit; none for data that is not about editing.
    """

    image: str | None = None
    text: str | None = None
    source: str | None = None
    others: tuple[str, ...] = ()

    def found_in(self, names: list[str], *, table: str, pictures: bool) -> Columns:
        """With all names filled in. ``TwinflowError`` lists the columns that there are."""

        def find(role: str, given: str | None, usual: tuple[str, ...]) -> str:
            for name in (given,) if given else usual:
                if _top(name, names) is not None:
                    return name
            wanted = f"{given!r}" if given else f"one of {', '.join(usual)}"
            raise TwinflowError(
                f"{table} has no column {wanted} for data.columns.{role}; it has {', '.join(names)}"
            )

        image = find("image", self.image, IMAGE_NAMES) if pictures else None
        mixed = self.image is None and image in FORMATS
        return Columns(
            image=image,
            others=tuple(name for name in FORMATS if mixed and name in names and name != image),
            text=find("text", self.text, TEXT_NAMES),
            source=find("source", self.source, ()) if self.source else None,
        )

    def tops(self, names: list[str]) -> list[str]:
        """Those of the columns ``names`` that are read."""
        read = (_top(name, names) for name in (self.image, self.text, self.source, *self.others) if name)
        return list(dict.fromkeys(top for top in read if top is not None))


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Makes items of rows. ``ValueError`` says what is wrong with one."""

    columns: Columns
    buckets: Buckets
    folder: Path | None = None  # where pictures that are named by relative paths are looked for

    @classmethod
    def of(cls, table: Table, *, columns: Columns, buckets: Buckets, pictures: bool) -> RowReader:
        names = table.rows.column_names or list(next(iter(table.rows)))
        found = columns.found_in(names, table=table.name, pictures=pictures)
        table.rows = undecoded(table.rows.select_columns(found.tops(names)))
        return cls(columns=found, buckets=buckets, folder=table.folder)

    def holds_pictures(self, rows: Any) -> bool:
        """Whether the table has the pictures themselves, rather than paths, behind which they may change."""
        names = (self.columns.image, self.columns.source)
        first: Mapping[str, Any] = next(iter(rows), {})
        return not any(isinstance(_stored(first, name), str) for name in names if name is not None)

    def files(self, rows: Any) -> set[Path]:
        """The pictures that ``rows`` name by paths, as far as they are there."""
        if self.holds_pictures(rows):
            return set()
        names = [n for n in (self.columns.image, *self.columns.others, self.columns.source) if n is not None]
        stored = (_stored(row, name) for row in rows for name in names)
        places = {self._place(value) for value in stored if isinstance(value, str)}
        return {place for place in places if place.is_file()}

    def captions(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        text = _value(row, self.columns.text)
        text = decoded(text, name="the caption") if isinstance(text, bytes) else text
        if text is None:
            raise ValueError("it has no caption: write one, or remove the row")
        return captions_of(text, name="it")

    def item(self, row: Mapping[str, Any], sides: tuple[int, int] | None = None) -> Item:
        """``sides``: of the row's bucket, where it is known."""
        captions = self.captions(row)
        item: Item = {"caption": captions[0]}
        if len(captions) > 1:
            item["captions"] = captions
        for column, key in ((self.columns.image, "pixels"), (self.columns.source, "source")):
            if column is None:
                continue
            picture = self._picture(row, column)
            sides = sides or self.buckets.sides[self.buckets.nearest(picture.height, picture.width)]
            fitted = fit(picture, sides)
            item[key] = to_pixels(fitted) if key == "pixels" else fitted
        return item

    def sides(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of the row's picture, decoded; zeros if there is none."""
        read = [c for c in (self.columns.image, self.columns.source) if c is not None]
        pictures = [self._picture(row, column) for column in read]
        return (pictures[0].height, pictures[0].width) if pictures else (0, 0)

    def _picture(self, row: Mapping[str, Any], column: str) -> Image.Image:
        tried = (column, *self.columns.others) if column == self.columns.image else (column,)
        value = next((value for value in (_stored(row, name) for name in tried) if value is not None), None)
        if value is None:
            raise ValueError(f"it has no picture in {' or '.join(tried)}: add it, or remove the row")
        try:
            if isinstance(value, Image.Image):
                return to_rgb(value)
            return open_picture(self._place(value) if isinstance(value, str) else value)
        except Exception as error:  # decoders raise whatever a broken file leads them to
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"the picture in {column} cannot be read ({reason}): replace or remove it"
            ) from error

    def _place(self, name: str) -> Path:
        """A picture's file: beside the table, or else as it is seen from the working directory."""
        beside = Path(name) if self.folder is None else self.folder / name
        return beside if beside.is_file() or not Path(name).is_file() else Path(name)


class TableDataset:
    """Map-style dataset of a table's rows; item as of :class:`twinflow.data.folder.FolderDataset`.

    Building it decodes every picture once; ``datasets`` keeps what was found, so that the next time is quick, unless
    the table names its pictures by paths.
    Rows without caption and pictures that cannot be read are one :class:`TwinflowError` that names them, or
    with ``on_error="skip"`` are logged and left out.
    """

    def __init__(
        self,
        table: Table,
        *,
        size: int | tuple[int, int] | Buckets,
        columns: Columns | None = None,
        on_error: OnError = "raise",
        pictures: bool = True,
    ) -> None:
        self.buckets = size if isinstance(size, Buckets) else Buckets.fixed(size)
        self.table = table
        self._reader = RowReader.of(
            table, columns=columns or Columns(), buckets=self.buckets, pictures=pictures
        )
        import pyarrow.compute as pc  # which comes with datasets

        found = table.rows.map(
            _examined,
            batched=True,
            batch_size=64,
            remove_columns=table.rows.column_names,
            fn_kwargs={"columns": self._reader.columns, "folder": table.folder},
            load_from_cache_file=None if self._reader.holds_pictures(table.rows) else False,
        ).with_format("arrow")[:]
        reasons = found["problem"]
        sound = pc.equal(reasons, "").to_numpy()
        faults = np.flatnonzero(~sound).tolist()
        problems = [Problem(name=f"row {row}", text=reasons[row].as_py()) for row in faults]
        if problems and on_error == "raise":
            raise TwinflowError(describe_problems(table.name, problems, total=len(reasons)))
        for problem in problems:
            logger.warning("%s: left out %s", table.name, problem)
        self._rows = np.flatnonzero(sound)
        if not len(self._rows):
            raise TwinflowError(f"{table.name} has no usable row: it has {len(reasons)} rows")
        sides = np.stack([found["height"], found["width"]], axis=1)[self._rows]
        self.bucket_of = [
            self.buckets.nearest(h, w) if len(self.buckets) > 1 and h else 0 for h, w in sides.tolist()
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = int(self._rows[index])
        try:
            return self._reader.item(self.table.rows[row], self.buckets.sides[self.bucket_of[index]])
        except ValueError as error:  # it was sound when the data set was built
            raise TwinflowError(f"{self.table.name}, row {row}: {error}") from error


def undecoded(rows: Any) -> Any:
    """``rows`` with pictures as the bytes that they are stored as."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _examined(batch: dict[str, list[Any]], columns: Columns, folder: Path | None) -> dict[str, list[Any]]:
    """Size, and what is wrong, of each row."""
    reader = RowReader(columns=columns, buckets=Buckets.fixed(1), folder=folder)
    names = list(batch)

    def examine(values: tuple[Any, ...]) -> tuple[int, int, str]:
        row = dict(zip(names, values, strict=True))
        try:
            reader.captions(row)
            return (*reader.sides(row), "")
        except ValueError as error:
            return (0, 0, str(error))

    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(examine, zip(*batch.values(), strict=True)))
    heights, widths, problems = zip(*rows, strict=True)
    return {"height": list(heights), "width": list(widths), "problem": list(problems)}


def _top(column: str, names: Iterable[str]) -> str | None:
    """The column of ``names`` in which ``column`` is: itself, or of ``json.caption`` the column "json"."""
    while column not in names:
        column, _, _ = column.rpartition(".")
        if not column:
            return None
    return column


def _value(row: Mapping[str, Any], column: str | None) -> Any:
    top = _top(column or "", row)
    if top is None or column is None:
        return None
    value: Any = row[top]
    for name in column[len(top) + 1 :].split(".") if column != top else ():
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _stored(row: Mapping[str, Any], column: str) -> Any:
    """A picture's bytes or path, or itself; ``None`` if there is none."""
    value = _value(row, column)
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        return value.get("bytes") or value.get("path")
    return value
