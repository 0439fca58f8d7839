"""DPG-Bench's prompts: long descriptions, 37 to 130 words; a text encoder of 77 tokens cuts most of them off."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from twinflow.errors import TwinflowError

OFFICIAL = Path(__file__).parent / "data" / "prompts.jsonl.gz"


@dataclass(frozen=True, kw_only=True)
class DPGPrompts:
    """Prompts by item, in order, and what identifies them in a report."""

    texts: Mapping[str, str]
    name: str
    sha256: str  # of items and texts

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def official(self) -> bool:
        return self.sha256 == official_prompts().sha256


@cache
def official_prompts() -> DPGPrompts:
    """The 1065 prompts of the paper, which ship with this package."""
    return read_prompts(OFFICIAL)


def read_prompts(path: str | Path) -> DPGPrompts:
    """From a folder of ``<item_id>.txt`` as in the official repository, or a ``.jsonl`` (also gzipped) of objects with
    ``item_id`` and ``text``. Raises TwinflowError with the file and line that are not usable."""
    path = Path(path)
    if path.is_dir():
        texts = {file.stem: file.read_text(encoding="utf-8").strip() for file in sorted(path.glob("*.txt"))}
    else:
        texts = _read_lines(path)
    if not texts:
        raise TwinflowError(f"{path} has no prompts: give a folder of <item_id>.txt or a file of JSON lines")
    if empty := [item for item, text in texts.items() if not text.strip()]:
        raise TwinflowError(f"{path}: the prompt of {empty[0]} is empty")
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
    return DPGPrompts(texts=texts, name=path.name, sha256=digest)


def _read_lines(path: Path) -> dict[str, str]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TwinflowError(f"the prompts {path} can't be read: {error}") from error
    texts: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            item, prompt = str(row["item_id"]), row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise TwinflowError(
                f"{path}, line {number}: expected a JSON object with item_id and text, got {line[:80]!r}"
            ) from error
        if item in texts:
            raise TwinflowError(f"{path}, line {number}: item {item} is there twice")
        if not isinstance(prompt, str):
            raise TwinflowError(f"{path}, line {number}: the text of item {item} is not a text: {prompt!r}")
        texts[item] = prompt
    return texts
