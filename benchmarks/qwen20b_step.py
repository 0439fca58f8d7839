"""Full-parameter TwinFlow steps of the real-sized Qwen-Image transformer (20.4 B, random weights) on one GPU.

    python benchmarks/qwen20b_step.py                                   # the default: 4-bit AdamW, 512 pixels, batch 4
    python benchmarks/qwen20b_step.py --size 1024 --optimizer adafactor
    python benchmarks/qwen20b_step.py --schedule both                   # ours against the reference's calls
    python benchmarks/qwen20b_step.py --tiny                            # a dry run on the CPU, in seconds

Nothing is downloaded. The step is the library's own (``twinflow.training.step``): its objective, its optimisers, its
updates during the backward pass. Written to the JSON: seconds in all and by phase, the peak of what torch allocates,
and what ``twinflow plan`` says, beside each other; losses of a fixed batch, which must fall.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from torch import Generator, Tensor, nn

from twinflow.data.loader import EncodedBatch
from twinflow.objectives import STUDENT, Phase, RowLog, Step, TwinFlow
from twinflow.pipelines.freezing import freeze_parameters
from twinflow.pipelines.target_time import attach_target_time, times
from twinflow.planner import Backbone, Planner, Setup, gpu_named
from twinflow.planner.sources import Compression
from twinflow.recipes.sections import Ema, Optimizer
from twinflow.training.ema import trained_parameters
from twinflow.training.finite import FiniteGuard
from twinflow.training.networks import Trained
from twinflow.training.parallel import Replicated
from twinflow.training.processes import Processes
from twinflow.training.step import OptimizerStep

GiB = 2**30
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
    """Seconds by phase; the device is waited for at each border."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Any:
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


def main() -> None:
    options = parse()
    device = torch.device("cpu" if options.tiny else "cuda")
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device: --tiny makes a dry run on the CPU")
    results: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "runs": [],
    }
    schedules = ("reference", "twinflow") if options.schedule == "both" else (options.schedule,)
    for schedule in schedules:
        run = measure(options, schedule, device)
        results["runs"].append(run)
        print(json.dumps(run, indent=1), flush=True)
    if len(schedules) == 2:
        slow, fast = (run["step_seconds"] for run in results["runs"])
        results["speed_up"] = slow / fast
        print(f"speed-up of the schedule: {slow / fast:.3f}")
    options.json.write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--optimizer", default="adamw4bit", choices=["adamw4bit", "adamw8bit", "adafactor", "adamw"]
    )
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--text-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="the first two are not timed")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--schedule", default="twinflow", choices=["twinflow", "reference", "both"])
    parser.add_argument("--freeze-modulation", action="store_true")
    parser.add_argument("--offload", action="store_true", help="block boundaries to pinned host memory")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="each block; one graph serves all")
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--gpu", default="h100-80", help="for the prediction")
    parser.add_argument("--tiny", action="store_true", help="a small network on the CPU")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/qwen20b_step.json"))
    return parser.parse_args()


def measure(options: argparse.Namespace, schedule: str, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    config = TINY if options.tiny else {"num_layers": options.layers}
    freeze = MODULATION if options.freeze_modulation else ()
    channels, spatial = (4, 8) if options.tiny else (16, 8)
    size = 128 if options.tiny else options.size
    text = 32 if options.tiny else options.text_tokens
    kind = TwinFlow if schedule == "twinflow" else ReferenceCalls
    objective = kind(teacher="self", guidance=0.5, time={"kind": "uniform"})
    settings = Optimizer(name=options.optimizer, lr=options.lr, in_backward=True, clip=None)

    plan = predict(options, config, objective, settings, freeze, channels, spatial, size, text)
    started = time.perf_counter()
    transformer = build(config, device)
    freeze_parameters(transformer, [*freeze, *plan.profile.dead])
    transformer.train()  # diffusers checkpoints in training mode only; there is no dropout
    if not options.no_checkpointing:
        transformer.enable_gradient_checkpointing()
    if options.compile:
        for block in transformer.transformer_blocks:
            block.compile(dynamic=False)
    parameters = trained_parameters(transformer)
    student = Trained.of(transformer, settings)
    optimizers = student.optimizers
    clock = Clock(device)
    build_seconds = clock.now() - started

    side = size // spatial // 2
    generator = Generator().manual_seed(0)
    step = OptimizerStep(
        field=QwenField(transformer, side=side, clock=clock),
        teacher=None,
        objective=objective,
        trained={STUDENT: student},
        networks={},
        layout=Replicated(Processes()),
        guard=FiniteGuard(),
        generator=generator,
        clip=None,
        offload=options.offload,
    )
    x = torch.randn(options.batch, side * side, channels * 4, device=device)
    width = transformer.config.joint_attention_dim
    cond = torch.randn(options.batch, text, width, device=device, dtype=torch.bfloat16)
    seed, state = generator.get_state(), objective.state_dict()
    losses, seconds = [], []
    phases: dict[str, float] = {}
    for number in range(options.steps):
        generator.set_state(seed)  # the same batch, roles and noise again: the loss must fall
        objective.load_state_dict(state)
        clock.seconds = {}
        start = clock.now()
        batch = EncodedBatch(x=x, cond=cond, uncond=cond[:1] * 0)
        results, norm = step(number + 1, [batch], phase=Phase(), count=1, lr=options.lr)
        total = clock.now() - start
        losses.append(float(results[0].loss.detach()))
        if number >= min(2, options.steps - 1):
            seconds.append(total)
            clock.seconds["backward and update"] = total - sum(clock.seconds.values())
            phases = {name: phases.get(name, 0.0) + value for name, value in clock.seconds.items()}
    median = sorted(seconds)[len(seconds) // 2]
    work = plan.profile.step_flops
    if schedule == "reference":  # its own rows: 4.75 a row without gradient
        work += (4.75 - plan.profile.schedule.rows) * options.batch * plan.profile.forward_flops
    found: dict[str, Any] = {
        "schedule": schedule,
        "optimizer": options.optimizer,
        "size": size,
        "batch": options.batch,
        "checkpointing": not options.no_checkpointing,
        "offload": options.offload,
        "compile": options.compile,
        "frozen_modulation": options.freeze_modulation,
        "parameters": sum(p.numel() for p in transformer.parameters()),
        "trained": sum(p.numel() for p in parameters.values()),
        "build_seconds": build_seconds,
        "step_seconds": median,
        "phase_seconds": {name: value / len(seconds) for name, value in phases.items()},
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
    del transformer, optimizers, parameters, step, student
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
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


def predict(
    options: argparse.Namespace,
    config: dict[str, Any],
    objective: TwinFlow,
    settings: Optimizer,
    freeze: tuple[str, ...],
    channels: int,
    spatial: int,
    size: int,
    text: int,
) -> Any:
    """What ``twinflow plan`` says of the same step."""
    from diffusers import QwenImageTransformer2DModel

    backbone = Backbone(
        name="qwen-image",
        kind=QwenImageTransformer2DModel,
        config=config,
        compression=Compression(channels=channels, spatial=spatial),
    )
    setup = Setup(
        batch=options.batch,
        steps=1,
        optimizer=settings,
        ema=Ema(decay=0),
        checkpointing=not options.no_checkpointing,
        offload=options.offload,
        freeze=freeze,
        height=size,
        width=size,
        text_tokens=text,
    )
    # The schedule of the reference differs in rows without gradient, which set no peak.
    return Planner(backbone, TwinFlow(teacher="self", guidance=0.5)).plan(setup, gpu_named(options.gpu))


if __name__ == "__main__":
    main()
