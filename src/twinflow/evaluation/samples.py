"""Pictures and clips of prompts, as files: ``twinflow sample``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twinflow.data.pictures import fit, open_picture
from twinflow.errors import TwinflowError, check_place
from twinflow.evaluation.models import check_prompts, load_model
from twinflow.evaluation.samplers import sampler_for

CLIP_RATE = 16  # frames a second


def draw_prompts(
    model: str,
    prompts: list[str],
    *,
    nfe: list[int],
    guidance: float | None,
    seed: int,
    output: Path,
    dtype: str = "float32",
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    sources: Sequence[Path] = (),
) -> list[Path]:
    """Draw each prompt at each NFE; returns the PNG files, animated ones of clips.

    ``size``: height and width; ``frames`` of clips. ``sources``: the pictures to edit, one for each prompt or one for
    all, which are cropped to ``size`` if that is given.
    """
    check_place(output, name="--output")
    for prompt in prompts:
        if prompt.endswith((".txt", ".jsonl")) and Path(prompt).is_file():
            raise TwinflowError(
                f"the prompt {prompt!r} is a file: `twinflow eval {model} --prompts {prompt} --nfe "
                f"{','.join(map(str, nfe))}` draws the prompts in it"
            )
    call: dict[str, Any] = {} if frames is None else {"num_frames": frames}
    images = _sources(sources, count=len(prompts), size=size)
    if images:
        call["image"] = images[0]
    pipe = load_model(model, dtype=dtype, size=size, **call)
    if pipe.words is not None:
        check_prompts(prompts, pipe.words)
    output.mkdir(parents=True, exist_ok=True)
    files = []
    for evaluations in nfe:
        sampler = sampler_for(pipe, evaluations, guidance)
        try:
            result = pipe(
                prompts,
                nfe=evaluations,
                seeds=seed,
                images=images or None,
                guidance=sampler.guidance,
                **sampler.options,
            )
        except ValueError as error:
            raise TwinflowError(f"{model} at --nfe {evaluations}: {error}") from error
        for i, image in enumerate(result.images):
            files.append(output / f"{i:03}_seed{seed + i}_nfe{evaluations}.png")
            first, *more = image if isinstance(image, list) else [image]
            moving: dict[str, Any] = {"save_all": True, "append_images": more, "duration": 1000 / CLIP_RATE}
            first.save(files[-1], **(moving if more else {}))
    return files


def _sources(files: Sequence[Path], *, count: int, size: tuple[int, int] | None) -> list[Any]:
    """The pictures to edit, one for each of ``count`` prompts."""
    if len(files) not in (0, 1, count):
        raise TwinflowError(
            f"{len(files)} source pictures for {count} prompts: give one for all, or one for each"
        )
    images = []
    for file in files:
        try:
            image = open_picture(file)
        except OSError as error:
            raise TwinflowError(f"the source picture {file} can't be read: {error}") from error
        images.append(image if size is None else fit(image, size))
    return images * count if len(images) == 1 else images
