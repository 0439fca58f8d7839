"""Networks of fake tensors as an objective sees networks: real tensors of its own in and out.

What is real on the outside is as large as it would be; what runs inside has shapes and no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from twinflow.pipelines.features import TAPS, tapped, trunk
from twinflow.planner.inputs import Call
from twinflow.planner.network import FakeNetwork

if TYPE_CHECKING:
    from twinflow.planner.run import Run

Work = Callable[[Sequence[bool]], list[Tensor]]  # given which inputs want a gradient, what the network makes


@dataclass(eq=False, kw_only=True)
class Subject:
    """A network in a step: a transformer, or a module that was built for the objective."""

    name: str
    module: nn.Module
    trained: bool
    network: FakeNetwork | None = None  # None: a new module
    call: Call | None = None
    pending: int = 0  # of its calls with gradient, those whose backward has not begun


class FakeField:
    """A transformer as a field."""

    def __init__(self, run: Run, subject: Subject) -> None:
        self.run, self.subject = run, subject

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
        call, rows = _call(self.subject), x_t.shape[0]
        self.run.rows += rows
        work: Work = lambda wanted: [call(rows, gradient=wanted[0])]  # noqa: E731
        return through(self.run, self.subject, work, lambda _: torch.zeros_like(x_t), x_t)[0]

    def features(self, x_t: Tensor, t: Tensor, cond: Any) -> list[Tensor]:
        rows = x_t.shape[0]
        self.run.rows += rows
        work: Work = lambda wanted: features(self.subject, rows, gradient=wanted[0])  # noqa: E731
        return list(through(self.run, self.subject, work, _shell, x_t))


class FakeModule:
    """A new module, such as a discriminator."""

    def __init__(self, run: Run, subject: Subject) -> None:
        self.run, self.subject = run, subject

    def __call__(self, *arguments: Any) -> Tensor:
        leaves, form = tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def work(wanted: Sequence[bool]) -> list[Tensor]:
            fakes = iter(
                _inside(tensor).requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)
            )
            given = [next(fakes) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return [self.subject.module(*tree_unflatten(given, form))]

        return through(self.run, self.subject, work, _real, *tensors)[0]


def features(subject: Subject, rows: int, *, gradient: bool = False) -> list[Tensor]:
    """What ``subject`` shows a discriminator; inside its fake mode.

    Blocks that stand for others are not tapped: what is kept of one would count for each that it stands for. Where
    they would have to be, that before them is, which shows the same.
    """
    network, call = subject.network, _call(subject)
    assert network is not None
    kept = trunk(network.module)
    before = dict(zip(kept[1:], kept, strict=False))
    places = [block for block in kept for _ in range(network.repeats.get(block, 1))]
    count = min(TAPS, len(places))
    chosen = [places[len(places) * (i + 1) // count - 1] for i in range(count)]
    with tapped(
        network.module,
        blocks=[before[block] if network.repeats.get(block, 1) > 1 else block for block in chosen],
    ) as found:
        call(rows, gradient=gradient)
    return found


def through(
    run: Run, subject: Subject, work: Work, stand_in: Callable[[Tensor], Tensor], *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Do ``work`` in the fake world; for each of its results a tensor of this one, by ``stand_in``."""
    if torch.is_grad_enabled() and (subject.trained or any(x.requires_grad for x in inputs)):
        anchor = torch.zeros((), requires_grad=True)
        return _Bridge.apply(run, subject, work, stand_in, anchor, *inputs)  # type: ignore[no-any-return]
    with torch.no_grad(), run.inside("forward", subject):
        outputs = work([False] * len(inputs))
    return tuple(stand_in(output) for output in outputs)


class _Bridge(torch.autograd.Function):
    """Lets the real loss's backward run the backward of the fake network."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, run: Run, subject: Subject, work: Work, stand_in: Any, anchor: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.subject = run, subject
        ctx.inputs = [(x.shape, x.dtype) for x in inputs]
        subject.pending += 1
        with torch.enable_grad(), run.inside("gradient", subject), run.keeping():
            outputs = work(ctx.needs_input_grad[5:])
            ctx.end = _End.apply(*outputs)
        return tuple(stand_in(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        run, end, ctx.end = ctx.run, ctx.end, None
        ctx.subject.pending -= 1
        for gradient in gradients:
            if gradient is not None:
                run.tracker.forget(gradient)  # that of the fake output takes its place
        with torch.enable_grad(), run.inside("backward", ctx.subject):
            end.backward()
            del end
        wanted = zip(ctx.inputs, ctx.needs_input_grad[5:], strict=True)
        return (None,) * 5 + tuple(
            torch.empty_strided(shape, [0] * len(shape), dtype=dtype) if want else None
            for (shape, dtype), want in wanted
        )


class _End(torch.autograd.Function):
    """Ends a graph in a number, so that nothing but the graph holds its outputs; their gradients begin here."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:  # type: ignore[override]
        ctx.outputs = [(output.shape, output.dtype) for output in outputs]
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty(shape, dtype=dtype) for shape, dtype in ctx.outputs)


def _shell(fake: Tensor) -> Tensor:
    """A tensor of the same shape without its memory, that keeps ``fake`` alive as long as it lives."""
    shell = torch.empty_strided(fake.shape, [0] * fake.dim(), dtype=fake.dtype)
    shell._fake = fake.detach()  # type: ignore[attr-defined]
    return shell


def _inside(tensor: Tensor) -> Tensor:
    """Its counterpart in the fake world."""
    fake = getattr(tensor, "_fake", None)
    return torch.empty(tensor.shape, dtype=tensor.dtype) if fake is None else fake.detach()


def _real(fake: Tensor) -> Tensor:
    return torch.zeros(fake.shape, dtype=fake.dtype)


def _call(subject: Subject) -> Call:
    assert subject.call is not None, f"{subject.name} is no transformer"
    return subject.call
