"""The real-sized Qwen-Image transformer (20.4 B, random weights) on one GPU, for ``gpu_20b.py``: its steps.

The step is the library's own (``twinflow.training.step``): its objective, its optimisers, its updates during the
backward pass. What ``twinflow plan`` says of it is found beside what was measured.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn

from twinflow.data.loader import EncodedBatch
from twinflow.objectives import STUDENT, FlowMatching, Phase, RowLog, Step, TwinFlow
from twinflow.objectives.presets import preset
from twinflow.pipelines.freezing import freeze_parameters
from twinflow.pipelines.target_time import attach_target_time, times
from twinflow.planner import Backbone, Planner, Setup, gpu_named
from twinflow.planner.sources import Compression
from twinflow.recipes.sections import Ema, Optimizer
from twinflow.training.compiling import compile_networks
from twinflow.training.ema import trained_parameters
from twinflow.training.finite import FiniteGuard
from twinflow.training.networks import Trained
from twinflow.training.parallel import Replicated
from twinflow.training.processes import Processes
from twinflow.training.step import OptimizerStep

GiB, SPATIAL = 2**30, 8
MODULATION = ("*.img_mod.*", "*.txt_mod.*")
TINY: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 5,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}


class Clock:
    """Seconds by phase while ``on``, as the device is waited for at each border, which takes time itself."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.on = device, dict[str, float](), False

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Any:
        if not self.on:
            yield
            return
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start


class QwenField(nn.Module):
    """The transformer as a field on packed tokens (B, N, C), with its target-time branch."""

    def __init__(self, transformer: Any, *, side: int, clock: Clock) -> None:
        super().__init__()
        self.transformer, self.side, self._clock = transformer, side, (clock,)

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        phase = "forward with gradient" if torch.is_grad_enabled() else "forwards without gradient"
        shapes = [[(1, self.side, self.side)]] * x_t.shape[0]
        with self._clock[0].phase(phase), times(self.transformer, t=t, r=r):
            return self.transformer(
                hidden_states=x_t.to(self.transformer.dtype),
                encoder_hidden_states=cond,
                timestep=t,
                img_shapes=shapes,
                return_dict=False,
            )[0]


class ReferenceCalls(TwinFlow):
    """The calls of the authors' released step: guidance and jumps of all rows, each in a call of its own."""

    def step(self, field: Any, x: Tensor, cond: Any, **_: Any) -> Any:
        rows, part = x.shape[0], max(x.shape[0] // 4, 1)
        t = torch.full((rows,), 0.5, device=x.device)

        def ask(count: int) -> Tensor:
            with torch.no_grad():
                return field(x[:count], t[:count], t[:count], cond[:count])

        ask(part)
        prediction = field(x, t, t, cond).float()
        jumps = [ask(rows) for _ in range(4)]
        ask(part), ask(part)
        # Not the reference's loss, but one that falls, with a gradient of every weight; the work is the same.
        loss = (prediction - x).square().mean() + 0 * sum(jump.float().mean() for jump in jumps)
        log = RowLog(roles=["reference"] * rows, t=t.cpu(), r=t.cpu(), loss=loss.detach().expand(rows))
        return Step(loss=loss, losses={}, metrics={}, rows=log)


def objective_of(schedule: str) -> Any:
    """ "twinflow"; "reference", the calls of the released code; or "flow_matching", whose targets stand still."""
    if schedule == "flow_matching":
        return FlowMatching(time={"kind": "uniform"})
    kind = TwinFlow if schedule == "twinflow" else ReferenceCalls
    return kind(**preset("twinflow", "paper_qwen"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement of the step."""

    optimizer: str = "adamw4bit"
    size: int = 512  # pixels a side
    batch: int = 4
    text_tokens: int = 256
    steps: int = 5  # the first two are not timed, the last is by phase
    lr: float = 1e-5
    freeze_modulation: bool = False
    offload: bool = False  # block boundaries to pinned host memory
    checkpointing: bool = True
    compile: bool = False  # each block; one graph serves all
    layers: int = 60
    gpu: str = "h100-80"  # for the prediction
    tiny: bool = False  # a small network, on the CPU

    @property
    def config(self) -> dict[str, Any]:
        return TINY if self.tiny else {"num_layers": self.layers}

    @property
    def settings(self) -> Optimizer:
        return Optimizer(name=self.optimizer, lr=self.lr, in_backward=True, clip=None)  # type: ignore[arg-type]

    @property
    def freeze(self) -> tuple[str, ...]:
        return MODULATION if self.freeze_modulation else ()

    @property
    def channels(self) -> int:
        return 4 if self.tiny else 16

    @property
    def pixels(self) -> int:
        return 128 if self.tiny else self.size

    @property
    def text(self) -> int:
        return 32 if self.tiny else self.text_tokens


def start_anew(device: torch.device) -> None:
    """Nothing of a case before this one is left, not even its peak, if it ended by an error."""
    torch.manual_seed(0)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(options: Case, schedule: str, device: torch.device) -> dict[str, Any]:
    """Some steps on a fixed batch, by one of :func:`objective_of`: seconds, peak, losses, and the plan."""
    start_anew(device)
    objective = objective_of(schedule)
    plan = predict(options, "twinflow" if schedule == "reference" else schedule)  # it differs in no peak
    started = time.perf_counter()
    transformer = build(options.config, device)
    freeze_parameters(transformer, [*options.freeze, *plan.profile.dead])
    transformer.train()  # diffusers checkpoints in training mode only; there is no dropout
    if options.checkpointing:
        transformer.enable_gradient_checkpointing()
    if options.compile:
        compile_networks([transformer], how="blocks")
    parameters = trained_parameters(transformer)
    student = Trained.of(transformer, options.settings)
    optimizers = student.optimizers
    clock = Clock(device)
    build_seconds = clock.now() - started

    side = options.pixels // SPATIAL // 2
    generator = Generator().manual_seed(0)
    step = OptimizerStep(
        field=QwenField(transformer, side=side, clock=clock),
        teacher=None,
        objective=objective,
        trained={STUDENT: student},
        networks={},
        layout=Replicated(Processes(), device),
        guard=FiniteGuard(),
        generator=generator,
        clip=None,
        offload=[transformer] if options.offload else None,
    )
    x = torch.randn(options.batch, side * side, options.channels * 4, device=device)
    width = transformer.config.joint_attention_dim
    cond = torch.randn(options.batch, options.text, width, device=device, dtype=torch.bfloat16)
    seed, state = generator.get_state(), objective.state_dict()
    losses, seconds = [], []
    for number in range(options.steps):
        generator.set_state(seed)  # the same batch, roles and noise again: the loss must fall
        objective.load_state_dict(state)
        clock.on = number == options.steps - 1
        start = clock.now()
        batch = EncodedBatch(x=x, cond=cond, uncond=cond[:1] * 0)
        results, norm = step(number + 1, [batch], phase=Phase(), count=1, lr=options.lr)
        total = clock.now() - start
        losses.append(float(results[0].loss.detach()))
        if clock.on:
            clock.seconds["backward and update"] = total - sum(clock.seconds.values())
        elif number >= min(2, options.steps - 2):
            seconds.append(total)
    median = sorted(seconds)[len(seconds) // 2]
    work = plan.profile.step_flops
    if schedule == "reference":  # its own rows: 4.75 a row without gradient
        work += (4.75 - plan.profile.schedule.rows) * options.batch * plan.profile.forward_flops
    found: dict[str, Any] = {
        "schedule": schedule,
        "optimizer": options.optimizer,
        "size": options.pixels,
        "batch": options.batch,
        "checkpointing": options.checkpointing,
        "offload": options.offload,
        "compile": options.compile,
        "frozen_modulation": options.freeze_modulation,
        "parameters": sum(p.numel() for p in transformer.parameters()),
        "trained": sum(p.numel() for p in parameters.values()),
        "build_seconds": build_seconds,
        "step_seconds": median,
        "phase_seconds": clock.seconds,
        "tflops_per_second": work / median / 1e12,
        "losses": losses,
        "gradient_norm": float(norm),
        "planned_allocated_gib": plan.allocated / GiB,
        "planned_floor_seconds": plan.step_seconds,
    }
    if device.type == "cuda":
        found["allocated_gib"] = torch.cuda.max_memory_allocated() / GiB
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / GiB
        found["mfu"] = work / median / 1e12 / gpu_named(options.gpu).bf16
    assert optimizers.in_backward is not None
    optimizers.in_backward.remove()
    return found


def build(config: dict[str, Any], device: torch.device) -> Any:
    """Random weights, made on the device in bf16."""
    from diffusers import QwenImageTransformer2DModel

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            transformer: Any = QwenImageTransformer2DModel(**config)
            attach_target_time(transformer)
    finally:
        torch.set_default_dtype(default)
    return transformer


@cache
def predict(options: Case, schedule: str) -> Any:
    """What ``twinflow plan`` says of the same step."""
    from diffusers import QwenImageTransformer2DModel

    backbone = Backbone(
        name="qwen-image",
        kind=QwenImageTransformer2DModel,
        config=options.config,
        compression=Compression(channels=options.channels, spatial=SPATIAL),
    )
    setup = Setup(
        batch=options.batch,
        steps=1,
        optimizer=options.settings,
        ema=Ema(decay=0),
        checkpointing=options.checkpointing,
        offload=options.offload,
        freeze=options.freeze,
        height=options.pixels,
        width=options.pixels,
        text_tokens=options.text,
    )
    return Planner(backbone, objective_of(schedule)).plan(setup, gpu_named(options.gpu))
