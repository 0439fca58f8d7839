"""What we write runs without us: stock diffusers folders, LoRA files, single files. The slim folder is ours."""

from twinflow.export.diffusers_folder import to_diffusers
from twinflow.export.lora import LoraExport, to_lora
from twinflow.export.single_file import to_single_file
from twinflow.export.slim import SlimExport, to_slim

__all__ = ["LoraExport", "SlimExport", "to_diffusers", "to_lora", "to_single_file", "to_slim"]
