"""Rows that are kept as they are scored: at full size the detector takes hours on a CPU, and may be stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from twinflow.evaluation.results_file import row_from_json, row_to_json
from twinflow.evaluation.scoring import ImageResult


class KeptRows:
    """A file of rows of a folder of ``pictures``. A row counts for the same picture, byte for byte, and ``judges``.

    One JSON object a line: a line of the results file, with ``picture``, a hash of the picture's file, and ``judges``.
    """

    def __init__(self, path: Path, *, pictures: Path, judges: str) -> None:
        self.path, self.pictures, self.judges = path, pictures, judges

    def read(self) -> list[ImageResult]:
        """Rows that need not be scored again; a last line that was cut off is taken away."""
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(self.path, whole)
        return list(self._current(text[:whole].decode("utf-8").splitlines()))

    def add(self, row: ImageResult) -> None:
        """Keep the row of a picture that was scored just now."""
        line = row_to_json(row) | {"picture": self._hash(row.filename), "judges": self.judges}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _current(self, lines: Sequence[str]) -> Iterator[ImageResult]:
        for text in lines:
            try:
                line = json.loads(text)
                if line["judges"] == self.judges and line["picture"] == self._hash(line["filename"]):
                    yield row_from_json(line)
            except (AttributeError, LookupError, TypeError, ValueError, OSError):
                continue  # of another form, or its picture is gone: then it is of no use, and no harm

    def _hash(self, filename: str) -> str:
        return hashlib.sha256((self.pictures / filename).read_bytes()).hexdigest()[:16]
