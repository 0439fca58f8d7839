"""What a benchmark is: prompts with seeds and file names, and a folder of pictures in, scores out.

A measure is half of one: numbers for the pictures of any benchmark, such as their distance from a reference or
their diversity.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinflow.evaluation.pictures import Picture, check_folder
from twinflow.evaluation.results import Metric

# Told how many pictures are done, of how many; first those that were done before.
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The progress of those who don't ask for it."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What must be there before a benchmark can run. ``--list`` shows it; nothing is fetched to do so."""

    what: str
    size: str  # as a person says it: "275 MB"
    licence: str
    source: str  # a hub id, an address, or "in the package"
    option: str = ""  # how a local copy is named on the command line


@dataclass(kw_only=True)
class Finding:
    """One picture's verdict, and what the detector saw."""

    file: str
    prompt: str
    correct: bool | None = None  # None: not judged
    reason: str = ""  # empty when correct
    score: float | None = None  # in [0, 1], where a picture can be right in part
    boxes: list[tuple[str, list[float], float]] | None = (
        None  # label, (x1, y1, x2, y2), score; None: no detector looked
    )


@dataclass(kw_only=True)
class Scores:
    """What a benchmark says of one folder of pictures; the fields are those of an ``EvaluationRow``."""

    overall: float | None = None
    overall_error: float | None = None
    strict: float | None = None
    strict_error: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    task_images: dict[str, int] = field(default_factory=dict)
    held_out: float | None = None
    diversity: float | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)  # one a picture, or none at all
    protocol: dict[str, Any] = field(
        default_factory=dict
    )  # what of it only scoring tells, see Benchmark.told_late


class Benchmark(ABC):
    """``name``, the ``pictures`` to draw, and ``protocol``: all that decides whether two scores compare."""

    name: str
    pictures: Sequence[Picture]
    derived: Collection[str] = ()  # pictures that scoring itself leaves in the folder, such as grids
    told_late: Collection[str] = ()  # entries of the protocol that only scores tell, such as who gave answers

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """JSON values by name, such as the hash of the prompts, the detector and its weights."""

    @abstractmethod
    def score(self, folder: Path, *, keep: Path | None = None, progress: Progress = silent) -> Scores:
        """Scores of the pictures in ``folder``, which are all there.

        Files of rows and answers go into ``keep``, which is ``folder`` unless said: a folder of others may have files
        of the same names, or not be ours to write to.
        """

    def state(self, folder: Path) -> str:
        """What the scores of ``folder`` depend on besides its pictures and the protocol; "" for nothing."""
        return ""

    def ready(self) -> None:  # noqa: B027 - most need nothing
        """``TwinflowError`` for what is missing to score, before anything is drawn."""

    def check(self, folder: Path) -> None:
        """``TwinflowError`` unless a folder that others made has all pictures, and no others."""
        check_folder(folder, self.pictures, also=self.derived)

    def prepare(self, folder: Path) -> None:  # noqa: B027
        """Write what belongs beside the pictures, such as GenEval's metadata, before they are drawn."""


class Measure(ABC):
    """Numbers for the pictures of any benchmark."""

    name: str

    @property
    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """As of :class:`Benchmark`."""

    @abstractmethod
    def measure(
        self,
        folder: Path,
        pictures: Sequence[Picture],
        *,
        cache: Path,
        progress: Progress = silent,
    ) -> dict[str, Metric]:
        """By name. ``cache``: a folder for features, which a later call may use again."""

    def ready(self, pictures: Sequence[Picture]) -> None:  # noqa: B027
        """``TwinflowError`` for what is missing to measure ``pictures``, before anything is drawn."""


def prompts_hash(pictures: Sequence[Picture]) -> str:
    """Of the prompts and file names, in order: equal for equal prompts under equal names, whatever the seeds."""
    return digest([[picture.file, picture.prompt] for picture in pictures])


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
