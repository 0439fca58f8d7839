"""One training step, made for real by the objective itself on a network of fake tensors.

So the schedule of forwards, their rows, and what is alive at the same time are those of the training, whatever the
objective: nothing about it is written down here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from twinflow.planner.inputs import Call, name_pattern
from twinflow.planner.network import FakeNetwork
from twinflow.planner.timeline import Stretch, Timeline
from twinflow.planner.tracker import StorageTracker

_TRIES = 32  # steps whose rows are counted: they depend on random times


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step's memory depends on, besides network, objective and batch."""

    checkpointing: bool = False  # keep the inputs of blocks alone, and compute the rest again
    offload: bool = False  # and those on the host
    in_backward: bool = (
        False  # a block's weights are updated, and its gradients dropped, as soon as they are there
    )
    autocast: bool = False  # maths in bf16 over weights as they are stored


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Network calls of an objective's step, on average."""

    calls: float
    rows: float  # without gradient, per row of the batch
    teacher_rows: float  # of these, of another network than the student


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What a step costs beyond the weights and the states of the optimiser."""

    schedule: Schedule
    stretches: tuple[Stretch, ...]  # bytes of activations, gradients, the objective's own tensors over time
    gradients: int  # bytes of all gradients together
    host: int  # bytes of offloaded activations
    forward_flops: float  # of one row
    step_flops: float  # of the batch, with recomputation and backward, on average
    dead: tuple[str, ...]  # parameters that are trained, and never get a gradient

    @property
    def peak(self) -> int:
        """Bytes in one process without sharding."""
        return self.timeline().peak

    def timeline(self, *, gradient_share: float = 1.0) -> Timeline:
        """Memory over time where a process keeps this share of each gradient that is complete."""
        return Timeline.of(self.stretches, gradient_share=gradient_share)


def count_rows(
    objective: Any, batch: int, *, tries: int = _TRIES
) -> tuple[Schedule, dict[str, Any], Generator]:
    """The schedule, and state and generator of the step with the largest call."""
    counted = copy.deepcopy(objective)
    generator = Generator().manual_seed(0)
    total: list[tuple[int, int, int]] = []
    worst, state, seed = -1, counted.state_dict(), generator.get_state()
    for _ in range(tries):
        calls: list[tuple[str, int, bool]] = []
        before = counted.state_dict(), generator.get_state()
        student, teacher = _CountingField("student", calls), _CountingField("teacher", calls)
        _objective_step(counted, torch.zeros(batch, 1), student, teacher, generator)
        without = [(name, rows) for name, rows, grad in calls if not grad]
        total.append((len(calls), sum(r for _, r in without), sum(r for n, r in without if n == "teacher")))
        largest = max((rows for _, rows in without), default=0)
        if largest > worst:
            worst, (state, seed) = largest, before
    chosen = Generator()
    chosen.set_state(seed)
    means = [fmean(column) for column in zip(*total, strict=True)]
    schedule = Schedule(calls=means[0], rows=means[1] / batch, teacher_rows=means[2] / batch)
    return schedule, state, chosen


def profile_step(
    network: FakeNetwork,
    call: Call,
    objective: Any,
    *,
    batch: int,
    options: StepOptions,
    update_bytes: Callable[[Sequence[nn.Parameter]], int] = lambda _: 0,
    silent: tuple[str, ...] = (),
) -> StepProfile:
    """Make one step of ``objective`` with ``batch`` rows.

    ``update_bytes``: passing memory of the optimiser while it updates these parameters together. ``silent``: names of
    parameters whose gradients no block waits for; if this step finds any, it is made again with them.
    """
    schedule, state, generator = count_rows(objective, batch)
    objective = copy.deepcopy(objective)
    objective.load_state_dict(state)
    run = _Run(network=network, call=call, options=options, update_bytes=update_bytes, silent=silent)
    with run.watching() as tracker:
        student, teacher = _FakeField(run), _FakeField(run)
        with tracker:
            x = torch.zeros(batch, *call.state_shape)
            result = _objective_step(objective, x, student, teacher, generator)
            tracker.mark("backward")
            result.loss.backward()
            tracker.mark("update")
            run.update_rest()
            del result, x
            tracker.mark("end")
    if options.in_backward and run.dead() and not silent:
        again = {"batch": batch, "options": options, "update_bytes": update_bytes}
        objective.load_state_dict(state)
        return profile_step(network, call, objective, silent=tuple(run.dead()), **again)  # type: ignore[arg-type]
    counts = run.counts
    stretches = tuple(
        Stretch(segment=segment, count=counts.get(i, 1), gradients=run.gradient_changes.get(i, 0))
        for i, segment in enumerate(tracker.segments)
    )
    timeline = Timeline.of(stretches)
    rows_flops = timeline.flops.get("gradient", 0) / batch
    no_grad = schedule.rows * batch * rows_flops
    with_grad = timeline.flops.get("gradient", 0) + timeline.flops.get("backward", 0)
    return StepProfile(
        schedule=schedule,
        stretches=stretches,
        gradients=run.gradient_bytes(),
        host=timeline.host_peak,
        forward_flops=rows_flops,
        step_flops=no_grad + with_grad,
        dead=tuple(sorted(run.dead())),
    )


def _objective_step(objective: Any, x: Tensor, student: Any, teacher: Any, generator: Generator) -> Any:
    rows = torch.arange(x.shape[0])
    return objective.step(student, x, rows, uncond=rows[:1], teacher=teacher, generator=generator)


@dataclass
class _CountingField:
    name: str
    calls: list[tuple[str, int, bool]]

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        self.calls.append((self.name, x_t.shape[0], torch.is_grad_enabled()))
        return torch.zeros_like(x_t).requires_grad_(torch.is_grad_enabled())


@dataclass
class _FakeField:
    """The network as a field: real states in and out, fake tensors inside."""

    run: _Run

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        if torch.is_grad_enabled():
            return _Bridge.apply(torch.zeros((), requires_grad=True), x_t, self.run)  # type: ignore[no-any-return]
        with self.run.inside("forward"):
            self.run.call(x_t.shape[0])
        return torch.zeros_like(x_t)


class _Bridge(torch.autograd.Function):
    """Lets the real loss's backward run the backward of the fake network."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x_t: Tensor, run: _Run) -> Tensor:
        ctx.run = run
        with torch.enable_grad(), run.inside("gradient"), run.keeping():
            ctx.output = run.call(x_t.shape[0])
        return torch.zeros_like(x_t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        output, ctx.output = ctx.output, None
        with torch.enable_grad(), ctx.run.inside("backward"):
            output.backward(torch.ones_like(output))
            del output
        return None, None, None


@dataclass
class _Run:
    """The hooks of one simulated step."""

    network: FakeNetwork
    call: Call
    options: StepOptions
    update_bytes: Callable[[Sequence[nn.Parameter]], int]
    silent: tuple[str, ...] = ()
    phase: str = ""
    counts: dict[int, int] = field(default_factory=dict)  # repetitions, by the number of the segment
    gradient_changes: dict[int, int] = field(default_factory=dict)  # bytes, likewise
    seen: set[nn.Parameter] = field(default_factory=set)
    current: nn.Module | None = None  # block whose backward runs

    @contextmanager
    def watching(self) -> Iterator[StorageTracker]:
        module = self.network.module
        self.tracker = StorageTracker()
        self.tracker.ignore([*module.parameters(), *module.buffers()])
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.block_of = {p: block for block in self.network.repeats for p in block.parameters()}
        with ExitStack() as stack:
            for block, count in self.network.repeats.items():
                stack.callback(block.register_forward_pre_hook(self._before(count)).remove)
                stack.callback(block.register_forward_hook(self._after(count)).remove)
            for parameter in self.trained:
                stack.callback(parameter.register_post_accumulate_grad_hook(self._accumulated).remove)
            if self.options.checkpointing:
                stack.enter_context(_checkpointed(module))
            yield self.tracker
            for parameter in self.trained:
                parameter.grad = None

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Enter the world of fake tensors."""
        self.phase = phase
        self.tracker.mark(f"{phase}|before")
        autocast = torch.autocast("cpu", torch.bfloat16) if self.options.autocast else nullcontext()
        with self.network.mode, self.tracker, autocast:
            yield
        self.tracker.mark("objective")
        self.phase = ""

    def keeping(self) -> Any:
        """What happens to the tensors that autograd keeps."""
        if not self.options.offload:
            return nullcontext()
        ours = {p.untyped_storage()._cdata for p in self.network.module.parameters()}

        def pack(tensor: Tensor) -> Any:
            if tensor.untyped_storage()._cdata in ours:
                return tensor
            size = tensor.numel() * tensor.element_size()
            self.tracker.to_host(size)
            return tuple(tensor.shape), tensor.dtype, size

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            shape, dtype, size = packed
            self.tracker.to_host(-size)
            return torch.empty(shape, dtype=dtype)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def _mark(self, label: str, count: int = 1) -> None:
        self.tracker.mark(label)
        self.counts[len(self.tracker.segments) - 1] = count

    def _before(self, count: int) -> Any:
        def hook(block: nn.Module, arguments: Any) -> None:
            if self.phase == "backward":  # a recomputation
                return
            label = f"{self.phase}|block"
            if self.tracker.segments[-1].label.endswith("|between"):  # what leads to this block belongs to it
                self.tracker.segments[-1].label = label
                self.counts[len(self.tracker.segments) - 1] = count
            else:
                self._mark(label, count)

        return hook

    def _after(self, count: int) -> Any:
        def hook(block: nn.Module, arguments: Any, output: Any) -> None:
            if self.phase == "backward":
                return
            if self.phase == "gradient":
                for tensor in output if isinstance(output, tuple) else (output,):
                    if isinstance(tensor, Tensor) and tensor.requires_grad:
                        tensor.register_hook(self._arriving(block, count))
            self._mark(f"{self.phase}|between")

        return hook

    def _arriving(self, block: nn.Module, count: int) -> Any:
        """The first gradient that reaches a block's output begins its backward."""

        def hook(gradient: Tensor) -> None:
            if self.current is not block:
                self.current = block
                self._mark("backward|block", count)

        return hook

    def _accumulated(self, parameter: nn.Parameter) -> None:
        self.seen.add(parameter)
        self._note(_size(parameter))
        if not self.options.in_backward:
            return
        block = self.block_of.get(parameter)
        unit = [p for p in self.trained if self.block_of.get(p) is block and block is not None] or [parameter]
        if all(p.grad is not None or self.network.names[p] in self.silent for p in unit):
            self._update(unit)

    def _update(self, unit: Sequence[nn.Parameter]) -> None:
        passing = self.update_bytes(unit)
        self.tracker._change(passing)
        self.tracker._change(-passing)
        for p in unit:
            if p.grad is not None:
                self._note(-_size(p))
                p.grad = None

    def update_rest(self) -> None:
        """What the optimiser does after the backward: all, or what no block has done."""
        self._update(self.trained)

    def _note(self, change: int) -> None:
        number = len(self.tracker.segments) - 1
        self.gradient_changes[number] = self.gradient_changes.get(number, 0) + change

    def gradient_bytes(self) -> int:
        size = {p: self.network.repeats[b] for p, b in self.block_of.items()}
        return sum(_size(p) * size.get(p, 1) for p in self.trained)

    def dead(self) -> list[str]:
        """Without a gradient, though their like in other blocks have one: what they compute is discarded.

        What no block uses may be of an input that this call does not have.
        """
        live = {name_pattern(self.network.names[p]) for p in self.seen}
        names = [self.network.names[p] for p in self.trained if p not in self.seen]
        return [name for name in names if name_pattern(name) in live]


@contextmanager
def _checkpointed(module: Any) -> Iterator[None]:
    """diffusers' checkpointing of blocks, which is for training mode."""
    was = module.training
    module.train()
    module.enable_gradient_checkpointing(
        lambda block, *arguments: checkpoint(block, *arguments, use_reentrant=False)
    )
    try:
        yield
    finally:
        module.disable_gradient_checkpointing()
        module.train(was)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
