"""Prompts alone, for training without pictures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from twinflow.data.captioned_files import Problem, captions_of, decoded, json_entry, lines_of
from twinflow.data.folder import OnError, describe_problems
from twinflow.errors import TwinflowError

logger = logging.getLogger(__name__)


class PromptsDataset:
    """Map-style dataset of prompts; item -> {"caption": str}.

    ``path``: a text file with one prompt a line (empty lines don't count), or a ``.jsonl`` file of lines
    ``{"text": prompt or list of prompts}``.
    """

    def __init__(self, path: str | Path, *, on_error: OnError = "raise") -> None:
        self.path = Path(path)
        try:
            lines = list(lines_of(self.path))
        except OSError as error:
            raise TwinflowError(f"{self.path} can't be read as a text file of prompts: {error}") from error
        self.prompts: list[tuple[str, ...]] = []
        problems = []
        for number, line in lines:
            try:
                self.prompts.append(self._prompts(line))
            except ValueError as error:
                problems.append(Problem(name=f"line {number}", text=str(error)))
        if problems and on_error == "raise":
            total = len(problems) + len(self.prompts)
            raise TwinflowError(describe_problems(str(self.path), problems, total=total))
        for problem in problems:
            logger.warning("%s: left out %s", self.path, problem)
        if not self.prompts:
            raise TwinflowError(f"{self.path} has no prompt: write one a line")

    def _prompts(self, line: bytes) -> tuple[str, ...]:
        if self.path.suffix != ".jsonl":
            return captions_of(decoded(line, name="it"), name="it")
        entry = json_entry(line)
        if not isinstance(entry, dict) or "text" not in entry:
            raise ValueError('it must be {"text": "…"}: add what is missing')
        return captions_of(entry["text"], name="it")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prompts = self.prompts[index]
        item: dict[str, Any] = {"caption": prompts[0]}
        return item | ({"captions": prompts} if len(prompts) > 1 else {})


class WithoutPictures:
    """The captions of another data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self.dataset[index].items() if key != "pixels"}
