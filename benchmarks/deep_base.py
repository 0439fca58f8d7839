"""The embedded pipeline with a new, random transformer of other sizes, to train a base that is wide, deep, or neither.

    python benchmarks/deep_base.py runs/start --layers 4 --width 160
    twinflow train recipes/shapeworld_base.yaml model.path=runs/start
    twinflow train recipes/shapeworld_twinflow.yaml model.path=runs/shapeworld_base/pipeline

Its sizes are those of the embedded transformer if nothing else is said; 4 layers of 160 have as many parameters.
With ``--channels 16`` its autoencoder is new and random too, with latents of so many channels where the embedded one
has 4, and is trained first, in two runs; the base then has model.path=runs/shapeworld_vae/pipeline.

    twinflow train recipes/shapeworld_vae_start.yaml model.path=runs/start
    twinflow train recipes/shapeworld_vae.yaml

``--attention`` gives the new autoencoder a block of attention in its middle, as the embedded one has, which bears more
noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SD3Transformer2DModel

from twinflow.assets import locate
from twinflow.pipelines.new import start_as_zero


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--width", type=int, default=96, help="a multiple of 32, the width of a head")
    parser.add_argument("--channels", type=int, help="of the latents of a new autoencoder")
    parser.add_argument("--attention", action="store_true", help="in the middle of the new autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.attention and args.channels is None:
        parser.error("--attention is for a new autoencoder: say --channels too")
    count = make(
        args.output,
        layers=args.layers,
        width=args.width,
        channels=args.channels,
        attention=args.attention,
        seed=args.seed,
    )
    print(f"{args.output}: {count / 1e6:.2f} M parameters, {args.layers} layers of {args.width}")


def make(
    output: Path,
    *,
    layers: int,
    width: int,
    channels: int | None = None,
    attention: bool = False,
    seed: int = 0,
) -> int:
    """Write the pipeline; the number of its transformer's parameters."""
    pipe = DiffusionPipeline.from_pretrained(locate("shapeworld-tiny"))
    head = pipe.transformer.config.attention_head_dim
    torch.manual_seed(seed)
    if channels is not None:
        sizes = {"latent_channels": channels, "scaling_factor": 1.0, "shift_factor": 0.0}
        sizes["mid_block_add_attention"] = attention
        pipe.vae = AutoencoderKL.from_config(pipe.vae.config, **sizes).eval()
    latents = pipe.vae.config.latent_channels
    made = SD3Transformer2DModel.from_config(
        pipe.transformer.config,
        in_channels=latents,
        out_channels=latents,
        num_layers=layers,
        num_attention_heads=width // head,
        caption_projection_dim=width,
    )
    start_as_zero(made)
    pipe.transformer = made.eval()
    pipe.save_pretrained(output)
    return made.num_parameters()


if __name__ == "__main__":
    main()
