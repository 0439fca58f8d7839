"""A judge's answers, kept in a file as they come: a stopped evaluation goes on, and answers of a judge that can't run
here (mPLUG) are imported.

One JSON object a line: ``item_id``, ``picture`` (0 to 3), ``proposition_id``, ``question``, ``answer``, ``judge``, and
``grid``, a hash of the grid file, which may be left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg.questions import Questions
from twinflow.evaluation.dpg.scores import ItemAnswers

MAX_UNCLEAR = 0.1  # share of answers that may be neither yes nor no


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a judge said of one picture to one question."""

    item: str
    picture: int
    question_id: int
    question: str
    text: str
    judge: str
    grid: str = ""

    @property
    def yes(self) -> bool:
        return plain(self.text) == "yes"

    @property
    def clear(self) -> bool:
        return plain(self.text) in ("yes", "no")


def plain(text: str) -> str:
    """The answer in lower case without white space and full stops around it."""
    return text.strip().strip(".!,").strip().lower()


def short_hash(path: str | Path) -> str:
    """A short hash of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def append_answers(path: str | Path, answers: Iterable[Answer]) -> None:
    """Add answers at the end of the file, in the place of a last line that a crash cut off."""
    lines = [
        json.dumps(
            {
                "item_id": a.item,
                "picture": a.picture,
                "proposition_id": a.question_id,
                "question": a.question,
                "answer": a.text,
                "judge": a.judge,
                "grid": a.grid,
            }
        )
        for a in answers
    ]
    path = Path(path)
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_answers(path: str | Path) -> list[Answer]:
    """All answers of a file; a last line that was cut off by a crash is left out.

    Raises TwinflowError with the line that is not an answer, or for several judges in one file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TwinflowError(f"the answers {path} can't be read: {error}") from error
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            answer = Answer(
                item=str(row["item_id"]),
                picture=int(row["picture"]),
                question_id=int(row["proposition_id"]),
                question=str(row["question"]),
                text=str(row["answer"]),
                judge=str(row["judge"]),
                grid=str(row.get("grid", "")),
            )
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # without its line feed: it was being written
                break
            raise TwinflowError(
                f"{path}, line {number} is not an answer: {line[:80]!r} ({error!r})"
            ) from error
        found.append(answer)
    if len(judges := sorted({answer.judge for answer in found})) > 1:
        raise TwinflowError(
            f"{path} has answers of several judges: {', '.join(judges)}. Keep a file for each: they don't compare."
        )
    return found


def collect(
    questions: Questions, answers: Sequence[Answer], *, where: str = "the answers"
) -> dict[str, ItemAnswers]:
    """Answers by item, picture and question. A later answer to the same question counts.

    Raises TwinflowError if they are not about these questions, or too many are neither yes nor no.
    """
    asked = {(item, q.id): q.text for item, items in questions.by_item.items() for q in items}
    found: dict[str, dict[int, dict[int, bool]]] = {}
    for answer in answers:
        text = asked.get((answer.item, answer.question_id))
        if text != answer.question.strip():
            raise TwinflowError(
                f"{where} are about other questions: {answer.question!r} is not question {answer.question_id} of "
                f"{answer.item} in {questions.name}, which is {text!r}"
            )
        found.setdefault(answer.item, {}).setdefault(answer.picture, {})[answer.question_id] = answer.yes
    check_clear(answers)
    for item, pictures in found.items():
        if sorted(pictures) != list(range(len(pictures))):
            raise TwinflowError(
                f"{where} of {item} are about the pictures {sorted(pictures)}, expected 0, 1, …"
            )
    return {item: [pictures[k] for k in sorted(pictures)] for item, pictures in found.items()}


def check_clear(answers: Sequence[Answer]) -> None:
    """TwinflowError if more than a tenth of the answers are neither yes nor no: they would silently count as no."""
    unclear = [answer for answer in answers if not answer.clear]
    if len(unclear) > MAX_UNCLEAR * len(answers):
        first = unclear[0]
        raise TwinflowError(
            f"the judge {first.judge} gave {len(unclear)} of {len(answers)} answers that are neither yes nor no, such "
            f"as {first.text!r} to {first.question!r}. Use another judge, or one that compares the probabilities of "
            'yes and no (VlmJudge with mode="compare").'
        )


def answered(answers: Iterable[Answer]) -> Mapping[tuple[str, int], dict[int, Answer]]:
    """By item and picture, then by question."""
    found: dict[tuple[str, int], dict[int, Answer]] = {}
    for answer in answers:
        found.setdefault((answer.item, answer.picture), {})[answer.question_id] = answer
    return found
