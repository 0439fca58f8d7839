"""What a GPU has: memory and, at best, speed. Numbers are the vendors', dense, for the form factor named."""

from __future__ import annotations

from dataclasses import dataclass

from twinflow.errors import TwinflowError
from twinflow.recipes.messages import unknown_key

GiB = 2**30
_BEST = 0.8  # of the vendor's peak, which the best matrix products reach


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    memory: int  # bytes that torch sees
    bf16: float  # TFLOP/s
    fp32: float  # TFLOP/s without tensor cores, as torch computes fp32 by default
    bandwidth: float  # TB/s

    @property
    def margin(self) -> int:
        """For the CUDA context and libraries (1 GiB), and the allocator's gaps (3 %). Not measured here."""
        return GiB + int(0.03 * self.memory)

    def seconds(self, flops: float, *, half: bool) -> float:
        """At the least."""
        return flops / ((self.bf16 if half else self.fp32) * 1e12 * _BEST)


def _gpu(name: str, gib: float, bf16: float, fp32: float, bandwidth: float) -> Gpu:
    return Gpu(name=name, memory=int(gib * GiB), bf16=bf16, fp32=fp32, bandwidth=bandwidth)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200-180", 178.0, 2250, 75, 8.0),
        _gpu("h200-141", 139.8, 989, 67, 4.8),
        _gpu("h100-80", 79.2, 989, 67, 3.35),
        _gpu("a100-80", 79.2, 312, 19.5, 2.04),
        _gpu("a100-40", 39.4, 312, 19.5, 1.56),
        _gpu("l40s-48", 44.5, 362, 91.6, 0.86),
        _gpu("a6000-48", 47.5, 155, 38.7, 0.77),
        _gpu("rtx4090-24", 23.5, 165, 82.6, 1.01),
        _gpu("rtx3090-24", 23.5, 71, 35.6, 0.94),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU ``name``; :class:`TwinflowError` with those that are known."""
    if name not in GPUS:
        raise TwinflowError(unknown_key(name, GPUS, where="--gpu", noun="GPU"))
    return GPUS[name]
