"""One simulated step: what is alive when, and which gradients are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from twinflow.planner.bridge import Subject
from twinflow.planner.inputs import name_pattern
from twinflow.planner.timeline import Stretch
from twinflow.planner.tracker import StorageTracker
from twinflow.training.offload import SMALLEST


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step's memory depends on, besides networks, objective and batch."""

    checkpointing: bool = False  # keep the inputs of blocks alone, and compute the rest again
    offload: bool = False  # and those on the host
    in_backward: bool = (
        False  # a block's weights are updated, and its gradients dropped, as soon as they are there
    )
    autocast: bool = False  # maths in bf16 over weights as they are stored


@dataclass(kw_only=True)
class Run:
    """The hooks of one simulated step with the networks ``subjects``.

    ``update_bytes``: passing memory of the optimiser while it updates these parameters together. ``silent``: trained
    parameters whose gradients no block waits for, by network and name.
    """

    mode: FakeTensorMode
    subjects: Sequence[Subject]
    options: StepOptions
    update_bytes: Callable[[Sequence[nn.Parameter]], int]
    silent: frozenset[tuple[str, str]] = frozenset()
    phase: str = ""
    rows: int = 0  # of all calls of transformers
    counts: dict[int, int] = field(default_factory=dict)  # repetitions, by the number of the segment
    gradient_changes: dict[int, int] = field(default_factory=dict)  # bytes, likewise
    seen: set[nn.Parameter] = field(default_factory=set)
    current: nn.Module | None = None  # block whose backward runs

    def __post_init__(self) -> None:
        self.tracker = StorageTracker()
        self.trained: list[nn.Parameter] = []
        self.repeats: dict[nn.Module, int] = {}
        self.block_of: dict[nn.Parameter, nn.Module] = {}
        self.subject_of: dict[nn.Parameter, Subject] = {}
        self.names: dict[nn.Parameter, str] = {}
        self._whole: set[nn.Parameter] = set()  # those that have a gradient now

    @contextmanager
    def watching(self) -> Iterator[StorageTracker]:
        with ExitStack() as stack:
            for subject in self.subjects:
                self._take(subject, stack)
            for block, count in self.repeats.items():
                stack.callback(block.register_forward_pre_hook(self._before(count)).remove)
                stack.callback(block.register_forward_hook(self._after(count)).remove)
            for parameter in self.trained:
                stack.callback(parameter.register_post_accumulate_grad_hook(self._accumulated).remove)
            yield self.tracker
            for parameter in self.trained:
                parameter.grad = None

    def _take(self, subject: Subject, stack: ExitStack) -> None:
        module, network = subject.module, subject.network
        self.tracker.ignore([*module.parameters(), *module.buffers()])
        ever = [p for p in module.parameters() if p.requires_grad]
        if subject.trained:
            self.trained += ever
        else:  # frozen for this step
            for parameter in ever:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
        if network is not None:
            self.repeats.update(network.repeats)
            self.block_of.update({p: block for block in network.repeats for p in block.parameters()})
            if self.options.checkpointing:
                stack.enter_context(checkpointed(module))
        names = network.names if network is not None else {p: n for n, p in module.named_parameters()}
        self.names.update(names)
        self.subject_of.update(dict.fromkeys(module.parameters(), subject))

    @contextmanager
    def inside(self, phase: str, subject: Subject) -> Iterator[None]:
        """Enter the world of fake tensors for a call of ``subject``, or its backward."""
        if subject.network is None and phase != "backward":
            phase = "module"
        self.phase, self.current = phase, None
        self.tracker.mark(f"{phase}|before")
        autocast = self.options.autocast and phase in ("forward", "gradient")
        with self.mode, self.tracker:
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                yield
                if autocast:
                    self.tracker.mark(f"{phase}|casts")  # left now, which frees the weights that it has cast
            self.tracker.mark("objective")
        self.phase = ""

    def keeping(self) -> Any:
        """What happens to the tensors that autograd keeps."""
        if not self.options.offload:
            return nullcontext()
        ours = {p.untyped_storage()._cdata for p in self.subject_of}

        def pack(tensor: Tensor) -> Any:
            if tensor.numel() < SMALLEST or tensor.untyped_storage()._cdata in ours:
                return tensor
            self.tracker.to_host(_size(tensor))
            there = torch.empty_like(tensor, device="meta")  # with the strides that it comes back with
            return tuple(tensor.shape), there.stride(), tensor.dtype, _size(tensor)

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            shape, strides, dtype, size = packed
            self.tracker.to_host(-size)
            return torch.empty_strided(shape, strides, dtype=dtype)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def stretches(self) -> tuple[Stretch, ...]:
        """What was seen, in order."""
        return tuple(
            Stretch(
                segment=segment,
                count=self.counts.get(number, 1),
                gradients=self.gradient_changes.get(number, 0),
                # A block that stands for others has made what they would have made, which is freed here with it.
                more=-sum(size * (self.counts.get(born, 1) - 1) for born, size in segment.freed.items())
                if segment.label.endswith("|casts")
                else 0,
            )
            for number, segment in enumerate(self.tracker.segments)
        )

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
        if parameter not in self._whole:
            self._whole.add(parameter)
            self._note(_size(parameter))
        subject = self.subject_of[parameter]
        if (
            not self.options.in_backward or subject.pending
        ):  # autograd adds up all calls' before it hands them on
            return
        block = self.block_of.get(parameter)
        unit = [p for p in self.trained if self.block_of.get(p) is block and block is not None] or [parameter]
        if all(p.grad is not None or (subject.name, self.names[p]) in self.silent for p in unit):
            self._update(unit)

    def _update(self, unit: Sequence[nn.Parameter]) -> None:
        passing = self.update_bytes(unit)
        self.tracker._change(passing)
        self.tracker._change(-passing)
        for p in unit:
            if p.grad is not None:
                self._whole.discard(p)
                self._note(-_size(p))
                p.grad = None

    def update_rest(self) -> None:
        """What the optimiser does after the backward: all, or what no block has done."""
        self._update(self.trained)

    def _note(self, change: int) -> None:
        number = len(self.tracker.segments) - 1
        self.gradient_changes[number] = self.gradient_changes.get(number, 0) + change

    def gradient_bytes(self) -> int:
        sizes = {p: self.repeats[block] for p, block in self.block_of.items()}
        return sum(_size(p) * sizes.get(p, 1) for p in self.trained)

    def dead(self) -> frozenset[tuple[str, str]]:
        """Without a gradient, though their like in other blocks have one: what they compute is discarded.

        What no block uses may be of an input that this call does not have.
        """
        live = {(self.subject_of[p].name, name_pattern(self.names[p])) for p in self.seen}
        rest = [(self.subject_of[p].name, self.names[p]) for p in self.trained if p not in self.seen]
        return frozenset((owner, name) for owner, name in rest if (owner, name_pattern(name)) in live)


@contextmanager
def checkpointed(module: Any) -> Iterator[None]:
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
