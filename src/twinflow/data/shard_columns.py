"""Columns of parquet and arrow shards: which shards can't be put into one table, and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 60  # letters of a type


@dataclass(frozen=True, kw_only=True)
class ShardColumns:
    """Those of the ``first`` shard, which ``datasets`` brings all others to; ``chosen`` are read, or None for all."""

    first: Path
    chosen: Sequence[str] | None = None

    def why_clashing(self, file: Path, *, whole: bool = False) -> str | None:
        """Why the shard ``file`` can't be brought to them: by its footer, or by the ``whole`` of it."""
        import pyarrow as pa
        from datasets import Features
        from datasets.table import table_cast

        wanted = Features.from_arrow_schema(_schema(self.first))
        target = Features({name: wanted[name] for name in wanted if self._reads(name)}).arrow_schema
        own = pa.schema([field for field in _schema(file) if self._reads(field.name)])
        try:
            table_cast(own.empty_table(), target)
            for batch in _batches(file, own.names) if whole else ():
                table_cast(pa.Table.from_batches([batch]), target)
        except Exception as error:  # readers raise whatever a broken file leads them to
            differing = "; ".join(_differences(own, target))
            if not differing:
                return f"{type(error).__name__}: {error}"
            return f"unlike those of {self.first.name}, its columns are: {differing}"
        return None

    def _reads(self, name: str) -> bool:
        return self.chosen is None or name in self.chosen


def _schema(file: Path) -> Any:
    from pyarrow import parquet

    return _arrow(file).schema if file.suffix == ".arrow" else parquet.read_schema(file)


def _batches(file: Path, names: list[str]) -> Iterable[Any]:
    from pyarrow import parquet

    if file.suffix != ".arrow":
        return parquet.ParquetFile(file).iter_batches(columns=names)
    reader = _arrow(file)
    count = getattr(reader, "num_record_batches", None)
    whole = reader if count is None else (reader.get_batch(i) for i in range(count))
    return (batch.select(names) for batch in whole)


def _arrow(file: Path) -> Any:
    """A reader of either of Arrow's formats: of streams, as ``datasets`` writes it, or of files."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(pa.memory_map(str(file)))
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(str(file)))


def _differences(own: Any, other: Any) -> list[str]:
    """One text for each column of the schema ``own`` that ``other`` has with another type, or not at all."""
    texts = []
    for field in own:
        if field.name not in other.names:
            texts.append(f"{field.name}, which is not there")
        elif field.type != other.field(field.name).type:
            texts.append(
                f"{field.name} of {_short(field.type)}, there of {_short(other.field(field.name).type)}"
            )
    return texts


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
