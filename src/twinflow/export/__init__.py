"""What we write runs without us: stock diffusers folders."""

from twinflow.export.diffusers_folder import to_diffusers

__all__ = ["to_diffusers"]
