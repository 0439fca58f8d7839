"""AnyStepPipeline: a stock diffusers pipeline seen as a field of average velocities."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from twinflow.assets import locate
from twinflow.errors import TwinflowError
from twinflow.pipelines import checkpoint, lora, reach
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.absent import Together, absent_transformer, opened_together
from twinflow.pipelines.checkpoint import Manifest
from twinflow.pipelines.condition import Condition
from twinflow.pipelines.exported import Exported
from twinflow.pipelines.families import adapter_for
from twinflow.pipelines.generation import Generation, generate
from twinflow.pipelines.geometry import Size
from twinflow.pipelines.lora import LoraSettings
from twinflow.pipelines.network import AnyStepNetwork
from twinflow.pipelines.quantise import Kind, check_library, quantise
from twinflow.pipelines.slim import load_slim_stock


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
        name = getattr(pipe, "name_or_path", None)
        # What an export says of itself: it draws in one number of steps, and is not trained on.
        self.exported = Exported.of_scheduler(getattr(getattr(pipe, "scheduler", None), "config", {}))
        if self.exported is not None and target_time:
            self.exported.refuse(name)
        self.adapter = adapter_for(pipe, fold_padding=fold_padding, call=call)
        if self.exported is None and not tt.has_target_time(pipe.transformer):
            self.exported = Exported.of_weights(pipe.transformer, self.adapter.wiring.time_path.mlp)
            if self.exported is not None and target_time:
                self.exported.refuse(name)
        if target_time and not tt.has_target_time(pipe.transformer):
            path = self.adapter.wiring.time_path
            tt.attach_target_time(pipe.transformer, path=path, fake_time=fake_time)
        self.words: list[str] | None = None  # that the model was trained on, if they are known to be all
        self.network = AnyStepNetwork(pipe.transformer, self.adapter)
        self.lora: LoraSettings | None = None  # of the adapter on the transformer, if there is one
        self.base: str | None = checkpoint.base_name(name) if name else None  # where the weights came from

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        base: str | Path | None = None,
        target_time: bool = True,
        fake_time: str = "negative",
        call: Mapping[str, Any] | None = None,
        fold_padding: bool = True,
        quantize: Kind | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        together: Together | None = None,
    ) -> AnyStepPipeline:
        """Load a stock diffusers folder, one of :meth:`save_pretrained`, either on the hub, or "shapeworld-tiny".

        With ``target_time`` the branch for ``r`` is attached (untrained unless the folder brings its weights): the
        network's function is unchanged. Such a folder also says its own ``fake_time``. ``call``: arguments of the
        stock pipeline's call besides the prompt, such as ``{"height": 512, "width": 512}``: the size that it is
        opened for. ``base``: of a LoRA's folder, what to put it on instead of the base that it names. ``quantize``:
        keep the weights in "int8" or "nf4", to train a LoRA on them. ``together``: processes that open it at the same
        time, to divide the weights of its transformer, of which one alone reads them. Only safetensors are read.
        Raises :class:`TwinflowError` for anything that is not such a pipeline.
        """
        folder = Path(locate(path_or_id))
        ours = checkpoint.with_our_files(folder)
        manifest = Manifest.read(ours)
        exported = Exported.read(folder)
        if exported is not None and (target_time or exported.kind == "lora"):
            raise TwinflowError(exported.refusal(path_or_id))
        if manifest.fake_time is not None:
            target_time, fake_time = True, manifest.fake_time
        common: dict[str, Any] = {"call": call, "fold_padding": fold_padding}
        if manifest.adapter is not None:
            source = base if base is not None else manifest.adapter.base
            if source is None:
                raise TwinflowError(f"{folder} is a LoRA that names no base: give its pipeline, base=")
            common |= {"quantize": quantize, "dtype": dtype, "device": device}
            try:
                self = cls.from_pretrained(source, target_time=target_time, fake_time=fake_time, **common)
            except TwinflowError as error:
                raise TwinflowError(
                    f"the base of the LoRA {folder} can't be opened; base= names another: {error}"
                ) from error
            self.merge_lora()  # the base may be a LoRA itself
            self.base = checkpoint.base_name(source)
            self.load_lora(ours, same_base=base is None)
            return self
        if base is not None:
            raise TwinflowError(f"base = {str(base)!r}: {path_or_id} is no LoRA, but a whole pipeline")
        if quantize is not None:
            check_library(quantize)
        if exported is not None and exported.kind == "slim":
            pipe = load_slim_stock(folder, dtype=dtype)
        else:
            source = str(folder if folder.is_dir() else path_or_id)
            elsewhere = together is not None and not together.here
            parts = {"transformer": absent_transformer(source)} if elsewhere else {}
            pipe = checkpoint.load_stock(source, dtype=dtype, **parts)
        if quantize is not None:
            quantise(pipe.transformer, quantize, device=device)
        pipe.to(device)
        if together is not None:
            opened_together(pipe.transformer, together)
        self = cls(pipe, target_time=target_time, fake_time=fake_time, **common)
        self.base, self.words = checkpoint.base_name(path_or_id), manifest.words
        if exported is not None:  # its note says more than its scheduler
            self.exported = exported
        if manifest.fake_time is not None and (together is None or together.here):
            checkpoint.load_branch(pipe.transformer, ours)
        return self

    @property
    def knows_target_time(self) -> bool:
        """Whether the network has a branch for r: trained for few steps, unless it was attached just now."""
        return tt.has_target_time(self.pipe.transformer)

    @property
    def edits(self) -> bool:
        """Whether every prompt comes with a source picture that the network sees: to edit, or to set in motion."""
        return self.adapter.wiring.tail_axis is not None

    @property
    def guidance_is_an_input(self) -> bool:
        """Whether the network was distilled to take the guidance scale as an input."""
        return bool(self.pipe.transformer.config.get("guidance_embeds"))

    @property
    def device(self) -> torch.device:
        parameter = next(self.network.parameters())
        return self.pipe.transformer.device if parameter.is_meta else parameter.device

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
        self, prompts: Sequence[str], *, images: Sequence[Image.Image] | None = None, size: Size | None = None
    ) -> Condition:
        """Conditions of ``prompts``, with the source picture of each where the pipeline :attr:`edits`. ``size``: that
        of what is drawn, if it is another than the pipeline was opened with; :meth:`at_size` completes it."""
        return self.adapter.encode_prompts(prompts, images=images, size=size)

    def shape_at(self, size: Size | None) -> tuple[int, ...]:
        """Shape of the latents of one picture, or clip, of this size; None is that of :attr:`latent_shape`."""
        return self.adapter.geometry(size).state_shape if size else self.latent_shape

    def at_size(self, cond: Condition, size: Size | None) -> Condition:
        """``cond`` for pictures of another size than the pipeline was opened with."""
        return self.adapter.at_size(cond, size)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """States (B, …) of ``pixels`` (B, 3, H, W), or clips (B, 3, T, H, W), in [-1, 1], of any possible size."""
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
        ``num_images_per_prompt``; ``batch_size``: how many are drawn together. ``output_type``: "pil", "pt", "np" or
        "latent". ``callback(number, step)`` after each step, with the :class:`twinflow.sampling.sampler.SamplingStep`.

        ``guidance`` above 1 is classifier-free guidance against ``negative_prompt`` (two evaluations a step), for
        models that TwinFlow did not train. ``style``, ``settings``, ``generator`` and single settings are those of
        :func:`twinflow.sampling.sample`.

        Raises ``ValueError`` with the value and the remedy, before anything runs.

        >>> pipe("a red circle", nfe=1, seed=0).images[0].save("circle.png")  # doctest: +SKIP
        """
        return generate(self, prompts, **options)

    def compile(self, **options: Any) -> None:
        """``torch.compile`` the network in place; ``options`` are those of ``torch.nn.Module.compile``."""
        self.network.compile(**options)

    # What is trained

    def add_lora(self, settings: LoraSettings | None = None) -> None:
        """Train an adapter and the target-time branch instead of all weights; the network's function is unchanged.

        A pipeline that was opened as a LoRA goes on with its own, whose settings must be these.
        """
        settings = settings or LoraSettings()
        if self.lora is not None:
            if self.lora == settings:
                return
            raise TwinflowError(
                f"this pipeline has a LoRA with other settings: {self.lora}, not {settings}. Use those, or merge it "
                "first (merge_lora)"
            )
        targets = reach.lora_targets(self, settings.targets)
        lora.attach_lora(self.pipe.transformer, settings, targets=targets)
        self.lora = settings

    def load_lora(self, folder: str | Path, *, same_base: bool = False) -> None:
        """Put on the LoRA that :meth:`save_pretrained` wrote to ``folder``, with its branch.

        ``same_base``: insist on the very weights that it was trained on.
        """
        manifest = Manifest.read(Path(folder))
        self.lora = checkpoint.load_adapter(
            self.pipe.transformer, Path(folder), manifest, same_base=same_base
        )
        self.words = manifest.words

    def merge_lora(self) -> None:
        """Add the adapter, if there is one, to the weights, in place: the transformer is stock but for its branch."""
        if self.lora is not None:
            lora.merge_lora(self.pipe.transformer)
            self.lora, self.base = None, None  # no folder holds these weights

    def merged(self) -> AnyStepPipeline:
        """This pipeline without an adapter: itself, or one with a merged copy of the transformer."""
        if self.lora is None:
            return self
        twin = copy.copy(self)
        twin.pipe = copy.copy(self.pipe)
        twin.pipe.transformer = copy.deepcopy(self.pipe.transformer)
        twin.network = AnyStepNetwork(twin.pipe.transformer, self.adapter)
        twin.merge_lora()
        return twin

    def freeze_unused(self) -> list[str]:
        """Stop training parameters that have no effect on the output; their names."""
        unused = reach.unused_parameters(self)
        for parameter in unused.values():
            parameter.requires_grad_(False)
        return list(unused)

    def enable_gradient_checkpointing(self) -> None:
        """Keep the activations of block borders alone, and compute the others again in the backward pass."""
        transformer = self.pipe.transformer
        try:
            transformer.enable_gradient_checkpointing()
        except (ValueError, AttributeError) as error:
            raise TwinflowError(
                f"{type(transformer).__name__} has no gradient checkpointing: {error}"
            ) from error

    def save_pretrained(self, path: str | Path) -> None:
        """Write a lossless any-step checkpoint.

        Without a LoRA, a stock pipeline folder, the branch beside it, and a small JSON: the folder loads with diffusers
        alone too, as the network at r = t. With one, the adapter, the branch and that JSON, which names the base:
        ``merged().save_pretrained(…)`` writes a whole pipeline instead.
        """
        transformer = self.pipe.transformer
        if self.exported is not None and self.exported.kind == "slim":
            raise TwinflowError("a slim export is no stock pipeline, and is not saved again: copy its folder")
        if self.lora is None:
            checkpoint.save_whole(self.pipe, Path(path), Manifest.of(transformer, words=self.words))
            if self.exported is not None:
                self.exported.save(path)
            return
        adapter = checkpoint.Adapter.of(transformer, self.lora, base=self.base)
        manifest = Manifest.of(transformer, words=self.words, adapter=adapter)
        checkpoint.save_adapter(transformer, Path(path), manifest)
