"""The folder of a run: what is in it, whose it is, and where to go on."""

from __future__ import annotations

import json
import platform
import sys
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from twinflow.config import Recipe, load_recipe, recipe_dict, recipe_yaml
from twinflow.errors import TwinflowError, check_place
from twinflow.training.checkpoint import (
    CheckpointFolder,
    appears,
    explained,
    read_state,
    replace_folder,
    replace_text,
)
from twinflow.training.ema import ParameterAverage, trained_parameters
from twinflow.training.processes import Processes
from twinflow.training.protocols import Trainable

# Settings that may change when a run is resumed: they say how long it is and what is seen of it.
FREE_KEYS = (
    "train.steps",
    "train.threads",
    "train.force",
    "parallel",
    "log",
    "checkpoint",
    "preview",
    "output",
)
_PACKAGES = (
    "twinflow",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "torchao",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "pydantic",
    "omegaconf",
)


class RunFolder:
    """``recipe.yaml``, ``versions.json``, ``metrics.jsonl``, ``checkpoints/``, ``previews/``, ``pipeline/``."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.path = Path(recipe.output)
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", keep=recipe.checkpoint.keep)
        self.pipeline = self.path / "pipeline"
        self.previews = self.path / "previews"

    def resume_from(self, resume: str | Path = "auto") -> Path | None:
        """The checkpoint to go on from; ``None`` is to start anew. Nothing is loaded or written.

        ``resume``: ``"auto"`` goes on with the run in this folder if there is one, ``"never"`` refuses to, and
        a path is a checkpoint, or the folder of a run. ``TwinflowError`` if that was another recipe's.
        """
        self._check_place()
        if str(resume) == "never":
            if (self.path / "recipe.yaml").exists():
                raise TwinflowError(
                    f"{self.path} holds a run already: choose another output, or resume it (resume=auto)"
                )
            return None
        if str(resume) == "auto":
            if not self._has_begun():
                return None
            check_same_run(self.path, self.recipe)
            found = self.checkpoints.latest()
        else:
            found = self._chosen(Path(resume))
            if self._has_begun():
                check_same_run(self.path, self.recipe)
        if found is not None:
            read_state(found)  # all of it is there
        return found

    def _has_begun(self) -> bool:
        """Whether there is something to lose. There is not if, say, a mistake in its recipe stopped it."""
        metrics = self.path / "metrics.jsonl"
        return (self.path / "recipe.yaml").exists() and (
            any(self.checkpoints.path.glob("[!.]*"))
            or self.pipeline.exists()
            or (metrics.is_file() and metrics.stat().st_size > 0)
        )

    def _check_place(self) -> None:
        """``TwinflowError`` if the folder can't be written, or is the one that the data is read from."""
        check_place(self.recipe.output, name="output")
        data = getattr(self.recipe.data, "path", None)
        if data is not None and Path(data).is_dir() and self.path.resolve() == Path(data).resolve():
            raise TwinflowError(
                f"output = {self.recipe.output!r} is the folder of the data: choose another, to which nothing but the "
                "run is written"
            )

    def _chosen(self, path: Path) -> Path:
        """The checkpoint that the user named, or the latest of the run that was named."""
        if (path / "recipe.yaml").is_file():
            run = path
            found = CheckpointFolder(path / "checkpoints", keep=1).latest()
        else:
            run = path.absolute().parent.parent
            found = path if (path / "state.json").is_file() else None
        if found is None:
            raise TwinflowError(f"resume = {str(path)!r}: there is no checkpoint, and no run that has one")
        if (run / "recipe.yaml").is_file():
            check_same_run(run, self.recipe)
        return found

    def check_shared(self, checkpoint: Path | None, processes: Processes, *, sharded: bool) -> None:
        """``TwinflowError`` unless all processes go on from the same ``checkpoint`` and, where they are ``sharded`` and
        so write it together, see the same folder. Every process has to take part."""
        remedy = "put output on a disk that all machines share"
        names = processes.each(lambda: None if checkpoint is None else checkpoint.name)
        for rank, name in enumerate(names):
            if name != names[0]:
                raise TwinflowError(
                    f"output = {str(self.path)!r}: the first process would go on from {names[0] or 'the start'}, and "
                    f"process {rank} from {name or 'the start'}: {remedy}"
                )
        if not sharded:
            return
        mark = self.path / processes.share(self._mark)
        seen = processes.each(lambda: appears(mark))
        if processes.is_main:
            mark.unlink()
        for rank, sees in enumerate(seen):
            if not sees:
                raise TwinflowError(
                    f"output = {str(self.path)!r}: process {rank} does not see what the first one writes there, and "
                    f"slices of a checkpoint are written by each: {remedy}"
                )

    def _mark(self) -> str:
        """The name of a new and empty file."""
        mark = self.path / f".seen-{uuid.uuid4().hex}"
        with explained(mark, needed=0, leftover=self.path / ".nothing"):
            self.path.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return mark.name

    def claim(self, checkpoint: Path | None = None) -> None:
        """Write the resolved recipe and the versions of what runs it, and that it goes on from ``checkpoint``."""
        texts = {
            "recipe.yaml": recipe_yaml(self.recipe),
            "versions.json": json.dumps(versions(), indent=1) + "\n",
        }
        with explained(self.path, needed=sum(map(len, texts.values())), leftover=self.path / ".nothing"):
            self.path.mkdir(parents=True, exist_ok=True)
            if checkpoint is not None:
                self.checkpoints.go_on_from(checkpoint)
            for name, text in texts.items():
                replace_text(self.path / name, text)

    def lacks_pipeline(self) -> bool:
        """Whether ``pipeline/`` is not there, or older than the choice of the checkpoint to go on from: a run that was
        made longer, and killed before it wrote its own, has that of its former end."""
        if not self.pipeline.exists():
            return True
        pointer = self.checkpoints.pointer
        return pointer.is_file() and self.pipeline.stat().st_mtime_ns < pointer.stat().st_mtime_ns

    def save_pipeline(self, pipe: Trainable, average: ParameterAverage | None) -> None:
        """Write ``pipeline/`` with the averaged weights, if there are; complete under its name, or not there."""
        written = pipe.network.parameters()
        if getattr(pipe, "lora", None) is not None:  # whose base is named, not written again
            written = iter(trained_parameters(pipe.network).values())
        needed = sum(p.numel() * p.element_size() for p in written)
        hidden = self.path / ".writing-pipeline"
        with explained(self.pipeline, needed=needed, leftover=hidden):
            if average is not None:
                average.swap()
            try:
                replace_folder(self.pipeline, hidden, pipe.save_pretrained)
            finally:
                if average is not None:
                    average.swap()


def check_same_run(folder: Path, recipe: Recipe) -> None:
    """``TwinflowError`` with the first key in which the run in ``folder`` has another recipe."""
    former = _flat(recipe_dict(load_recipe(folder / "recipe.yaml")))
    present = _flat(recipe_dict(recipe))
    for key in dict.fromkeys([*present, *former]):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
        if not free and present.get(key) != former.get(key):
            raise TwinflowError(
                f"{folder} holds another run: its {key} is {former.get(key)!r}, and this recipe's is "
                f"{present.get(key)!r}. Choose another output, or set {key} back. Free to change are "
                f"{', '.join(FREE_KEYS)}"
            )


def check_processes(checkpoint: Path, recipe: Recipe, place: Processes, *, shards: int) -> None:
    """``TwinflowError`` if ``checkpoint`` can't be gone on with by as many processes as there are, whose weights are
    divided among ``shards``: before anything is loaded."""
    state = read_state(checkpoint)
    written, present = int(state.get("processes", 1)), place.world_size if shards > 1 else 1
    if recipe.optimizer.name in ("adamw8bit", "adamw4bit") and written != present:
        raise TwinflowError(
            f"{checkpoint}: its states of optimizer.name = {recipe.optimizer.name!r} are cut for {written} "
            f"processes, and now there would be {present}; they can't be cut anew. Start as many (--nproc-per-node "
            f"{written}, with the parallel.mode of then), or a new run with adamw"
        )
    readers = state.get("order", {}).get("world_size", place.data_count)
    if readers != place.data_count:
        raise TwinflowError(
            f"{checkpoint}: streamed data goes on in as many processes as it was stopped in, {readers}, got "
            f"{place.data_count}. Start as many (--nproc-per-node {readers * place.context}), or a new run with "
            "data.streaming = false"
        )


def versions() -> dict[str, str]:
    """Versions of all that has a say in the numbers of a run."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # with the CUDA that it was built for, which its package does not say
    return found


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train.steps": 100, …}``."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
