"""Fold the target-time branch, at r = 0, into the stock time MLP, exactly on the times of a schedule.

The stock MLP gives ``e(t) = W h(t) + b`` with ``h`` the input of its last Linear; the branch adds
``g(t) = t · target_embedder(0)``. A few-step sampler only ever asks for K times, so the edit of smallest norm
with ``dW h(t_k) = g(t_k)`` for all k is exact where it is used. It has rank one, since all g(t) are parallel,
and needs no bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twinflow.pipelines import target_time as tt
from twinflow.pipelines.any_step import AnyStepPipeline

# Relative residual of the edit on the schedule; fp64 least squares leaves about 1e-15, and the weights are
# stored in fp32 at best.
TOLERANCE = 1e-5


@torch.no_grad()
def bake_target_time(pipe: AnyStepPipeline, times: Sequence[float]) -> None:
    """Fold the branch at r = 0 into the transformer of ``pipe``, in place, for ``times`` in (0, 1].

    Afterwards the transformer is stock: class, parameter names and all. RuntimeError if the times' features
    are too alike for an exact edit.
    """
    transformer = pipe.pipe.transformer
    mlp = transformer.get_submodule(transformer._time_mlp_path)
    stock_linears = [
        m for n, m in mlp.named_modules() if isinstance(m, nn.Linear) and "target_embedder" not in n
    ]
    last = stock_linears[-1]
    t = torch.tensor(list(times), dtype=torch.float32, device=pipe.device)
    features = _features(pipe, last, t)  # (K, hidden)
    zero = torch.zeros_like(t)
    branch = t[:, None] * mlp.target_embedder(zero).float()  # (K, channels)
    edit = branch.double().T @ torch.linalg.pinv(features.double()).T  # minimum norm
    error = (features.double() @ edit.T - branch.double()).norm() / branch.double().norm().clamp_min(1e-30)
    if error > TOLERANCE:
        raise RuntimeError(f"the times {list(times)} are too close to fold the branch: residual {error:.1e}")
    last.weight.copy_((last.weight.double() + edit).to(last.weight.dtype))
    tt.detach_target_time(transformer)


def _features(pipe: AnyStepPipeline, last: nn.Linear, t: Tensor) -> Tensor:
    """Inputs of ``last`` at the times ``t``, recorded while the stock network runs on blank latents."""
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    try:
        cond = pipe.encode_prompts([""]).take(torch.zeros(len(t), dtype=torch.int64))
        blank = torch.zeros(len(t), *pipe.latent_shape, dtype=last.weight.dtype, device=t.device)
        pipe.adapter.predict(pipe.pipe.transformer, blank, t, cond)
    finally:
        handle.remove()
    return seen[0].float()
