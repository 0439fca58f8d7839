"""AnyStepPipeline: a stock diffusers pipeline seen as a field of average velocities."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twinflow.assets import locate
from twinflow.errors import TwinflowError
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.families import adapter_for
from twinflow.pipelines.features import tapped
from twinflow.pipelines.generation import Generation, generate
from twinflow.pipelines.geometry import Size

BRANCH_FILE = "target_time.safetensors"
CONFIG_FILE = "twinflow.json"


class AnyStepNetwork(nn.Module):
    """The trained module ``F(x_t, t, r, cond)``: a stock transformer, its adapter and its target-time branch."""

    def __init__(self, transformer: nn.Module, adapter: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self._adapter = (adapter,)  # in a tuple: shared by copies of the network, not copied with them

    def __deepcopy__(self, memo: dict) -> AnyStepNetwork:
        return AnyStepNetwork(copy.deepcopy(self.transformer, memo), self._adapter[0])

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        (adapter,) = self._adapter
        if not tt.has_target_time(self.transformer):
            return adapter.predict(self.transformer, x_t, t, cond)
        marked_by_sign = tt.marks_fake_by_sign(self.transformer)
        with tt.times(self.transformer, t=t, r=r):
            return adapter.predict(self.transformer, x_t, t.abs() if marked_by_sign else t, cond)

    def features(self, x_t: Tensor, t: Tensor, cond: Condition) -> list[Tensor]:
        """Features (B, N, D) of some blocks at r = t, see :class:`twinflow.field.FeatureField`."""
        with tapped(self.transformer) as features:
            self(x_t, t, t, cond)
        return features


class AnyStepPipeline:
    """A diffusers pipeline that generates in any number of steps.

    ``field(x_t, t, r, cond)`` is the average velocity from time ``t`` to ``r`` (noise minus data); see
    ``docs/method.md`` for the conventions. ``network`` is the module that is trained.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        target_time: bool = True,
        fake_time: str = "negative",
        call: Mapping[str, Any] | None = None,
        fold_padding: bool = True,
    ):
        self.pipe = pipe
        self.adapter = adapter_for(pipe, fold_padding=fold_padding, call=call)
        if target_time and not tt.has_target_time(pipe.transformer):
            path = self.adapter.wiring.time_path
            tt.attach_target_time(pipe.transformer, path=path, fake_time=fake_time)
        # The words that the model was trained on, if they are known to be all: prompts are checked against them.
        self.words: list[str] | None = None
        self.network = AnyStepNetwork(pipe.transformer, self.adapter)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        target_time: bool = True,
        fake_time: str = "negative",
        call: Mapping[str, Any] | None = None,
        fold_padding: bool = True,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> AnyStepPipeline:
        """Load a stock diffusers folder or hub id, a folder written by :meth:`save_pretrained`, or an embedded
        model ("shapeworld-tiny").

        With ``target_time`` the branch for ``r`` is attached (untrained unless the folder brings its weights):
        the network's function is unchanged. Such a folder also says its own ``fake_time``. ``call``: arguments
        of the stock pipeline's call besides the prompt, such as ``{"height": 512, "width": 512}``: the size that
        the pipeline is opened for. Only safetensors are read. Raises :class:`TwinflowError` for anything that is
        not such a pipeline.
        """
        from diffusers import DiffusionPipeline

        path_or_id = locate(path_or_id)
        folder = Path(path_or_id)
        config = _read_config(folder / CONFIG_FILE)
        if "fake_time" in config:
            target_time, fake_time = True, config["fake_time"]
        elif folder.is_dir() and not (folder / "model_index.json").is_file():
            raise TwinflowError(f"{folder} is not a diffusers pipeline: it has no model_index.json")
        try:
            pipe = DiffusionPipeline.from_pretrained(str(path_or_id), dtype=dtype, use_safetensors=True)
        except (OSError, ValueError) as error:
            what = "a folder that diffusers can load" if folder.is_dir() else "a folder or a model on the hub"
            raise TwinflowError(f"{path_or_id} is not {what}: {error}") from error
        pipe.to(device)
        self = cls(pipe, target_time=target_time, fake_time=fake_time, call=call, fold_padding=fold_padding)
        self.words = config.get("words")
        if "fake_time" in config:
            _load_branch(pipe.transformer, folder / BRANCH_FILE)
        return self

    @property
    def knows_target_time(self) -> bool:
        """Whether the network has a branch for r: trained for few steps, unless it was attached just now."""
        return tt.has_target_time(self.pipe.transformer)

    @property
    def edits(self) -> bool:
        """Whether every prompt comes with a source picture, whose tokens the network sees."""
        return self.adapter.wiring.state_has_tail

    @property
    def guidance_is_an_input(self) -> bool:
        """Whether the network was distilled to take the guidance scale as an input."""
        return bool(self.pipe.transformer.config.get("guidance_embeds"))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one picture's latents at the model's own resolution, without the batch."""
        return self.adapter.latent_shape

    def field(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        """Average velocity from ``t`` to ``r``: (B, …) in, (B, …) out; t and r (B,) fp32 signed."""
        return self.network(x_t, t, r, cond)

    def field_of(self, network: nn.Module) -> nn.Module:
        """The field of another set of weights: a deep copy of :attr:`network`, say an EMA or a frozen teacher."""
        return network

    def encode_prompts(
        self, prompts: Sequence[str], *, images: Sequence[Image.Image] | None = None
    ) -> Condition:
        """Conditions of ``prompts``; where the pipeline edits, with the source picture ``images`` of each."""
        return self.adapter.encode_prompts(prompts, images=images)

    def at_size(self, cond: Condition, size: Size | None) -> Condition:
        """``cond`` for pictures of another size than the pipeline was opened with."""
        return self.adapter.at_size(cond, size)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """States (B, …) of ``pixels`` (B, 3, H, W), or of clips (B, 3, T, H, W), in [-1, 1], of any size that the
        model accepts."""
        return self.adapter.encode_images(pixels)

    def decode(self, latents: Tensor, *, size: Size | None = None) -> Tensor:
        """Pixels (B, 3, H, W), or (B, 3, T, H, W) of clips, in [-1, 1] of states (B, …)."""
        return self.adapter.decode(latents, size=size)

    def __call__(self, prompts: str | Sequence[str], **options: Any) -> Generation:
        """Draw one picture, or make one clip, for each prompt.

        ``nfe``: network evaluations of each, 1 by default. ``seed``: of the first picture, the next has the
        next; or ``seeds``, one for each. The same seed gives the same picture in any batch. ``size``: height and
        width in pixels, and for clips the number of frames; by default that of the call that the pipeline was
        opened with. ``images``: the source picture of each prompt, where the pipeline edits.
        ``num_images_per_prompt``; ``batch_size``: how many are drawn together. ``output_type``: "pil", "pt", "np"
        or "latent". ``callback(number, step)`` after each step, with the
        :class:`twinflow.sampling.sampler.SamplingStep`.

        ``guidance`` above 1 is classifier-free guidance against ``negative_prompt`` (two evaluations a step),
        for models that TwinFlow did not train. ``style``, ``settings``, ``generator`` and single settings are
        those of :func:`twinflow.sampling.sample`.

        Raises ``ValueError`` with the value and the remedy, before anything runs.

        >>> pipe("a red circle", nfe=1, seed=0).images[0].save("circle.png")  # doctest: +SKIP
        """
        return generate(self, prompts, **options)

    def compile(self, **options: Any) -> None:
        """``torch.compile`` the network in place; ``options`` are those of ``torch.nn.Module.compile``."""
        self.network.compile(**options)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a lossless any-step checkpoint: a stock pipeline folder, the branch beside it, and a small JSON.

        The folder loads with diffusers alone too, as the network at r = t.
        """
        path = Path(path)
        transformer = self.pipe.transformer
        config: dict[str, Any] = {"format": 1}
        if self.words is not None:
            config["words"] = self.words
        if tt.has_target_time(transformer):
            config["fake_time"] = "sign" if tt.marks_fake_by_sign(transformer) else "negative"
            branch = {n: value.contiguous() for n, value in tt.target_time_state_dict(transformer).items()}
            with tt.detached(transformer):
                self.pipe.save_pretrained(path, safe_serialization=True)
            save_file(branch, path / BRANCH_FILE)
        else:
            save_stock(self.pipe, path)
        (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def save_stock(pipe: Any, path: str | Path) -> None:
    """Write a stock pipeline folder, and take away what an any-step checkpoint in the same place has left."""
    pipe.save_pretrained(path, safe_serialization=True)
    for name in (BRANCH_FILE, CONFIG_FILE):
        (Path(path) / name).unlink(missing_ok=True)


def _read_config(file: Path) -> dict[str, Any]:
    """The small JSON beside a checkpoint; empty for a stock folder or a hub id."""
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
        if config["format"] != 1 or config.get("fake_time", "negative") not in ("negative", "sign"):
            raise ValueError(f"it says {config}")
    except (ValueError, KeyError, TypeError) as error:
        raise TwinflowError(f"{file} is not of the format that this version writes: {error!r}") from error
    return config


def _load_branch(transformer: nn.Module, file: Path) -> None:
    try:
        branch = load_file(file)
    except (OSError, SafetensorError) as error:
        raise TwinflowError(f"{file}, the target-time branch, can't be read: {error}") from error
    own = tt.target_time_state_dict(transformer)
    wrong = set(own) ^ set(branch) or {name for name in own if own[name].shape != branch[name].shape}
    if wrong:
        raise TwinflowError(
            f"{file} does not fit this transformer, it is from another one: {', '.join(sorted(wrong))}"
        )
    transformer.load_state_dict(branch, strict=False)
