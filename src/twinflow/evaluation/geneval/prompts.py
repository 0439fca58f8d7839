"""GenEval's prompts: one JSON object a line, whose order is part of the protocol (folder N is line N)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinflow.data.relations import RELATIONS
from twinflow.errors import TwinflowError
from twinflow.evaluation.official_file import OfficialFile
from twinflow.evaluation.scoring import Metadata

OFFICIAL = OfficialFile(
    benchmark="geneval",
    name="evaluation_metadata.jsonl",
    urls=tuple(
        f"https://raw.githubusercontent.com/djghosh13/geneval/{commit}/prompts/evaluation_metadata.jsonl"
        for commit in ("af4902f", "main")
    ),
    sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    option="--with geneval.prompts=FILE",
)
OFFICIAL_ROWS = "94bc1c23d27e1ac4aa6d9415ac49a6e72263694e5149eb1d895cf61f9da1c083"  # their fingerprint
# fmt: off
CLASS_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
"""The 80 classes in COCO's order. A detector's output is mapped by index: GenEval calls three of them otherwise
(computer mouse, tv remote, computer keyboard)."""
# fmt: on
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Prompts with their metadata, and what identifies them in a report."""

    rows: tuple[Metadata, ...]
    name: str
    sha256: str  # of the rows, independent of white space and of the order of keys

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def official(self) -> bool:
        """Whether these are the 553 prompts of the paper, word for word: rewritten ones score 5 to 15 points more."""
        return self.sha256 == OFFICIAL_ROWS


def official_prompts() -> PromptFile:
    """The 553 prompts of the paper: from the cache folder, else fetched. TwinflowError if they can't be had."""
    return read_prompts(OFFICIAL.path())


def read_prompts(path: str | Path) -> PromptFile:
    """Prompts of a file in the format of ``evaluation_metadata.jsonl``.

    Raises TwinflowError, naming file and line, unless every line is a JSON object that can be scored: known
    tag, classes and colours, counts of at least 1, positions relative to an earlier clause.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may have other line separators inside
    except (OSError, UnicodeDecodeError) as error:
        raise TwinflowError(f"the prompts {path} can't be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(parse_metadata(line, where=f"{path}, line {number}"))
    if not rows:
        raise TwinflowError(f"{path} has no prompts")
    prompts = [row["prompt"] for row in rows]
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for prompt in prompts if prompts.count(prompt) > 1)
        raise TwinflowError(
            f"{path} has the prompt {twice!r} more than once; images_per_prompt draws several pictures of each"
        )
    return PromptFile(rows=tuple(rows), name=path.name, sha256=fingerprint(rows))


def fingerprint(rows: Iterable[Metadata]) -> str:
    text = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_metadata(text: str, *, where: str) -> dict[str, Any]:
    """One prompt's metadata; ``where`` begins the message of the TwinflowError that anything odd raises."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise TwinflowError(f"{where}: not JSON ({error}): {text[:80]!r}") from error
    problem = _problem(row)
    if problem:
        raise TwinflowError(f"{where}: {problem}")
    return row


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"expected a JSON object, got {row!r:.80}"
    if missing := [key for key in ("tag", "include", "prompt") if key not in row]:
        return (
            f"{', '.join(missing)} missing; GenEval's metadata has tag, include, prompt and sometimes exclude"
        )
    if row["tag"] not in TASKS:
        return f"tag {row['tag']!r} is not one of {', '.join(TASKS)}"
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        return f"prompt {row['prompt']!r} is not a text"
    for key in ("include", "exclude"):
        clauses = row.get(key, [])
        if not isinstance(clauses, list) or (key == "include" and not clauses):
            return f"{key} must be a list of clauses, got {clauses!r:.80}"
        for index, clause in enumerate(clauses):
            if problem := _clause_problem(clause, index):
                return f"{key}[{index}]: {problem}"
    return None


def _clause_problem(clause: Any, index: int) -> str | None:
    if not isinstance(clause, dict):
        return f"expected a JSON object, got {clause!r:.80}"
    if clause.get("class") not in CLASS_NAMES:
        return f"class {clause.get('class')!r} is not one of GenEval's 80 object names"
    count = clause.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return f"count {count!r} must be a number of at least 1"
    if "color" in clause and clause["color"] not in COLORS:
        return f"color {clause['color']!r} is not one of {', '.join(COLORS)}"
    if "position" in clause:
        position = clause["position"]
        if (
            not isinstance(position, Sequence)
            or len(position) != 2
            or position[0] not in RELATIONS
            or position[1] not in range(index)
        ):
            known = ", ".join(RELATIONS)
            return f"position {position!r} must be [one of {known}; the index of an earlier clause]"
    return None
