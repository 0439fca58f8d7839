"""Models by name, the way the command line gives them: what an evaluation draws with, or the pictures it finds.

``[NAME=]MODEL[@NFE]``, where MODEL is a diffusers folder or hub id, an any-step checkpoint, the folder of a run, an
embedded model, ``stock:MODEL`` for diffusers' own call, or ``images:FOLDER`` (or just the folder) for pictures
that were drawn before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from twinflow.assets import locate
from twinflow.conditions import concat_rows
from twinflow.errors import TwinflowError
from twinflow.evaluation.fingerprint import fingerprint
from twinflow.evaluation.pictures import Picture, pictures_in
from twinflow.evaluation.ranks import device
from twinflow.evaluation.samplers import Sampler, sampler_for
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.geometry import Size
from twinflow.sampling import make_schedule, resolve_settings, sample, seeded_noise

STOCK, IMAGES = "stock:", "images:"


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What a model's name on the command line says; nothing is loaded."""

    name: str  # in tables and folders
    path: str
    kind: str  # "any-step", "stock" or "images"
    nfe: int | None = None  # of pictures that were drawn before, where it is known

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """``TwinflowError`` for a folder that is neither a model nor pictures."""
        name, equals, path = text.partition("=")
        if not equals:
            name, path = "", text
        match = re.fullmatch(r"(.*)@(\d+)", path)
        nfe = int(match[2]) if match else None
        path = match[1] if match else path
        kind = "any-step"
        for prefix, meant in ((STOCK, "stock"), (IMAGES, "images")):
            if path.startswith(prefix):
                path, kind = path.removeprefix(prefix), meant
        path = locate(path)
        if kind != "images":
            path, kind = _found(path, kind)
        if not name:
            parts = [part for part in Path(path).parts if part not in ("pipeline", "..", ".", "/")]
            name = parts[-1] if parts else path
        if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
            raise TwinflowError(f"the model's name {name!r} can't name a folder: give another, NAME={path}")
        return cls(name=name, path=path, kind=kind, nfe=nfe)


def _found(path: str, kind: str) -> tuple[str, str]:
    """The path of the pipeline, and what it is."""
    folder = Path(path)
    if not folder.is_dir():
        return path, kind  # a hub id, or an error when it is loaded
    if (folder / "model_index.json").is_file() or (folder / "twinflow.json").is_file():
        return path, kind
    if (folder / "pipeline" / "model_index.json").is_file():
        return str(folder / "pipeline"), kind
    if (folder / "recipe.yaml").is_file():
        raise TwinflowError(
            f"the run in {folder} has written no pipeline yet: let it end (the same `twinflow train` goes on)"
        )
    if kind == "any-step" and pictures_in(folder):
        return path, "images"
    raise TwinflowError(
        f"{folder} is no model and has no pictures: it has no model_index.json, and no PNG file"
    )


class Model(Protocol):
    """What pictures are drawn with."""

    identity: dict[str, Any]  # JSON: all that a picture depends on besides its prompt, seed and sampler
    size: tuple[int, int] | None  # height and width that were asked for
    native_size: tuple[int, int]  # and those of the model itself

    def sampler(self, nfe: int, guidance: float | None) -> Sampler: ...

    def check(self, prompts: Sequence[str], samplers: Sequence[Sampler]) -> None:
        """``TwinflowError`` for prompts or samplers that it can't draw, before anything is drawn."""

    def encode(self, prompts: Sequence[str]) -> None:
        """Get ready for ``prompts``; work that was done before is not done again."""

    def draw(self, pictures: Sequence[Picture], sampler: Sampler) -> Tensor:
        """Pixels (N, 3, H, W) in [-1, 1], each a function of its own prompt and seed; of a checked sampler."""


class AnyStepModel:
    """A pipeline sampled by :func:`twinflow.sampling.sample`. Each prompt is encoded once, alone."""

    def __init__(self, pipe: AnyStepPipeline, *, identity: str, size: tuple[int, int] | None = None) -> None:
        if pipe.edits:
            raise TwinflowError(
                f"{type(pipe.pipe).__name__} edits pictures: the benchmarks have prompts without a source picture"
            )
        self.pipe, self.size, self.native_size = pipe, size, _native_size(pipe.pipe)
        dtype = str(next(pipe.network.parameters()).dtype).removeprefix("torch.")
        self.identity = {"model": identity, "dtype": dtype, "size": size, "device": pipe.device.type}
        self._encoded: dict[str, Any] = {}

    def sampler(self, nfe: int, guidance: float | None) -> Sampler:
        return sampler_for(self.pipe, nfe, guidance)

    def check(self, prompts: Sequence[str], samplers: Sequence[Sampler]) -> None:
        if self.pipe.words is not None:
            check_prompts(prompts, self.pipe.words)
        for sampler in samplers:
            options = dict(sampler.options)
            style = options.pop("style", "few")
            overrides = options | ({"guidance": sampler.guidance} if sampler.guidance != 1.0 else {})
            if "guidance" in overrides and self.pipe.guidance_is_an_input:
                raise TwinflowError(
                    f"guidance {sampler.guidance} is not possible: {type(self.pipe.pipe).__name__} takes its "
                    "guidance as an input of the network; leave --guidance out"
                )
            try:
                settings = resolve_settings(nfe=sampler.nfe, style=style, settings=None, overrides=overrides)  # type: ignore[arg-type]
                make_schedule(sampler.nfe, settings)
            except ValueError as error:
                raise TwinflowError(f"--nfe {sampler.nfe}: {error}") from error

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> None:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._encoded:
                self._encoded[prompt] = self.pipe.encode_prompts([prompt]).to("cpu")

    @torch.no_grad()
    def draw(self, pictures: Sequence[Picture], sampler: Sampler) -> Tensor:
        self.encode([picture.prompt for picture in pictures])
        size = None if self.size is None else Size(*self.size)
        cond = concat_rows([self._encoded[picture.prompt] for picture in pictures]).to(self.pipe.device)
        options = dict(sampler.options)
        if sampler.guidance != 1.0:
            self.encode([""])
            uncond = self._encoded[""].to(self.pipe.device)
            options |= {"guidance": sampler.guidance, "uncond": self.pipe.at_size(uncond, size)}
        shape = self.pipe.adapter.geometry(size).state_shape if size else self.pipe.latent_shape
        noise = seeded_noise(shape, [picture.seed for picture in pictures]).to(self.pipe.device)
        latents = sample(self.pipe.field, noise, self.pipe.at_size(cond, size), nfe=sampler.nfe, **options)
        return self.pipe.decode(latents, size=size)


class StockModel:
    """Any diffusers pipeline by its own call: for models without a field, and to compare with.

    Its scheduler decides how many network evaluations a step takes; they are counted, not believed.
    """

    def __init__(self, pipe: Any, *, identity: str, size: tuple[int, int] | None = None) -> None:
        self.pipe, self.size, self.native_size = pipe, size, _native_size(pipe)
        self._steps: dict[tuple[int, float], int] = {}  # by NFE and guidance
        network = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
        if network is None:
            raise TwinflowError(f"{type(pipe).__name__} has neither a transformer nor a unet to count")
        self.network: torch.nn.Module = network
        weight = next(self.network.parameters())
        dtype = str(weight.dtype).removeprefix("torch.")
        self.identity = {"stock": identity, "dtype": dtype, "size": size, "device": weight.device.type}

    def sampler(self, nfe: int, guidance: float | None) -> Sampler:
        options: dict[str, Any] = {"style": "stock"}
        return Sampler(nfe=nfe, guidance=1.0 if guidance is None else guidance, options=options)

    def check(self, prompts: Sequence[str], samplers: Sequence[Sampler]) -> None:
        for sampler in samplers:
            self._steps[sampler.nfe, sampler.guidance] = self.steps(sampler)

    def encode(self, prompts: Sequence[str]) -> None:
        """The stock call encodes its prompts itself."""

    def steps(self, sampler: Sampler) -> int:
        """Steps that cost ``sampler.nfe`` network evaluations; measured by drawing a picture in one and in two."""
        costs = []
        for count in (1, 2):
            with _Counter(self.network) as counter:
                self._call([Picture(file="", prompt="a photo", seed=0)], sampler, count)
            costs.append(counter.rows)
        first, each = costs[0], costs[1] - costs[0]
        if each < 1 or sampler.nfe < first or (sampler.nfe - first) % each:
            raise TwinflowError(
                f"--nfe {sampler.nfe} is not possible with the stock call of {type(self.pipe).__name__} at guidance "
                f"{sampler.guidance:g}: its first step costs {first} network evaluations and the others {each} each"
            )
        return 1 + (sampler.nfe - first) // each

    def draw(self, pictures: Sequence[Picture], sampler: Sampler) -> Tensor:
        return self._call(pictures, sampler, self._steps[sampler.nfe, sampler.guidance])

    def _call(self, pictures: Sequence[Picture], sampler: Sampler, steps: int) -> Tensor:
        size = {} if self.size is None else {"height": self.size[0], "width": self.size[1]}
        drawn = self.pipe(
            prompt=[picture.prompt for picture in pictures],
            generator=[torch.Generator().manual_seed(picture.seed) for picture in pictures],
            num_inference_steps=steps,
            guidance_scale=sampler.guidance,
            output_type="pt",
            **size,
        ).images
        return drawn.float().cpu() * 2 - 1


def _native_size(pipe: Any) -> tuple[int, int]:
    """Of the pictures that the pipeline makes unless told otherwise; 1024 squared where it does not say."""
    sample, scale = getattr(pipe, "default_sample_size", None), getattr(pipe, "vae_scale_factor", None)
    side = sample * scale if isinstance(sample, int) and isinstance(scale, int) else 1024
    return side, side


class _Counter:
    """Counts the rows that a network is evaluated on, for one picture."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.rows = network, 0

    def __enter__(self) -> _Counter:
        self._hook = self.network.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _count(self, module: Any, args: tuple, kwargs: dict) -> None:
        state: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        self.rows += len(state)  # a tensor, or a list of one entry a row


def open_model(name: ModelName, *, size: tuple[int, int] | None = None, dtype: str = "float32") -> Model:
    """Load what ``name`` says, on this process's GPU if there is one."""
    identity = fingerprint(name.path)
    if name.kind == "stock":
        return StockModel(_stock_pipeline(name.path, dtype), identity=identity, size=size)
    try:
        pipe = load_model(name.path, dtype=dtype, size=size)
    except ValueError as error:
        raise TwinflowError(
            f"{name.path} is no flow that can be sampled here: {error}. Try its own call, {STOCK}{name.path}"
        ) from error
    return AnyStepModel(pipe, identity=identity, size=size)


def _stock_pipeline(path: str, dtype: str) -> Any:
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(path, dtype=getattr(torch, dtype), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise TwinflowError(f"{path} is no pipeline that diffusers can load: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device())


def load_model(
    path_or_id: str, *, dtype: str = "float32", size: tuple[int, int] | None = None
) -> AnyStepPipeline:
    """The pipeline of a model for sampling, on the GPU if there is one; its progress bar is off."""
    pipe = AnyStepPipeline.from_pretrained(
        path_or_id,
        target_time=False,
        device=device(),
        dtype=getattr(torch, dtype),
        call=None if size is None else {"height": size[0], "width": size[1]},
    )
    pipe.pipe.set_progress_bar_config(disable=True)
    return pipe


def check_prompts(prompts: Sequence[str], words: Sequence[str]) -> None:
    """Raise unless every word of every prompt is among ``words``, those that the model was trained on."""
    known = set(words)
    for prompt in prompts:
        unknown = [word for word in prompt.split() if word not in known]
        if unknown:
            raise TwinflowError(
                f"the prompt {prompt!r} has words that this model does not know: {', '.join(unknown)}. "
                f"It knows: {' '.join(sorted(known))}"
            )


def draw_prompts(
    model: str, prompts: list[str], *, nfe: list[int], guidance: float | None, seed: int, output: Path
) -> list[Path]:
    """Draw each prompt at each NFE; returns the PNG files."""
    pipe = load_model(model)
    if pipe.words is not None:
        check_prompts(prompts, pipe.words)
    output.mkdir(parents=True, exist_ok=True)
    files = []
    for evaluations in nfe:
        sampler = sampler_for(pipe, evaluations, guidance)
        result = pipe(prompts, nfe=evaluations, seeds=seed, guidance=sampler.guidance, **sampler.options)
        for i, image in enumerate(result.images):
            files.append(output / f"{i:03}_seed{seed + i}_nfe{evaluations}.png")
            image.save(files[-1])
    return files
