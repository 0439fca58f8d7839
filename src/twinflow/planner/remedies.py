"""What to change so that a run fits: each change planned again, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from twinflow.errors import TwinflowError
from twinflow.pipelines.context import divisible
from twinflow.pipelines.quantise import Kind
from twinflow.planner.changes import (
    for_shards,
    in_one_piece,
    shardable,
    to_batch,
    to_context,
    to_optimizer,
    to_quantised,
    to_shards,
)
from twinflow.planner.plan import Plan
from twinflow.planner.planner import Planner
from twinflow.planner.setup import Setup
from twinflow.recipes.sections import Lora

_MOST_GPUS = 64


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of a recipe."""

    overrides: str  # as they are written behind the command
    costs: str  # what is given up
    change: Callable[[Setup], Setup]
    gpus: int | None = None  # how many then
    also: Callable[[Setup], str] = lambda setup: ""  # further overrides, which depend on what is set before

    def on(self, setup: Setup) -> Remedy:
        """It, where ``setup`` is what is set before."""
        more = self.also(setup)
        return replace(self, overrides=f"{self.overrides} {more}", also=lambda _: "") if more else self


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A remedy, and the plan with it and all before it."""

    remedy: Remedy
    plan: Plan


def find_remedies(planner: Planner, plan: Plan) -> list[Tried]:
    """Changes that together make ``plan`` fit; if nothing does, all that help. Those that the trainer would refuse
    are left out."""
    setup, gpus = plan.setup, plan.gpus
    tried: list[Tried] = []
    for remedy in _candidates(planner, plan):
        changed = remedy.change(setup)
        if changed == setup and remedy.gpus is None:
            continue
        new = _planned(planner, plan, changed, remedy.gpus or gpus)
        before = tried[-1].plan if tried else plan
        if new is None or (new.peak >= before.peak and new.needed >= before.needed):  # it does not help here
            continue
        tried.append(Tried(remedy=remedy, plan=new))
        setup, gpus = changed, remedy.gpus or gpus
        if new.fits:
            return _pruned(planner, plan, tried)
    return _named(plan, tried)


def _planned(planner: Planner, plan: Plan, setup: Setup, gpus: int) -> Plan | None:
    """None where this can't be trained so."""
    try:
        return planner.plan(setup, plan.gpu, gpus, machine=plan.machine)
    except TwinflowError:
        return None


def _pruned(planner: Planner, plan: Plan, tried: list[Tried]) -> list[Tried]:
    """The last change may have made former ones unnecessary: leave out what can be, the dearest first."""
    kept = list(tried)
    for entry in reversed(tried[:-1]):
        fewer = [other for other in kept if other is not entry]
        last = _planned(planner, plan, *_steps(plan, fewer)[-1])
        if last is not None and last.fits:
            kept = fewer
    plans = [_planned(planner, plan, *step) for step in _steps(plan, kept)]
    if None not in plans:
        kept = [replace(entry, plan=new) for entry, new in zip(kept, plans, strict=True) if new is not None]
    return _named(plan, kept)


def _steps(plan: Plan, tried: list[Tried]) -> list[tuple[Setup, int]]:
    """Setup and number of GPUs after each of ``tried``."""
    setup, gpus, found = plan.setup, plan.gpus, []
    for entry in tried:
        setup, gpus = entry.remedy.change(setup), entry.remedy.gpus or gpus
        found.append((setup, gpus))
    return found


def _named(plan: Plan, tried: list[Tried]) -> list[Tried]:
    """``tried`` with all overrides that they take one after another."""
    before = [plan.setup, *(entry.plan.setup for entry in tried)]
    return [
        replace(entry, remedy=entry.remedy.on(setup)) for entry, setup in zip(tried, before, strict=False)
    ]


def _candidates(planner: Planner, plan: Plan) -> Iterator[Remedy]:
    """From those that cost nothing to those that change what is trained, then more GPUs."""
    start = plan.setup
    full = start.lora is None
    if not start.cached:
        yield Remedy(
            overrides="data.cache=true",
            costs="nothing: text encoder and autoencoder leave the GPU after the encoding",
            change=lambda s: replace(s, cached=True, streamed=False),
            also=lambda s: "data.streaming=false" if s.streamed else "",
        )
    yield Remedy(
        overrides="train.gradient_checkpointing=true",
        costs="one more forward of each step's rows with gradient",
        change=lambda s: replace(s, checkpointing=True),
    )
    if full:
        yield Remedy(
            overrides="optimizer.in_backward=true optimizer.clip=null train.accumulate=1",
            costs="no clip by the norm of all gradients, no accumulation",
            change=lambda s: replace(s.with_optimizer(in_backward=True, clip=None), accumulate=1),
        )
    if full and start.dtype == "fp32" and start.optimizer.rounds_stochastically:
        yield Remedy(
            overrides="model.dtype=bf16 train.precision=fp32",
            costs="weights rounded to bf16, by chance",
            change=lambda s: replace(s, dtype="bf16", autocast=False),
        )
    elif full and start.dtype == "fp32":
        yield Remedy(
            overrides="model.dtype=bf16 train.precision=fp32 optimizer.name=adamw8bit",
            costs="weights rounded to bf16, by chance; moments in 8 bits",
            change=lambda s: replace(s.with_optimizer(name="adamw8bit"), dtype="bf16", autocast=False),
        )
    elif start.dtype == "fp32":
        yield Remedy(
            overrides="model.dtype=bf16 train.precision=fp32",
            costs="the frozen base is rounded to bf16",
            change=lambda s: replace(s, dtype="bf16", autocast=False),
        )
    yield Remedy(
        overrides="train.offload=true",
        costs="traffic to the host and back",
        change=lambda s: replace(s, offload=True) if s.checkpointing else s,
    )
    if start.ema.decay > 0 and (start.teacher != "ema" or start.ema.decay != start.ema.teacher_decay):
        yield Remedy(
            overrides="ema.on_host=true ema.every=10",
            costs="the average moves every tenth step, by way of the host",
            change=lambda s: replace(s, ema=s.ema.model_copy(update={"on_host": True, "every": 10})),
        )
    if not full:
        yield from _of_a_base(plan)
    if full:
        yield from (
            Remedy(
                overrides=f"optimizer.name={name}",
                costs=costs,
                change=to_optimizer(name),
            )
            for name, costs in (
                ("adamw8bit", "moments in 8 bits"),
                ("adamw4bit", "moments in 4 bits"),
                ("adafactor", "no momentum, and second moments by rows and columns"),
            )
        )
    if start.teacher == "ema" or start.ema.decay > 0:
        taught = start.teacher == "ema"
        yield Remedy(
            overrides="ema.decay=0 objective.teacher=self" if taught else "ema.decay=0",
            costs=f"no average of the weights{'; the teacher is the student itself' if taught else ''}",
            change=lambda s: replace(
                s,
                ema=s.ema.model_copy(update={"decay": 0.0, "on_host": False}),
                teacher="self" if taught else s.teacher,
            ),
            also=lambda s: "ema.on_host=false" if s.ema.on_host else "",
        )
    modulation = tuple(f"{name}.*" for name in planner.layers(start)[False]) if full else ()
    if modulation:
        patterns = tuple(dict.fromkeys([*start.freeze, *modulation]))
        listed = ", ".join(f'"{name}"' for name in patterns)
        yield Remedy(
            overrides=f"model.freeze='[{listed}]'",
            costs="the modulation by the time keeps its weights",
            change=lambda s: replace(s, freeze=patterns),
        )
    batch = start.batch
    while batch > 1:
        batch //= 2
        yield Remedy(
            overrides=f"train.batch={batch}",
            costs="fewer rows a step",
            change=to_batch(batch),
        )
    heads = planner.backbone.config.get("num_attention_heads")
    context = start.parallel.context
    while divisible(planner.backbone.kind) and heads and plan.gpus % (context * 2) == 0:
        context *= 2
        if heads % context == 0:
            yield Remedy(
                overrides=f"parallel.context={context}",
                costs="fewer rows a step, and traffic in each attention",
                change=to_context(context),
            )
    gpus = plan.gpus
    while full and gpus < _MOST_GPUS:
        gpus *= 2
        yield Remedy(
            overrides=f"--gpus {gpus}",
            costs="more GPUs",
            change=shardable,
            gpus=gpus,
            also=for_shards,
        )
    if full:
        yield Remedy(
            overrides="model.train=lora",
            costs="adapters of rank 16 instead of all weights",
            change=lambda s: replace(s, lora=Lora(), freeze=()),
            also=lambda s: "model.freeze=[]" if s.freeze else "",
        )
        yield from _of_a_base(plan)


def _of_a_base(plan: Plan) -> Iterator[Remedy]:
    """The frozen base under a LoRA divided among the GPUs that there are, or in fewer bits, which can't be divided."""
    if plan.gpus > 1:
        yield Remedy(
            overrides="parallel.mode=shard",
            costs="traffic: blocks of the frozen base are put together from all GPUs",
            change=to_shards,
        )
    for kind, costs in _KINDS.items():
        yield Remedy(
            overrides=f"model.quantize={kind}", costs=costs, change=to_quantised(kind), also=in_one_piece
        )


_KINDS: dict[Kind, str] = {"int8": "the frozen base in 8 bits", "nf4": "the frozen base in 4 bits"}
