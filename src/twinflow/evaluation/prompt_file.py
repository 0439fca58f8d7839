"""Any file of prompts as a benchmark without a score of its own: what measures are taken on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Benchmark, Progress, Scores, prompts_hash, silent
from twinflow.evaluation.pictures import Picture


class PromptFile(Benchmark):
    """``images_per_prompt`` pictures of each prompt of a file.

    A text file has a prompt a line. A ``.jsonl`` file has an object a line, with "prompt" among its keys. Picture k
    of prompt i is ``{i:05}_{k}.png`` and has the noise seed ``seed * 1_000_003 + i * images_per_prompt + k``.
    """

    name = "prompts"

    def __init__(self, prompts: str | Path, *, images_per_prompt: int = 1, seed: int = 0) -> None:
        if images_per_prompt < 1:
            raise TwinflowError(f"images_per_prompt must be at least 1, got {images_per_prompt}")
        self.images_per_prompt, self.seed, self.file = images_per_prompt, seed, Path(prompts)
        self.pictures = [
            Picture(file=f"{i:05}_{k}.png", prompt=prompt, seed=seed * 1_000_003 + i * images_per_prompt + k)
            for i, prompt in enumerate(read_prompts(self.file))
            for k in range(images_per_prompt)
        ]

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "prompt_file": self.file.name,
            "prompts": prompts_hash(self.pictures),
            "images_per_prompt": self.images_per_prompt,
            "seed": self.seed,
        }

    def score(self, folder: Path, *, keep: Path | None = None, progress: Progress = silent) -> Scores:
        return Scores()


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file; ``TwinflowError`` with the line that is none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # other line separators may be part of a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise TwinflowError(f"the file of prompts {file} can't be read: {error}") from error
    if file.suffix != ".jsonl":
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        prompts = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise TwinflowError(f"{file}, line {number} is not JSON: {error}") from error
            if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
                raise TwinflowError(f'{file}, line {number} has no "prompt": {line[:80]}')
            prompts.append(entry["prompt"])
    if not prompts:
        raise TwinflowError(f"{file} has no prompts")
    return prompts
