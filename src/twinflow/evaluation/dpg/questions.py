"""DPG-Bench's questions: yes-or-no questions about each prompt, which depend on each other.

They come from the official ``dpg_bench.csv``, which does not ship with this package. "Is the cabbage green?" depends on
"Is there a cabbage?": it counts only if that is answered with yes.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinflow.errors import TwinflowError

URL = "https://raw.githubusercontent.com/TencentQQGYLab/ELLA/main/dpg_bench/dpg_bench.csv"
GIT_BLOB = "98457fc9901943f51ff9a30367250fc292533bed"  # of the official csv, as `git hash-object` tells
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One proposition of a prompt."""

    id: int  # unique in its item
    parents: tuple[int, ...]  # questions that must be answered with yes for this one to count
    category: str  # "attribute - color": what stands before "(" in the csv's tuple
    text: str

    @property
    def broad_category(self) -> str:
        """ "attribute": what stands before the first "-"."""
        return self.category.split("-")[0].strip()


@dataclass(frozen=True, kw_only=True)
class Questions:
    """All questions, by item and in the order of the csv."""

    by_item: Mapping[str, tuple[Question, ...]]
    name: str
    git_blob: str  # what `git hash-object` says of the file
    first: tuple[str, int]  # item and question of the first row, which the official code skips

    def __len__(self) -> int:
        return sum(map(len, self.by_item.values()))

    @property
    def official(self) -> bool:
        return self.git_blob == GIT_BLOB

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order in which they first appear."""
        return tuple(dict.fromkeys(q.category for questions in self.by_item.values() for q in questions))


def read_questions(path: str | Path) -> Questions:
    """The questions of a csv with the official columns.

    A question that is there twice keeps its place and takes the later row, as in the official code. Raises
    TwinflowError, with the line, for what can't be understood, and for a parent that isn't there.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TwinflowError(
            f"the questions {path} can't be read: {error}. The official file is {URL}"
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise TwinflowError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it must be DPG-Bench's "
            f"dpg_bench.csv ({URL})"
        )
    found: dict[str, dict[int, Question]] = {}
    first: tuple[str, int] | None = None
    for row in reader:
        question = _question(row, f"{path}, line {reader.line_num}")
        found.setdefault(row["item_id"], {})[question.id] = question
        first = first or (row["item_id"], question.id)
    if first is None:
        raise TwinflowError(f"{path} has no questions")
    for item, questions in found.items():
        for question in questions.values():
            if unknown := [parent for parent in question.parents if parent not in questions]:
                raise TwinflowError(
                    f"{path}: question {question.id} of {item} depends on {unknown[0]}, which is not there"
                )
    return Questions(
        by_item={item: tuple(questions.values()) for item, questions in found.items()},
        name=path.name,
        git_blob=git_blob(data),
        first=first,
    )


def git_blob(data: bytes) -> str:
    """What ``git hash-object`` says of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _question(row: Mapping[str, str], where: str) -> Question:
    try:
        number = int(row["proposition_id"])
        parents = tuple(int(part) for part in row["dependency"].split(","))
    except (AttributeError, TypeError, ValueError) as error:
        raise TwinflowError(
            f"{where}: proposition_id {row['proposition_id']!r} must be a number and dependency "
            f"{row['dependency']!r} numbers with commas between them, 0 for none"
        ) from error
    if not row["question_natural_language"] or not row["tuple"]:
        raise TwinflowError(f"{where}: question {number} of {row['item_id']} has no text or no tuple")
    return Question(
        id=number,
        parents=tuple(parent for parent in parents if parent != 0),
        category=row["tuple"].split("(")[0].strip(),
        text=row["question_natural_language"].strip(),
    )
