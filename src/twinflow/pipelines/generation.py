"""From prompts to pictures: what a call of a pipeline is asked for, and what it returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from twinflow.conditions import concat_rows
from twinflow.pipelines.geometry import Size
from twinflow.sampling import SamplerSettings, make_schedule, sampling_steps, seeded_noise
from twinflow.sampling.noise import RowGenerators
from twinflow.sampling.sampler import SamplingStep
from twinflow.sampling.settings import SettingOverrides, Style, resolve_settings

if TYPE_CHECKING:
    from twinflow.pipelines.any_step import AnyStepPipeline

logger = logging.getLogger(__name__)

OutputType = Literal["pil", "pt", "np", "latent"]
LARGEST_SEED = 2**63 - 1

# Called after each step of each batch: the number of the step, from 0, and where it stands.
StepCallback = Callable[[int, SamplingStep], None]


@dataclass
class Generation:
    """What a call returns. Of clips, every picture below is a list of frames or has frames as dimension 1 or 2.

    ``images`` in the form that was asked for: "pil" a list of pictures; "pt" (B, 3, H, W) or (B, T, 3, H, W) in
    [0, 1]; "np" the same with channels last; "latent" the final latents. ``nfe`` network evaluations a picture.
    """

    images: Any
    latents: Tensor  # (B, …) final state
    nfe: int
    decoded: Tensor | None = None

    @property
    def pixels(self) -> Tensor:
        """(B, 3, H, W), or (B, 3, T, H, W) of clips, in [-1, 1]."""
        if self.decoded is None:
            raise ValueError("output_type = 'latent' decodes nothing: ask for 'pil', 'pt' or 'np'")
        return self.decoded


@dataclass(kw_only=True)
class Request:
    """One row for each picture of a call, checked before anything runs."""

    prompts: list[str]
    seeds: list[int]
    sources: list[Image.Image] | None
    batch_size: int

    @classmethod
    def of(
        cls,
        prompts: str | Sequence[str],
        *,
        seed: int,
        seeds: Sequence[int] | int | None,
        images: Sequence[Image.Image] | Image.Image | None,
        num_images_per_prompt: int,
        batch_size: int,
    ) -> Request:
        """``ValueError`` with the value and the remedy."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise ValueError("give at least one prompt, got none")
        if num_images_per_prompt < 1 or batch_size < 1:
            raise ValueError(
                "num_images_per_prompt and batch_size must be at least 1, got "
                f"{num_images_per_prompt} and {batch_size}"
            )
        sources = [images] if isinstance(images, Image.Image) else images and list(images)
        if sources is not None and len(sources) != len(texts):
            raise ValueError(f"{len(texts)} prompts need as many source images, got {len(sources)}")
        texts = [text for text in texts for _ in range(num_images_per_prompt)]
        if sources is not None:
            sources = [source for source in sources for _ in range(num_images_per_prompt)]
        first = seeds if isinstance(seeds, int) else seed
        numbers = (
            [first + i for i in range(len(texts))] if seeds is None or isinstance(seeds, int) else [*seeds]
        )
        if len(numbers) != len(texts):
            raise ValueError(f"{len(texts)} pictures need as many seeds, got {len(numbers)}")
        wrong = [number for number in numbers if not 0 <= number <= LARGEST_SEED]
        if wrong:
            raise ValueError(f"seeds are whole numbers from 0 to {LARGEST_SEED}, got {wrong[0]}")
        return cls(prompts=texts, seeds=numbers, sources=sources, batch_size=batch_size)

    def batches(self) -> list[slice]:
        return [slice(i, i + self.batch_size) for i in range(0, len(self.prompts), self.batch_size)]


@torch.no_grad()
def generate(
    pipe: AnyStepPipeline,
    prompts: str | Sequence[str],
    *,
    nfe: int = 1,
    seed: int = 0,
    seeds: Sequence[int] | int | None = None,
    size: Size | tuple[int, ...] | None = None,
    images: Sequence[Image.Image] | Image.Image | None = None,
    num_images_per_prompt: int = 1,
    guidance: float | None = None,
    negative_prompt: str = "",
    style: Style = "few",
    settings: SamplerSettings | None = None,
    generator: RowGenerators | None = None,
    batch_size: int = 256,
    output_type: OutputType = "pil",
    callback: StepCallback | None = None,
    **overrides: Any,
) -> Generation:
    """See :meth:`twinflow.AnyStepPipeline.__call__`."""
    request = Request.of(
        prompts,
        seed=seed,
        seeds=seeds,
        images=images,
        num_images_per_prompt=num_images_per_prompt,
        batch_size=batch_size,
    )
    if output_type not in ("pil", "pt", "np", "latent"):
        raise ValueError(f"output_type must be 'pil', 'pt', 'np' or 'latent', got {output_type!r}")
    if guidance is not None:
        overrides["guidance"] = guidance
    given = cast(SettingOverrides, overrides)
    resolved = resolve_settings(nfe=nfe, style=style, settings=settings, overrides=given)
    schedule = make_schedule(nfe, resolved)  # its errors belong here, before the prompts are encoded
    if pipe.exported is not None:
        pipe.exported.check_schedule(schedule, resolved)
    if resolved.guided and pipe.guidance_is_an_input:
        raise ValueError(
            f"guidance {resolved.guidance} is not possible: {type(pipe.pipe).__name__} was distilled to take its "
            "guidance as an input of the network; leave guidance out, and give guidance_scale in call= instead"
        )
    if pipe.edits and request.sources is None:
        raise ValueError(
            f"{type(pipe.pipe).__name__} edits pictures, or sets them in motion: give the source of each prompt, "
            "images=[…]"
        )
    size = Size(*size) if isinstance(size, tuple) else size
    if size is not None:
        _ = pipe.adapter.geometry(size).codec  # its error belongs here, too
    latents, pixels = [], []
    for rows in request.batches():
        cond, uncond = _conditions(pipe, request, rows, negative_prompt if resolved.guided else None, size)
        steps = sampling_steps(
            pipe.field,
            seeded_noise(pipe.shape_at(size), request.seeds[rows]).to(pipe.device),
            cond,
            nfe=nfe,
            uncond=uncond,
            settings=resolved,
            generator=generator[rows] if isinstance(generator, Sequence) else generator,
        )
        for number, step in enumerate(steps):
            if callback is not None:
                callback(number, step)
            final = step.x_hat
        latents.append(final)
        if output_type != "latent":
            pixels.append(pipe.decode(final, size=size))
    state = torch.cat(latents)
    if output_type == "latent":
        return Generation(images=state, latents=state, nfe=nfe)
    drawn = torch.cat(pixels)
    return Generation(images=_in_form(drawn, output_type), latents=state, nfe=nfe, decoded=drawn)


def _conditions(
    pipe: AnyStepPipeline, request: Request, rows: slice, negative: str | None, size: Size | None
) -> tuple[Any, Any]:
    """Of the rows, and without their prompts where ``negative`` stands in for them."""

    def encoded(prompts: list[str], sources: list[Image.Image] | None) -> Any:
        return pipe.at_size(pipe.encode_prompts(prompts, images=sources, size=size), size)

    prompts = request.prompts[rows]
    if request.sources is None:
        return encoded(prompts, None), None if negative is None else encoded([negative], None)
    sources = request.sources[rows]
    cond = encoded(prompts, sources)
    if negative is None:
        return cond, None
    return cond, concat_rows([encoded([negative], [source]) for source in sources])


def _in_form(pixels: Tensor, form: OutputType) -> Any:
    if form == "pil":
        return to_pil(pixels)
    frames_first = pixels.movedim(2, 1) if pixels.dim() == 5 else pixels
    unit = (frames_first.float() + 1) / 2
    return unit if form == "pt" else unit.movedim(-3, -1).cpu().numpy()


def to_pil(pixels: Tensor) -> list[Any]:
    """Pictures of ``pixels`` (B, C, H, W) in [-1, 1], rounded to 8 bits; C is 1 or 3. Of clips (B, C, T, H, W), a
    list of frames each. Numbers that are not finite become grey, black or white, with a warning.
    """
    if pixels.dim() == 5:
        return [to_pil(clip.movedim(1, 0)) for clip in pixels]
    spoilt = int((~pixels.isfinite()).flatten(1).any(1).sum())
    if spoilt:
        logger.warning(
            "%d of %d pictures have pixels that are not finite: the weights have diverged, or %s is too small for "
            "them; try float32",
            spoilt,
            len(pixels),
            str(pixels.dtype).removeprefix("torch."),
        )
        pixels = pixels.nan_to_num(0.0)
    arrays = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]
