"""The official folder of pictures: read whoever made it, written as the official generator does.

::

    <folder>/00000/metadata.jsonl       one JSON object, line 0 of the prompts
    <folder>/00000/samples/00000.png    or 0000.png: any digits
    <folder>/00000/grid.png             optional, never read

The official scorer takes whatever is there, so that a missing picture changes the mean without a word. Here a folder is
complete, or it is an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval.prompts import PromptFile, parse_metadata
from twinflow.evaluation.scoring import Metadata

SHOWN = 5  # problems named in a message


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """One picture of a folder."""

    prompt_index: int
    image_index: int
    metadata: Metadata
    path: Path
    filename: str  # relative to the folder, with slashes


def image_path(prompt_index: int, image_index: int) -> str:
    """Where a picture lies, relative to the folder: ``00012/samples/00003.png``."""
    return f"{prompt_index:05}/samples/{image_index:05}.png"


def write_metadata(folder: str | Path, prompts: PromptFile) -> None:
    """Create every prompt's folder with its ``metadata.jsonl``; TwinflowError if one is there for another prompt."""
    for index, row in enumerate(prompts.rows):
        samples = (Path(folder) / image_path(index, 0)).parent
        samples.mkdir(parents=True, exist_ok=True)
        if (samples.parent / "metadata.jsonl").exists():
            _check_metadata(samples.parent, row, index)
        else:
            (samples.parent / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")


def find_images(folder: str | Path, prompts: PromptFile, *, images_per_prompt: int) -> list[FoundImage]:
    """All pictures in the order of prompts and numbers.

    Raises TwinflowError, naming the folders, unless it holds exactly ``images_per_prompt`` pictures of every
    prompt, each folder with the metadata of its line of ``prompts``. Sub-folders whose names are not numbers
    are not looked at.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TwinflowError(f"there is no folder {folder}")
    folders = numbered([path for path in folder.iterdir() if path.is_dir()])
    _check_folders(folder, folders, prompts)
    found: list[FoundImage] = []
    wrong: list[str] = []
    for index, row in enumerate(prompts.rows):
        _check_metadata(folders[index], row, index)
        samples = folders[index] / "samples"
        pictures = numbered(list(samples.glob("*.png"))) if samples.is_dir() else {}
        if len(pictures) != images_per_prompt:
            wrong.append(f"{folders[index].name}/samples has {len(pictures)}")
        for number, path in enumerate(pictures[key] for key in sorted(pictures)):
            found.append(
                FoundImage(
                    prompt_index=index,
                    image_index=number,
                    metadata=row,
                    path=path,
                    filename=path.relative_to(folder).as_posix(),
                )
            )
    if wrong:
        raise TwinflowError(
            f"{folder}: every prompt needs {images_per_prompt} PNG pictures, but {listed(wrong)}. "
            "A mean over fewer would not be GenEval's score: draw the missing ones, remove the others, or give "
            "images_per_prompt."
        )
    return found


def numbered(paths: Sequence[Path]) -> dict[int, Path]:
    """Paths whose names without suffix are numbers, by number; two of the same number are an error."""
    by_number: dict[int, Path] = {}
    for path in sorted(paths):
        if not (path.stem.isascii() and path.stem.isdecimal()):
            continue
        if (other := by_number.setdefault(int(path.stem), path)) is not path:
            raise TwinflowError(f"{other} and {path} have the same number: which one counts? Remove one.")
    return by_number


def listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _check_folders(folder: Path, folders: dict[int, Path], prompts: PromptFile) -> None:
    missing = [f"{index:05}" for index in range(len(prompts)) if index not in folders]
    extra = [path.name for index, path in sorted(folders.items()) if index >= len(prompts)]
    if missing:
        raise TwinflowError(
            f"{folder} lacks the folders {listed(missing)} of {len(prompts)} prompts of {prompts.name}. "
            "A mean without them would not be GenEval's score: draw their pictures."
        )
    if extra:
        raise TwinflowError(
            f"{folder} has folders beyond the {len(prompts)} prompts of {prompts.name}: {listed(extra)}. "
            "Give the prompt file that the pictures were drawn from, or remove them."
        )


def _check_metadata(folder: Path, row: Metadata, index: int) -> None:
    path = folder / "metadata.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TwinflowError(
            f"{path} can't be read ({error}); it must hold line {index} of the prompts"
        ) from error
    own = parse_metadata(text, where=str(path))
    if own != row:
        raise TwinflowError(
            f"{path} was made from another prompt file: it says {own['prompt']!r}, line {index} of the prompts "
            f"is {row['prompt']!r}. Give the prompt file that the pictures were drawn from."
        )
