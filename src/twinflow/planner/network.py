"""A transformer of fake tensors: real modules with real shapes, and no data, however many parameters."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from twinflow.pipelines.blocks import block_lists, repeated_blocks
from twinflow.pipelines.freezing import freeze_parameters
from twinflow.pipelines.quantise import Kind
from twinflow.pipelines.target_time import attach_target_time
from twinflow.pipelines.time_path import TimePath, find_time_mlp
from twinflow.planner.adapters import Adapter, quantise

# Of a run of like blocks the first two and the last are kept as they are; the third stands for all the others.
_KEPT = 4
# Elements of a mask at the most, whose values are known beside its shape: they are computed with for real.
_KNOWN = 1 << 20


class _Mode(FakeTensorMode):
    """Copies of a fake tensor stay in its mode, and what is computed from masks and lengths alone is known."""

    def __deepcopy__(self, memo: Any) -> _Mode:
        return self

    def may_turn_const(self, t: Tensor) -> bool:
        """Whether ``t``, whose values were found beside its shape, keeps them.

        Of torch's own fake tensors single numbers do. Some transformers (Lumina2) read the lengths of prompts off a
        mask and cut by them: shapes that follow from values. So whole numbers made by ``torch.tensor`` keep theirs.
        """
        known = type(t) is Tensor and not t.is_floating_point() and t.device.type != "meta"
        return (known and t.numel() <= _KNOWN) or super().may_turn_const(t)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter of the whole network."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool
    block: int | None  # number of the block that it lies in
    stored: int | None = None  # bytes, where it is quantised

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize if self.stored is None else self.stored


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some weights together."""

    count: int  # elements
    bytes: int

    @classmethod
    def of(cls, weights: Iterable[Weight]) -> Part:
        listed = list(weights)
        return cls(count=sum(w.numel for w in listed), bytes=sum(w.nbytes for w in listed))


@dataclass(kw_only=True)
class FakeNetwork:
    """``module`` has a few blocks of each kind; ``repeats`` says how many each of them stands for."""

    module: Any
    mode: FakeTensorMode
    dtype: torch.dtype
    weights: list[Weight]  # of the whole network
    repeats: dict[nn.Module, int]
    buffers: int  # bytes, of the whole network: tables of positions, say
    blocks: int  # of the whole network
    names: dict[nn.Parameter, str] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        return self.module.config

    @classmethod
    def build(
        cls,
        kind: type,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        target_time: bool = True,
        freeze: tuple[str, ...] = (),
        adapter: Adapter | None = None,
        quantize: Kind | None = None,
    ) -> FakeNetwork:
        """The diffusers class ``kind`` with ``config``, with the target-time branch attached.

        ``freeze``: patterns of names that are not trained. With an ``adapter`` only that and the branch are
        trained, in fp32. ``quantize``: the base under it.
        """
        mode = _Mode()
        default = torch.get_default_dtype()
        with mode, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of copying tensors without data
            torch.set_default_dtype(dtype)
            try:
                module: Any = kind.from_config(dict(config))  # type: ignore[attr-defined]
                if target_time:
                    attach_target_time(module, path=_number_path(module))
            finally:
                torch.set_default_dtype(default)
            _keep_exact(module)
            stored = {} if quantize is None else quantise(module, quantize)
            if adapter is not None:
                adapter.attach(module)
                if target_time:
                    _train_branch(module)
            freeze_parameters(module, freeze)
        names = {p: name for name, p in module.named_parameters()}
        blocks = list(repeated_blocks(module))
        block_of = {p: number for number, block in enumerate(blocks) for p in block.parameters()}
        weights = [
            Weight(
                name=name,
                shape=tuple(p.shape),
                dtype=p.dtype,
                trained=p.requires_grad,
                block=block_of.get(p),
                stored=stored.get(p),
            )
            for p, name in names.items()
        ]
        return cls(
            module=module,
            mode=mode,
            dtype=dtype,
            weights=weights,
            buffers=sum(b.numel() * b.element_size() for b in module.buffers()),
            repeats=_shorten(module),
            blocks=len(blocks),
            names=names,
        )

    def twin(self) -> FakeNetwork:
        """A copy with parameters of its own."""
        with self.mode, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copy.deepcopy(self)

    def parameters(self, *, trained: bool | None = None) -> int:
        """How many, of the whole network."""
        return sum(w.numel for w in self.weights if trained is None or w.trained == trained)

    def groups(self) -> dict[str, int]:
        """Parameters by the part of the network that they belong to, the largest first."""
        found: dict[str, int] = {}
        for weight in self.weights:
            parts = [part for part in weight.name.split(".") if not part.isdigit()]
            key = ".".join(parts[:2]) if weight.block is not None else parts[0]
            found[key] = found.get(key, 0) + weight.numel
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def largest_block(self) -> Part:
        """The weights of the block that has most."""
        blocks: dict[int, list[Weight]] = {}
        for weight in self.weights:
            if weight.block is not None:
                blocks.setdefault(weight.block, []).append(weight)
        return max(map(Part.of, blocks.values()), key=lambda part: part.bytes, default=Part(count=0, bytes=0))

    def outside_blocks(self) -> Part:
        return Part.of([weight for weight in self.weights if weight.block is None])


def _keep_exact(module: nn.Module) -> None:
    """Put the parameters that diffusers loads in fp32 whatever dtype is asked for in fp32."""
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    for path, part in module.named_modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if set(f"{path}.{name}".split(".")) & set(kept) and parameter.dtype != torch.float32:
                _in_fp32(part, name, parameter)


def _number_path(module: Any) -> TimePath | None:
    """Where time enters, if the time MLP takes the time itself and not its sinusoid; found by trying."""
    mlp = find_time_mlp(module)
    try:
        with torch.no_grad(), quiet():
            module.get_submodule(mlp)(torch.zeros(1))
    except Exception:  # whatever a module raises on an input of the wrong size
        return None
    return TimePath(mlp=mlp, sinusoid=None, offset=0.0, slope=1.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from reporting fake operations that fail: they are tried on purpose."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was


def _train_branch(module: Any) -> None:
    """As :func:`twinflow.pipelines.target_time.train_branch`; fake weights can't change their dtype in place."""
    mlp = module.get_submodule(module._time_mlp_path)
    for part in mlp.target_embedder.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            _in_fp32(part, name, parameter, trained=True)
    if mlp.fake_embedding is not None:
        _in_fp32(mlp, "fake_embedding", mlp.fake_embedding, trained=True)


def _in_fp32(part: nn.Module, name: str, parameter: nn.Parameter, *, trained: bool = False) -> None:
    exact = nn.Parameter(torch.empty(parameter.shape), requires_grad=trained or parameter.requires_grad)
    setattr(part, name, exact)


def _shorten(module: nn.Module) -> dict[nn.Module, int]:
    """Take out of each run of like blocks all but a few, in place; how many each of these stands for."""
    repeats: dict[nn.Module, int] = {}
    for parent, name, blocks in block_lists(module):
        runs: list[list[nn.Module]] = []
        for block in blocks:
            if runs and _signature(runs[-1][0]) == _signature(block):
                runs[-1].append(block)
            else:
                runs.append([block])
        kept = []
        for run in runs:
            if len(run) > _KEPT:
                repeats[run[2]] = len(run) - _KEPT + 1
                run = [*run[: _KEPT - 1], run[-1]]
            kept += run
        setattr(parent, name, nn.ModuleList(kept))
        repeats.update({block: 1 for block in kept if block not in repeats})
    return repeats


def _signature(block: nn.Module) -> tuple[Any, ...]:
    shapes = tuple((n, tuple(p.shape), p.requires_grad) for n, p in block.named_parameters())
    return type(block), shapes
