"""What a recipe consists of: one frozen section per concern, with defaults and allowed values.

The settings of the objective are not repeated here: they are the fields of the objective's own dataclass, see
:mod:`twinflow.recipes.objective`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from twinflow.recipes.data import Data
from twinflow.recipes.objective import build_objective, resolve_objective
from twinflow.recipes.section import AtLeastOne, Every, Section, Seed, Share


class Lora(Section):
    """The adapter of ``train: lora``; see :class:`twinflow.pipelines.lora.LoraSettings`."""

    rank: AtLeastOne = 16
    alpha: Annotated[float, Field(gt=0)] | None = None  # null: the rank, that is, no scale
    dropout: Share = 0.0  # the same mask in all calls of a step
    targets: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = (
        None  # null: found by watching
    )
    init: Literal["kaiming", "gaussian"] = "kaiming"


class Model(Section):
    """The pipeline to start from, and what of it is trained."""

    path: Annotated[str, Field(min_length=1)]  # folder in diffusers format, or hub id
    part: Literal["transformer", "autoencoder", "text_encoders"] = "transformer"
    target_time: bool = True  # attach the branch for r; a plain flow-matching model needs none
    fake_time: Literal["negative", "sign"] = "negative"  # how the branch marks t < 0
    # Arguments of the stock pipeline's call besides the prompt: {height: 512, width: 512, num_frames: 17, …}
    call: dict[str, Any] = Field(default_factory=dict)
    train: Literal["full", "lora"] = "full"  # the target-time branch is trained with either
    lora: Lora = Lora()
    quantize: Literal["int8", "nf4"] | None = None  # of the frozen base under a LoRA
    # Parameters that keep their values, by patterns of their names in the transformer: ["*.img_mod.*", …]
    freeze: Annotated[tuple[str, ...], Field(strict=False)] = ()
    dtype: Literal["fp32", "bf16"] = "fp32"  # of the stored weights; train.precision is that of the maths

    @model_validator(mode="after")
    def _lora_alone(self) -> Model:
        if self.train == "lora" and self.part != "transformer":
            raise ValueError(f"model.train = 'lora' is for the transformer, not model.part = {self.part!r}")
        if self.train == "full" and self.lora != Lora():
            raise ValueError(
                "model.lora says how a LoRA is trained, but model.train = 'full': set it to 'lora'"
            )
        if self.train == "full" and self.quantize is not None:
            raise ValueError(
                f"model.quantize = {self.quantize!r} needs model.train = 'lora': quantised weights can't be trained"
            )
        return self


class Optimizer(Section):
    """How gradients become steps."""

    # muon: for matrices in blocks, AdamW for the rest. adafactor: rows' and columns' means instead of a second
    # moment, nearly no memory. adamw8bit, adamw4bit: AdamW whose moments are kept in so many bits.
    name: Literal["adamw", "radam", "muon", "adafactor", "adamw8bit", "adamw4bit"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # of matrices; biases and norms never decay
    eps: Annotated[float, Field(gt=0)] = 1e-8
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = (
        0.2  # wsd: last part of the run, falling to final_lr
    )
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.0  # as a fraction of lr; constant does not use it
    clip: Annotated[float, Field(gt=0)] | None = 1.0  # bound on the gradient's norm; null is off
    # Update the weights of a block as soon as the backward pass has its gradients, and drop these: all gradients
    # are never there at once. Without clip, which needs the norm of all, and accumulation, which adds them up.
    in_backward: bool = False
    # Bits of bf16 weights beyond bf16's own, in a tensor beside them: masters of 24 or 32 bits, and no need for fp32
    # weights. The networks compute with the bf16 part.
    extra_bits: Literal[0, 8, 16] = 0

    @model_validator(mode="after")
    def _extra_where_rounded(self) -> Optimizer:
        if self.extra_bits and self.name in ("radam", "muon"):
            raise ValueError(
                f"optimizer.extra_bits = {self.extra_bits} is for adamw, adamw8bit, adamw4bit and adafactor, got "
                f"optimizer.name = {self.name!r}"
            )
        return self

    @property
    def rounds_stochastically(self) -> bool:
        """Whether bf16 weights are rounded up or down by chance, so that the mean of small steps is right."""
        return self.name in ("adafactor", "adamw8bit", "adamw4bit") or self.extra_bits > 0


class Ema(Section):
    """Averages of the trained weights. Each decay warms up from 0, so early weights are soon forgotten."""

    decay: Share = 0.999  # weights that are drawn with and saved at the end; 0: the trained ones themselves
    teacher_decay: Share = 0.99  # the teacher of an objective with teacher: ema
    on_host: bool = False  # keep the average that is drawn with in pinned memory of the host
    every: AtLeastOne = 1  # steps from one update of it to the next, whose decay is to that power


class Train(Section):
    """How much is trained, and in which arithmetic."""

    steps: AtLeastOne
    batch: AtLeastOne  # rows of one forward in one process
    accumulate: AtLeastOne = 1  # forwards per optimiser step
    seed: Seed = 0
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over the weights as they are stored
    # torch.compile: true, the network as one graph; "blocks", its repeated blocks, which share one that is soon made.
    compile: bool | Literal["blocks"] = False
    gradient_checkpointing: bool = False  # less memory: activations inside blocks are computed twice
    # Keep what recomputation starts from on the host (pinned), not on the device: less memory, more traffic.
    offload: bool = False
    force: bool = False  # start on a GPU that the plan says is too small
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a CUDA device if there is one
    threads: Annotated[int, Field(ge=0)] = 0  # of the CPU; 0 leaves torch's choice


class Parallel(Section):
    """How several processes (of ``torchrun``) share the work; a single one is not concerned."""

    # replicate: each holds everything, gradients are averaged. shard: each holds a part of the weights, gradients,
    # states and averages (FSDP2). hybrid: these parts are those of shard_size processes, and the others hold the
    # same (HSDP). auto: shard where all of a transformer is trained on GPUs, if that can be, else replicate.
    mode: Literal["auto", "replicate", "shard", "hybrid"] = "auto"
    shard_size: AtLeastOne | None = None  # hybrid: null is the number of processes of one machine
    cpu_offload: bool = False  # keep the parts on the host, and update them there
    reshard_after_forward: bool = True  # false: keep blocks from forward to backward, for less traffic
    # Processes that share the tokens of a row (diffusers' context parallelism), where the family has a plan for it:
    # for clips, whose activations are too many for one GPU. It divides the number of processes.
    context: AtLeastOne = 1

    @model_validator(mode="after")
    def _of_its_mode(self) -> Parallel:
        if self.shard_size is not None and self.mode != "hybrid":
            raise ValueError(
                f"parallel.shard_size = {self.shard_size} is for parallel.mode = 'hybrid', got {self.mode!r}"
            )
        if self.cpu_offload and self.mode not in ("shard", "hybrid"):
            raise ValueError(
                f"parallel.cpu_offload is for parallel.mode = 'shard' or 'hybrid', got {self.mode!r}"
            )
        return self


class Checkpoint(Section):
    """How often all that an exact resume needs is saved, and how many of these are kept."""

    every: Every = 500
    keep: AtLeastOne = 2
    background: bool = False  # of sharded runs: write while the training goes on, from a copy on the host


class Log(Section):
    """Where numbers go besides metrics.jsonl."""

    every: AtLeastOne = 50
    tensorboard: bool = True


class Preview(Section):
    """Pictures of fixed prompts and seeds in the course of the training."""

    every: Every = 0
    prompts: Annotated[tuple[str, ...], Field(strict=False)] = ()  # none: the first captions of the data
    count: AtLeastOne = 16  # how many, where the prompts come from the data
    nfe: Annotated[tuple[AtLeastOne, ...], Field(strict=False, min_length=1)] = (1, 2, 4)
    seed: Seed = 0
    # Further arguments of twinflow.sampling.sample, say {style: multi, guidance: 4}
    sampler: dict[str, Any] = Field(default_factory=dict)


class Recipe(Section):
    """A whole training run. ``output`` is the folder that it is written to."""

    model: Model
    data: Data
    objective: dict[str, Any]
    unconditional_prompt: str | None = ""  # what guidance compares with; null: there is none
    caption_dropout: Share = 0.0  # share of rows trained on the unconditional prompt
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    train: Train
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    preview: Preview = Preview()
    output: Annotated[str, Field(min_length=1)]

    @field_validator("objective")
    @classmethod
    def _resolved_objective(cls, objective: dict[str, Any]) -> dict[str, Any]:
        return resolve_objective(objective)

    @model_validator(mode="after")
    def _possible_combination(self) -> Recipe:
        objective = build_objective(self.objective)
        guidance, mix = getattr(objective, "guidance", 0), getattr(objective, "guidance_mix", 1)
        if self.unconditional_prompt is None and (guidance > 0 or mix != 1):
            key, value, off = ("guidance", guidance, 0) if guidance > 0 else ("guidance_mix", mix, 1)
            raise ValueError(
                f"objective.{key} = {value} compares with an unconditional condition, but "
                f'unconditional_prompt = null: give one (such as ""), or set objective.{key} to {off}'
            )
        if self.unconditional_prompt is None and self.caption_dropout > 0:
            raise ValueError(
                f"caption_dropout = {self.caption_dropout} trains on the unconditional prompt, but "
                'unconditional_prompt = null: give one (such as ""), or set caption_dropout to 0'
            )
        without = self.data.kind == "prompts" or not getattr(self.data, "pictures", True)
        if without and not getattr(objective, "image_free", False):
            raise ValueError(
                f"data.kind = {self.data.kind!r} gives prompts without pictures here: set "
                "objective.image_free = true, or give pictures"
            )
        if isinstance(self.data.cache, str) and self.model.part != "transformer":
            raise ValueError(
                f"data.cache = {self.data.cache!r} holds latents, but model.part = {self.model.part!r} is trained on "
                "what it encodes itself: set data.cache to true or false"
            )
        if getattr(objective, "teacher", "self") == "ema" and self.ema.teacher_decay == 0:
            raise ValueError(
                "objective.teacher = 'ema' needs an average, but ema.teacher_decay = 0: "
                "set it above 0 (such as 0.99), or objective.teacher to 'self'"
            )
        ema = self.ema
        if getattr(objective, "teacher", "self") == "ema" and ema.decay == ema.teacher_decay:
            for key in ("on_host", "every"):
                if getattr(ema, key) > 1 or getattr(ema, key) is True:
                    raise ValueError(
                        f"ema.{key} = {getattr(ema, key)}: the average is the teacher too, which every step asks, as "
                        f"ema.decay = ema.teacher_decay = {ema.decay}: choose another ema.teacher_decay, or "
                        f"leave ema.{key} out"
                    )
        if ema.decay == 0 and ema.on_host:
            raise ValueError("ema.on_host = true, but ema.decay = 0: there is no average to keep")
        if self.optimizer.extra_bits and self.model.dtype == "fp32":
            raise ValueError(
                f"optimizer.extra_bits = {self.optimizer.extra_bits} adds to bf16 weights, but model.dtype = 'fp32' "
                "has them all: set model.dtype to bf16, or extra_bits to 0"
            )
        if self.optimizer.in_backward and self.optimizer.clip is not None:
            raise ValueError(
                f"optimizer.clip = {self.optimizer.clip} needs the norm of all gradients, which never are there "
                "at once with optimizer.in_backward = true: set optimizer.clip to null (adafactor bounds the size "
                "of each update by itself), or in_backward to false"
            )
        if self.optimizer.in_backward and self.train.accumulate > 1:
            raise ValueError(
                f"train.accumulate = {self.train.accumulate} adds up gradients, which optimizer.in_backward = true "
                "drops at once: set train.accumulate to 1 and raise train.batch, or in_backward to false"
            )
        if self.model.freeze and self.model.part != "transformer":
            raise ValueError(
                f"model.freeze names parameters of the transformer, but model.part = {self.model.part!r} is trained: "
                "leave it out"
            )
        if self.train.compile and self.model.part == "autoencoder":
            raise ValueError(  # Inductor's code for a CPU, torch 2.13: benchmarks/results/compiled_autoencoder.json
                f"train.compile = {self.train.compile}: torch's compiler can leave most of an autoencoder without "
                "gradients, and says nothing: set train.compile to false"
            )
        if self.checkpoint.background and self.parallel.mode == "replicate":
            raise ValueError(
                "checkpoint.background = true is for sharded runs, got parallel.mode = 'replicate': set background to "
                "false, or parallel.mode to 'auto', 'shard' or 'hybrid'"
            )
        if self.optimizer.warmup_steps > self.train.steps:
            raise ValueError(
                f"optimizer.warmup_steps = {self.optimizer.warmup_steps} must not exceed "
                f"train.steps = {self.train.steps}"
            )
        return self

    def build_objective(self) -> Any:
        """A new objective with the settings of this recipe."""
        return build_objective(self.objective)
