"""Columns of parquet shards: which shards can't be put into one table, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 60  # letters of a type


@dataclass(frozen=True, kw_only=True)
class ParquetColumns:
    """Those of the ``first`` shard, which ``datasets`` brings all others to; ``chosen`` are read, or None for all."""

    first: Path
    chosen: Sequence[str] | None = None

    def why_clashing(self, file: Path, *, whole: bool = False) -> str | None:
        """Why the shard ``file`` can't be brought to them: by its footer, or by the ``whole`` of it."""
        import pyarrow as pa
        from datasets import Features
        from datasets.table import table_cast
        from pyarrow import parquet

        wanted = Features.from_arrow_schema(parquet.read_schema(self.first))
        target = Features({name: wanted[name] for name in wanted if self._reads(name)}).arrow_schema
        own = pa.schema([field for field in parquet.read_schema(file) if self._reads(field.name)])
        try:
            table_cast(own.empty_table(), target)
            for batch in parquet.ParquetFile(file).iter_batches(columns=own.names) if whole else ():
                table_cast(pa.Table.from_batches([batch]), target)
        except Exception as error:  # readers raise whatever a broken file leads them to
            differing = "; ".join(_differences(own, target))
            if not differing:
                return f"{type(error).__name__}: {error}"
            return f"unlike those of {self.first.name}, its columns are: {differing}"
        return None

    def _reads(self, name: str) -> bool:
        return self.chosen is None or name in self.chosen


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
