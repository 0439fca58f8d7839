"""Checkpoints on disk: safetensors and JSON in a folder a step, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.tensor_files import save_tensors

STATE_FILE = "state.json"
FORMAT = 1
# Seconds, in which a network's disk shows what another machine has written: NFS asks again after 60, as a rule.
PATIENCE = 90.0


@dataclass(kw_only=True)
class Snapshot:
    """All that a run needs to go on."""

    tensors: dict[str, dict[str, Tensor]]  # by file, without its extension
    state: dict[str, Any]  # as JSON can hold it

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for group in self.tensors.values() for t in group.values())


class CheckpointFolder:
    """``step_00000100/`` and so on, and the file ``latest`` that names the one to go on from, mostly the newest.

    A checkpoint is written under another name, flushed to the disk and then renamed; ``latest`` is replaced
    likewise. So a run that is killed at any moment leaves the former checkpoint as it was.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path, self.keep = path, keep
        self.pointer = path / "latest"

    def latest(self) -> Path | None:
        """The checkpoint to go on from: the newest whole one, or that of :meth:`go_on_from`."""
        found = self._steps()
        if not self.pointer.is_file():  # killed between the renaming and the pointer, or it was removed
            return found[max(found)] if found else None
        named = self.path / self.pointer.read_text().strip()
        if (named / STATE_FILE).is_file():
            return named
        before = [step for step, own in found.items() if own.parent == named.parent and own.name < named.name]
        if not before:
            raise TwinflowError(
                f"the run in {self.path.parent} goes on from {named}, which is not there any more: put it back, or "
                "name another checkpoint with --resume"
            )
        return found[max(before)]

    def go_on_from(self, checkpoint: Path) -> None:
        """Let :meth:`latest` be ``checkpoint``, an earlier one or one of another folder, until the next is written.

        What is there now is left as it is until then.
        """
        chosen = checkpoint.resolve()
        name = chosen.name if chosen.parent == self.path.resolve() else str(chosen)
        if not self.pointer.is_file() or self.pointer.read_text().strip() != name:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_text(self.pointer, name + "\n")

    def save(self, step: int, snapshot: Snapshot) -> Path:
        """Write a checkpoint, make it the latest, and remove those beyond ``keep``."""
        self.begin(step, needed=snapshot.nbytes)
        return self.commit(step, snapshot)

    def hidden(self, step: int) -> Path:
        """The name of a checkpoint while it is written."""
        return self.path / f".writing-step_{step:08}"

    def begin(self, step: int, *, needed: int) -> None:
        """Make the folder :meth:`hidden`; what is put there before :meth:`commit` becomes part of the checkpoint."""
        hidden = self.hidden(step)
        with explained(self.path / f"step_{step:08}", needed=needed, leftover=hidden):
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            hidden.mkdir()

    def commit(self, step: int, snapshot: Snapshot) -> Path:
        """Write ``snapshot`` there, and give it its name."""
        final, hidden = self.path / f"step_{step:08}", self.hidden(step)
        with explained(final, needed=snapshot.nbytes, leftover=hidden):
            for name, tensors in snapshot.tensors.items():
                file = hidden / f"{name}.safetensors"
                save_tensors({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, file)
                _flush(file)
            files = {str(f.relative_to(hidden)): f.stat().st_size for f in hidden.rglob("*") if f.is_file()}
            state = {"format": FORMAT, "files": dict(sorted(files.items())), **snapshot.state}
            write_text(hidden / STATE_FILE, json.dumps(state, indent=1) + "\n")
            _flush(hidden)
            if final.exists():  # of a branch of the run that was given up by resuming from an earlier step
                _remove(final)
            hidden.rename(final)
            replace_text(self.pointer, final.name + "\n")
            _flush(self.path)
        self._rotate(step)
        return final

    def _rotate(self, newest: int) -> None:
        found = self._steps()
        kept = sorted(step for step in found if step <= newest)[-self.keep :]
        for step, folder in found.items():
            if step not in kept:
                _remove(folder)

    def _steps(self) -> dict[int, Path]:
        folders = (folder.parent for folder in self.path.glob(f"step_*/{STATE_FILE}"))
        return {int(folder.name.removeprefix("step_")): folder for folder in folders}

    def _remove_leftovers(self) -> None:
        for pattern in (".writing-*", ".removing-*"):
            for leftover in self.path.glob(pattern):
                shutil.rmtree(leftover)


def read_state(path: Path) -> dict[str, Any]:
    """The state in the checkpoint ``path``, without a tensor; ``TwinflowError`` unless all of its files are there."""
    try:
        state: dict[str, Any] = json.loads((path / STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise TwinflowError(f"{path} is not a readable checkpoint: {error}") from error
    for name, needed in state.pop("files", {}).items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != needed:
            raise TwinflowError(
                f"{path} is half of a checkpoint: {name} has {_size(found)} of {_size(needed)}. Copy it again, or "
                "remove the folder to go on from the checkpoint before it"
            )
    return state


def read_checkpoint(path: Path, *, groups: Container[str] | None = None) -> Snapshot:
    """The checkpoint in the folder ``path``; of its files those that ``groups`` names, or all."""
    state = read_state(path)
    files = [file for file in sorted(path.glob("*.safetensors")) if groups is None or file.stem in groups]
    try:
        tensors = {file.stem: load_file(file) for file in files}
    except (OSError, ValueError, SafetensorError) as error:
        raise TwinflowError(f"{path} is not a readable checkpoint: {error}") from error
    if state.pop("format", None) != FORMAT:
        raise TwinflowError(f"{path} was written by another version of twinflow, in another format")
    return Snapshot(tensors=tensors, state=state)


def replace_folder(final: Path, hidden: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill the folder ``hidden``, then rename it to ``final``."""
    if hidden.exists():  # of a run that was killed
        shutil.rmtree(hidden)
    write(hidden)
    if final.exists():
        _remove(final)
    hidden.rename(final)
    _flush(final.parent)


@contextmanager
def explained(path: Path, *, needed: int, leftover: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into an error with the remedy, and remove ``leftover``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(leftover, ignore_errors=True)
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        raise TwinflowError(
            f"{path} could not be written ({error}). It needs {_size(needed)}, and {_size(free)} are free "
            "there. What was saved before is untouched: make room and run the same command again"
        ) from error


def appears(file: Path) -> bool:
    """Whether ``file``, which another process has written, is there, or comes to be within :data:`PATIENCE`."""
    limit = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() >= limit:
            return False
        time.sleep(0.5)
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text``, down to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Replace the file ``path`` at once: a reader sees the old text or the new."""
    beside = path.with_name(f".{path.name}.writing")
    write_text(beside, text)
    beside.replace(path)


def _remove(folder: Path) -> None:
    """Remove a folder of files; renamed first, so that half of it is never taken for a checkpoint."""
    hidden = folder.with_name(f".removing-{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # which can't open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
