"""Whether two runs wrote the same."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def assert_same_tensors(one: Path, other: Path) -> None:
    """Bit for bit; the order of a file's metadata is anything."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys(), one
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), (one, name)
