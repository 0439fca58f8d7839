"""DPG-Bench's prompts: long descriptions, 37 to 130 words; a text encoder of 77 tokens cuts most of them off."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from twinflow.errors import TwinflowError
from twinflow.evaluation.official_file import OfficialFile


def prompts_of_archive(archive: bytes) -> bytes:
    """JSON lines of ``item_id`` and ``text``, by item, from ``dpg_bench/prompts/*.txt`` of the repository as
    ``.tar.gz``. Nothing is written to disk."""
    texts: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
            for member in files:
                path = PurePosixPath(member.name)
                if path.parts[-3:-1] == ("dpg_bench", "prompts") and path.suffix == ".txt":
                    content = files.extractfile(member)
                    texts[path.stem] = content.read().decode("utf-8").strip() if content else ""
    except tarfile.TarError as error:
        raise ValueError(f"not the archive of a repository: {error}") from error
    rows = ({"item_id": item, "text": text} for item, text in sorted(texts.items()))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


OFFICIAL = OfficialFile(
    benchmark="dpg",
    name="prompts.jsonl",
    urls=tuple(
        f"https://github.com/TencentQQGYLab/ELLA/archive/{commit}.tar.gz" for commit in ("3c228f1", "main")
    ),
    sha256="73cd6f20b4e4c49719df4a9582917abb28f52aac9bd547cd451f62ff2768a50a",
    option="--with dpg.prompts=FILE",
    unpack=prompts_of_archive,
)
OFFICIAL_TEXTS = "d10a3e896f95575cc0c74df1e3e7283fd482c093bfad316c438b5b6e83e8e004"  # hash of items and texts


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
        return self.sha256 == OFFICIAL_TEXTS


def official_prompts() -> DPGPrompts:
    """The 1065 prompts of the paper: from the cache folder, else fetched. TwinflowError if they can't be had."""
    return read_prompts(OFFICIAL.path())


def read_prompts(path: str | Path) -> DPGPrompts:
    """From a folder of ``<item_id>.txt`` as in the official repository, or a ``.jsonl`` of objects with ``item_id`` and
    ``text``. Raises TwinflowError with the file and line that are not usable."""
    path = Path(path)
    if path.is_dir():
        texts = {file.stem: _read(file).strip() for file in sorted(path.glob("*.txt"))}
    else:
        texts = _read_lines(path)
    if not texts:
        raise TwinflowError(f"{path} has no prompts: give a folder of <item_id>.txt or a file of JSON lines")
    if empty := [item for item, text in texts.items() if not text.strip()]:
        raise TwinflowError(f"{path}: the prompt of {empty[0]} is empty")
    digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
    return DPGPrompts(texts=texts, name=path.name, sha256=digest)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TwinflowError(f"the prompts {path} can't be read: {error}") from error


def _read_lines(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
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
