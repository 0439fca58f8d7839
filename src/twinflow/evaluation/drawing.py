"""Draw the pictures of a benchmark: shared out over the processes, picture by picture, and only what is missing.

Pictures are drawn in blocks. A block is the same whatever the number of processes and however often the work was
stopped, so the files are the same, byte for byte. A block of one picture (``batch=1``) depends on nothing but its
own prompt and seed; in larger blocks floating-point sums are taken in another order, which can move the last of
eight bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Progress, digest, silent
from twinflow.evaluation.models import Model
from twinflow.evaluation.pictures import Picture, check_folder, key_of, pictures_in, save_picture
from twinflow.evaluation.ranks import gather_objects
from twinflow.evaluation.samplers import Sampler
from twinflow.pipelines import to_pil
from twinflow.training.processes import Processes

RECORD = "drawing.json"
FULL_BLOCK = 64 * 64 * 64  # pixels of a block, so that small pictures share a network call


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How one folder of pictures came about."""

    key: str  # of the model, the sampler and all pictures
    seconds_per_image: float | None  # of one process, without the block that warms up


def default_batch(model: Model) -> int:
    """One picture a block where a picture is large, as the official harnesses draw; up to 64 where it is small."""
    height, width = model.size or model.native_size
    return max(1, min(64, FULL_BLOCK // (height * width)))


def draw_pictures(
    model: Model,
    pictures: Sequence[Picture],
    sampler: Sampler,
    folder: Path,
    *,
    batch: int = 1,
    also: Collection[str] = (),
    place: Processes | None = None,
    progress: Progress = silent,
) -> Drawing:
    """Draw what ``folder`` lacks of ``pictures``. Returns in every process when all are there.

    A picture that is there with another key, of another model, say, is drawn again. ``TwinflowError`` for pictures
    in the folder that were not drawn here and are not named by ``also``.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    place = place or Processes.current()
    how = model.identity | {"sampler": asdict(sampler), "batch": batch, "format": 1}
    blocks = [pictures[i : i + batch] for i in range(0, len(pictures), batch)]
    keys = [_key(how, block) for block in blocks]
    whole = digest([how, keys])
    if place.is_main:
        _forget(folder, whole)
    mine = [*zip(blocks, keys)][place.rank :: place.world_size]
    lacking = [[p for p in block if key_of(folder / p.file) != key] for block, key in mine]
    done = sum(len(block) for (block, _), missing in zip(mine, lacking) if not missing)
    total = sum(len(block) for block, _ in mine)  # of this process
    progress(done, total)
    timed = []
    for (block, key), missing in zip(mine, lacking):
        if missing:
            timed.append((len(block), _draw_block(model, block, sampler, folder, key, missing)))
            done += len(block)
            progress(done, total)
    # The first block of a process warms it up: it counts only where there is no other.
    timed = timed[1:] or timed
    gathered = [entry for entries in gather_objects(place, timed) for entry in entries]
    if place.is_main:
        _tidy(folder, pictures)
        _record(folder, whole, gathered, how)
    place.barrier()
    check_folder(folder, pictures, also=also)
    return Drawing(key=whole, seconds_per_image=_seconds(json.loads((folder / RECORD).read_text())))


def _key(how: dict[str, Any], block: Sequence[Picture]) -> str:
    return digest([how, [[p.prompt, p.seed, *([p.skip] if p.skip else [])] for p in block]])


def _draw_block(
    model: Model,
    block: Sequence[Picture],
    sampler: Sampler,
    folder: Path,
    key: str,
    missing: Sequence[Picture],
) -> float:
    """Seconds that the block took to draw, without the writing."""
    model.encode([picture.prompt for picture in block])
    start = time.perf_counter()
    pixels = model.draw(block, sampler).cpu()  # to the host: everything is done
    seconds = time.perf_counter() - start
    if pixels.dim() != 4:
        raise TwinflowError(f"the model makes clips {tuple(pixels.shape)}: the benchmarks score pictures")
    wanted = set(missing)
    for picture, image in zip(block, to_pil(pixels)):
        if picture in wanted:
            save_picture(folder / picture.file, image, key=key)
    return seconds


def _tidy(folder: Path, pictures: Sequence[Picture]) -> None:
    """Take away what an earlier, longer evaluation drew here, and only that."""
    for name in pictures_in(folder) - {picture.file for picture in pictures}:
        if key_of(folder / name) is not None:
            (folder / name).unlink()


def _forget(folder: Path, key: str) -> None:
    """Take away the record of other pictures, before some of them are replaced: it would speak for a mixture."""
    file = folder / RECORD
    if file.is_file() and json.loads(file.read_text()).get("key") != key:
        file.unlink()


def _record(folder: Path, key: str, timed: list[tuple[int, float]], how: dict[str, Any]) -> None:
    """Keep the times, those of an earlier call for the same pictures too."""
    file = folder / RECORD
    former = json.loads(file.read_text()) if file.is_file() else {}
    count, seconds = (former["timed"], former["seconds"]) if former.get("key") == key else (0, 0.0)
    count += sum(pictures for pictures, _ in timed)
    seconds += sum(took for _, took in timed)
    file.write_text(json.dumps({"key": key, "timed": count, "seconds": seconds, "how": how}, indent=1) + "\n")


def _seconds(record: dict[str, Any]) -> float | None:
    return record["seconds"] / record["timed"] if record["timed"] else None
