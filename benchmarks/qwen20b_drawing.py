"""One picture by the real-sized Qwen-Image in one call, for ``gpu_20b.py``: all layers, slim export, decoder."""

from __future__ import annotations

from typing import Any

import torch
from qwen20b import Case, Clock, QwenField, build, start_anew
from torch import Tensor, nn

from twinflow.pipelines.slim import replace_by_constants


@torch.no_grad()
def latency(options: Case, device: torch.device, *, calls: int = 10) -> dict[str, Any]:
    """Seconds of the one call that draws a picture, at t = 1 and r = 0, without and with the layers that a slim export
    leaves out, and of the decoder; of one picture. The prompt's encoder is not there."""
    clock = Clock(device)

    def seconds(work: Any) -> float:
        took = []
        for _ in range(calls + 2):
            start = clock.now()
            work()
            took.append(clock.now() - start)
        return sorted(took[2:])[calls // 2]

    found = _drawing(options, device, clock, seconds)
    decoder, z = autoencoder(options, found["size"], device)
    found["decoder_seconds"] = seconds(lambda: decoder.decode(z, return_dict=False))
    return found


def _drawing(options: Case, device: torch.device, clock: Clock, seconds: Any) -> dict[str, Any]:
    start_anew(device)
    size, side = options.pixels, options.pixels // 16
    transformer = build(options.config, device).eval()
    # Of a new network all modulations and the last layer say nothing: as a trained one, it does something.
    for parameter in transformer.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    field = QwenField(transformer, side=side, clock=clock)
    x = torch.randn(1, side * side, transformer.config.in_channels, device=device)
    cond = torch.randn(
        1, options.text, transformer.config.joint_attention_dim, device=device, dtype=torch.bfloat16
    )
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)

    def draw() -> Tensor:
        return field(x, one, zero, cond)

    found: dict[str, Any] = {"size": size, "parameters": sum(p.numel() for p in transformer.parameters())}
    found["seconds"], stock = seconds(draw), draw()
    replace_by_constants(transformer, constants(transformer, draw))
    found["slim_parameters"] = sum(p.numel() for p in transformer.parameters())
    found["slim_seconds"], slim = seconds(draw), draw()
    found["slim_difference"] = float((slim - stock).abs().max() / stock.abs().max())
    return found


def constants(transformer: Any, draw: Any) -> dict[str, Tensor]:
    """Outputs of the Linears that see one row a picture, and so the time alone; the time MLP's own stay."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            if output.numel() == output.shape[-1]:
                found[name] = output.reshape(1, -1).clone()

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("time_text_embed")
    ]
    draw()
    for handle in handles:
        handle.remove()
    return found


def autoencoder(options: Case, size: int, device: torch.device) -> tuple[Any, Tensor]:
    """That of Qwen-Image with random weights, and latents (1, C, 1, H, W) of one picture."""
    from diffusers import AutoencoderKLQwenImage

    small = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1} if options.tiny else {}
    with torch.device(device):
        made: Any = AutoencoderKLQwenImage(**small)
        made.to(torch.bfloat16).eval()
        z = torch.randn(1, made.config.z_dim, 1, size // 8, size // 8, dtype=torch.bfloat16)
    return made, z
