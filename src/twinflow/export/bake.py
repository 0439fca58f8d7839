"""Fold the target-time branch, at r = 0, into the stock time MLP, exactly on the times of a schedule.

The stock MLP gives ``e(t) = W h(t) + b`` with ``h`` the input of its last Linear; the branch adds
``g(t) = t · target_embedder(0)``. A few-step sampler only ever asks for K times, so the edit of smallest norm
with ``dW h(t_k) = g(t_k)`` for all k is exact where it is used, and needs no bias.

``h(t_k)`` is what the *stock* pipeline makes of the time, which in half precision some round on the way: Qwen-Image's
sees 753.9 for 750. The edit leads from there to what the branch was trained at, the exact time, so that the rounding
is repaired too. Where tokens of a source picture keep time 0, or may, since every token has a time of its own, a row
h(0) -> 0 keeps them as they are. The rank is one where no time is rounded, since all g(t) are parallel, and at most K.
One more is the mark by which such weights are recognised (``pipelines.mark``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.export.stock import StockModule, adapter_factors, run_steps
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.any_step import AnyStepNetwork, AnyStepPipeline
from twinflow.pipelines.mark import LARGEST, direction

# Relative residual of the edit on the schedule; fp64 least squares leaves about 1e-15. Where the weights
# are stored in less, what is stored is right to their precision.
TOLERANCE = 1e-5
# Features that differ by more than this share are of another time; by less, of another order of sums. One unit in the
# last place of a time of 833 in fp32 changes them by 1e-5.
ROUNDED = 1e-6
PROMPT = "a"  # times do not depend on it


@dataclass(frozen=True, kw_only=True)
class Bake:
    """``weight += up @ down`` of the Linear ``layer`` folds the branch into a stock transformer."""

    layer: str  # path of the time MLP's last Linear
    down: Tensor  # (K or fewer + 1, hidden) fp64
    up: Tensor  # (channels, K or fewer + 1) fp64
    features: Tensor  # (R, hidden) fp64: what the layer gets on the schedule
    targets: Tensor  # (R, channels) fp64: what it then has to add
    times: tuple[float, ...]

    @property
    def residual(self) -> float:
        """On the schedule, relative to the branch."""
        off = self.features @ (self.up @ self.down).T - self.targets
        return float(off.norm() / self.targets.norm().clamp_min(1e-30))

    def check(self) -> Bake:
        if not self.residual <= TOLERANCE:
            raise TwinflowError(f"{self._problem}: relative residual {self.residual:.1e} > {TOLERANCE:.0e}")
        return self

    @torch.no_grad()
    def apply(self, transformer: StockModule) -> float:
        """Edit the weight in place; returns the residual of what is stored, relative to the layer's output."""
        weight = transformer.get_submodule(self.layer).weight
        stored = (weight.double() + self.up @ self.down).to(weight.dtype)
        off = self.features @ (stored.double() - weight.double()).T - self.targets
        whole = self.targets.norm() + (self.features @ weight.double().T).norm()
        residual, allowed = float(off.norm() / whole), max(TOLERANCE, torch.finfo(weight.dtype).eps)
        if not residual <= allowed:
            raise TwinflowError(
                f"{self._problem} in {weight.dtype}: relative residual {residual:.1e} > {allowed:.0e}"
            )
        weight.copy_(stored)
        return max(residual, self.residual)

    @property
    def _problem(self) -> str:
        steps = f"{len(self.times)} step{'s' if len(self.times) > 1 else ''}"
        return (
            f"the target-time branch can't be folded into {self.layer} for {steps}: the network can't tell their "
            "times apart, export for fewer steps"
        )


@dataclass
class _Step:
    """What the time MLP did at one time, a row for each of its rows."""

    hidden: Tensor  # (R, hidden) input of its last Linear
    noisy: Tensor | None = None  # (R,) share of the branch's signal that the row gets, 1 or 0


@torch.no_grad()
def bake_target_time(
    pipe: AnyStepPipeline, stock: Any, *, nfe: int, times: Sequence[float], exact_times: bool = False
) -> Bake:
    """The edit that makes ``stock.transformer``, a copy of the network with its branch still attached, the jump to
    data at ``times`` as ``stock`` with its scheduler asks for them. The branch is taken off on the way; adapters may
    still be on. ``exact_times``: for programs other than diffusers, which do not round the time as its pipelines do.

    :class:`TwinflowError` if the branch can't be folded, with the residual.
    """
    transformer = stock.transformer
    mlp_path = transformer._time_mlp_path
    per_token = pipe.adapter.wiring.time_path.rows == "tokens"
    layer, last = _last_linear(transformer, mlp_path)
    branch = transformer.get_submodule(mlp_path).target_embedder
    # As precise as the network computes it: in fp32 to the last bit what training saw.
    precise = torch.promote_types(last.weight.dtype, torch.float32)
    signal = copy.deepcopy(branch).to(precise)(torch.zeros(1, device=pipe.device)).double()[0]  # (channels,)
    trained = _trained_steps(pipe, transformer, last, times)
    clean = _trained_steps(pipe, transformer, last, [0.0] if per_token else [])
    tt.detach_target_time(transformer)
    asked = _asked_steps(pipe, stock, last, nfe=nfe, times=times)
    weight = _weight_of(transformer.get_submodule(layer))
    features, targets = [], []
    for time, exact, given in zip(times, trained, asked, strict=True):
        if exact.hidden.shape != given.hidden.shape:
            raise TwinflowError(
                f"{type(stock).__name__} asks its time MLP for {len(given.hidden)} rows a step and the field for "
                f"{len(exact.hidden)}: the branch can't be folded into it"
            )
        assert exact.noisy is not None
        if exact_times:
            given = exact
        off = (exact.hidden - given.hidden).double()
        rounded = off.norm(dim=1, keepdim=True) > ROUNDED * given.hidden.double().norm(dim=1, keepdim=True)
        repair = torch.where(rounded, off, 0) @ weight.T
        features.append(given.hidden.double())
        gate = float(torch.tensor(time, dtype=torch.float32))  # t - r, as the field has it
        targets.append(repair + gate * exact.noisy.double()[:, None] * signal)
    for step in clean:  # at time 0 the gate is closed
        features.append(step.hidden.double())
        targets.append(torch.zeros_like(targets[0][:1]).expand(len(step.hidden), -1))
    rows, goals = torch.cat(features), torch.cat(targets)
    # What folds nothing is the field still.
    marked = weight if signal.any() else None
    return _solve(layer, rows, goals, marked=marked, times=times).check()


def _solve(
    layer: str, features: Tensor, targets: Tensor, *, marked: Tensor | None, times: Sequence[float]
) -> Bake:
    """Minimum norm, with the rows (R, hidden) -> (R, channels) that are the same asked for once. ``marked``: the
    weight (channels, hidden) that is edited, if it gets a mark."""
    kept: list[int] = []
    for row in range(len(features)):
        near = (features[row] - features[kept]).norm(dim=1) < 1e-6 * features[row].norm()
        alike = (targets[row] == targets[kept]).all(1)
        if not bool((near & alike).any()):
            kept.append(row)
    asked, wanted = features[kept], targets[kept]
    # A narrow layer, of tests, has no room for it.
    if marked is not None and len(times) <= LARGEST and 2 * len(kept) < marked.shape[1]:
        mark = direction(len(times), marked.shape[1]).to(marked)[None]
        asked, wanted = torch.cat([asked, mark]), torch.cat([wanted, -mark @ marked.T])
    # Parallel targets, as those of an unrounded schedule are, need one factor together.
    left, sizes, right = torch.linalg.svd(wanted, full_matrices=False)
    rank = max(1, int((sizes > 1e-12 * sizes[0]).sum()))
    return Bake(
        layer=layer,
        down=left[:, :rank].T @ torch.linalg.pinv(asked).T,
        up=right[:rank].T * sizes[:rank],
        features=features,
        targets=targets,
        times=tuple(times),
    )


def _last_linear(transformer: StockModule, mlp_path: str) -> tuple[str, nn.Linear]:
    """The last Linear of the stock time MLP, by its stock name; not one of the branch, nor of an adapter on it."""
    found = [
        (f"{mlp_path}.{name}", module)
        for name, module in transformer.get_submodule(mlp_path).named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("target_embedder") and ".lora_" not in name
    ]
    path, last = found[-1]
    path = path.removesuffix(".base_layer")
    if type(last) is not nn.Linear or not last.weight.is_floating_point():
        raise TwinflowError(
            f"{path} is a {type(last).__name__} of {last.weight.dtype}: the target time can't be folded into "
            "quantised weights; keep the time MLP unquantised (modules_to_not_convert)"
        )
    return path, last


def _weight_of(layer: Any) -> Tensor:
    """fp64 weight of a Linear, with that of an adapter on it."""
    if isinstance(layer, nn.Linear):
        return layer.weight.double()
    down, up = adapter_factors(layer)
    return layer.get_base_layer().weight.double() + up @ down


def _trained_steps(
    pipe: AnyStepPipeline, transformer: StockModule, last: nn.Linear, times: Sequence[float]
) -> list[_Step]:
    """The field's own calls at ``times``, r = 0: exact times, and which rows see the branch."""
    network = AnyStepNetwork(transformer, pipe.adapter)
    mlp = transformer.get_submodule(transformer._time_mlp_path)
    cond = pipe.encode_prompts([PROMPT])
    blank = torch.zeros(1, *pipe.latent_shape, device=pipe.device)
    steps: list[_Step] = []
    for time in times:
        inputs: list[Tensor] = []
        shares: list[Tensor] = []

        def on_mlp(module: Any, args: tuple, output: Tensor, shares: list[Tensor] = shares) -> None:
            ones = torch.ones(1, output.shape[-1], device=output.device)
            shares.append(module._to_rows(ones, args[0], output).reshape(-1, output.shape[-1])[:, 0])

        handles = [_record(last, inputs), mlp.register_forward_hook(on_mlp)]
        try:
            t = torch.full((1,), time, device=pipe.device)
            network(blank, t, torch.zeros_like(t), cond)
        finally:
            for handle in handles:
                handle.remove()
        steps.append(_Step(hidden=torch.cat(inputs), noisy=torch.cat(shares)))
    return steps


def _asked_steps(
    pipe: AnyStepPipeline, stock: Any, last: nn.Linear, *, nfe: int, times: Sequence[float]
) -> list[_Step]:
    """The stock pipeline's calls in a run of ``nfe`` steps."""
    inputs: list[Tensor] = []
    handle = _record(last, inputs)
    try:
        run_steps(pipe, stock, PROMPT, nfe=nfe)
    finally:
        handle.remove()
    sigmas = stock.scheduler.sigmas[:-1].double().tolist()
    if len(sigmas) != len(times) or max(abs(a - b) for a, b in zip(sigmas, times, strict=True)) > 1e-4:
        raise TwinflowError(
            f"{type(stock).__name__} with the few-step scheduler steps at {sigmas}, the sampler at {list(times)}: "
            "this pipeline chooses times of its own, and can't be exported"
        )
    calls = len(inputs) // nfe
    if calls * nfe != len(inputs) or not calls:
        raise TwinflowError(
            f"{type(stock).__name__} calls its time MLP {len(inputs)} times in {nfe} steps: it can't be exported"
        )
    return [_Step(hidden=torch.cat(inputs[i * calls : (i + 1) * calls])) for i in range(nfe)]


def _record(last: nn.Linear, inputs: list[Tensor]) -> Any:
    def on_last(module: nn.Module, args: tuple) -> None:
        inputs.append(args[0].detach().reshape(-1, args[0].shape[-1]).clone())

    return last.register_forward_pre_hook(on_last)
