"""The Inception-v3 whose features FID is taken on, for weights that the user brings.

The network is that of arXiv 1512.00567 with batch normalisation, in the names of torchvision's ``inception_v3``, which
the published conversion of the 2015 TensorFlow graph uses too (``pt_inception-2015-12-05``, 1008 classes). That graph
differs from the paper's network, and from torchvision's, in how it pools:

1. averages over 3 x 3 in the blocks 5b, 5c and 5d leave out what lies beyond the edge;
2. so do those in 6b to 6e and in 7b;
3. the last block, 7c, takes the maximum where 7b takes the average.

It also resizes by itself: bilinear, from the corner at the top left and without smoothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinflow.errors import TwinflowError
from twinflow.evaluation.fingerprint import fingerprint
from twinflow.evaluation.ranks import device
from twinflow.evaluation.weights_file import read_weights

SIDE = 299  # pixels
CLASSES = 1008  # of the graph of 2015; torchvision's ImageNet network has 1000, and auxiliary logits
DROPPED = {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}  # beyond the features


class Convolution(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, channels: int, width: int, kernel: tuple[int, int], *, stride: int, pad: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, written as text: steps with commas between them, ``name width kernel`` or a pooling.

    Two steps with "|" between them both go on from the step before, and their channels are put together. A step with
    "/2" halves the picture and sees nothing beyond its edge; all others keep its size.
    """

    def __init__(self, channels: int, *branches: str) -> None:
        super().__init__()
        self.branches: list[list[list[str]]] = []  # of each branch the steps, of each step its parallel parts
        self.width = 0
        for branch in branches:
            steps = [[part.strip() for part in step.split("|")] for step in branch.split(",")]
            width = channels
            for step in steps:
                width = sum(self._add(part, width) for part in step)
            self.branches.append([[part.split()[0] for part in step] for step in steps])
            self.width += width

    def _add(self, part: str, channels: int) -> int:
        """Make the convolution of one part, if it is one; the channels that leave it."""
        if part in POOLS:
            return channels
        name, width, size = part.split()
        size, _, stride = size.partition("/")
        height, _, across = size.partition("x")
        kernel = (int(height), int(across))
        self.add_module(
            name, Convolution(channels, int(width), kernel, stride=int(stride or 1), pad=not stride)
        )
        return int(width)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for steps in self.branches:
            y = x
            for step in steps:
                y = torch.cat([self._apply_part(part, y) for part in step], dim=1)
            found.append(y)
        return torch.cat(found, dim=1)

    def _apply_part(self, part: str, x: Tensor) -> Tensor:
        return POOLS[part](x) if part in POOLS else self.get_submodule(part)(x)


POOLS = {
    "average": lambda x: functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "max": lambda x: functional.max_pool2d(x, 3, stride=1, padding=1),
    "max/2": lambda x: functional.max_pool2d(x, 3, stride=2),
}
_DOUBLE = "branch3x3dbl_1 64 1x1, branch3x3dbl_2 96 3x3, branch3x3dbl_3 96 3x3"


def _fives(pooled: int) -> tuple[str, ...]:
    """35 x 35."""
    return (
        "branch1x1 64 1x1",
        "branch5x5_1 48 1x1, branch5x5_2 64 5x5",
        _DOUBLE,
        f"average, branch_pool {pooled} 1x1",
    )


def _sevens(n: int) -> tuple[str, ...]:
    """17 x 17, with 7 x 7 taken apart into lines and columns."""
    return (
        "branch1x1 192 1x1",
        f"branch7x7_1 {n} 1x1, branch7x7_2 {n} 1x7, branch7x7_3 192 7x1",
        f"branch7x7dbl_1 {n} 1x1, branch7x7dbl_2 {n} 7x1, branch7x7dbl_3 {n} 1x7, branch7x7dbl_4 {n} 7x1, "
        "branch7x7dbl_5 192 1x7",
        "average, branch_pool 192 1x1",
    )


def _wide(pooling: str) -> tuple[str, ...]:
    """8 x 8."""
    return (
        "branch1x1 320 1x1",
        "branch3x3_1 384 1x1, branch3x3_2a 384 1x3 | branch3x3_2b 384 3x1",
        "branch3x3dbl_1 448 1x1, branch3x3dbl_2 384 3x3, branch3x3dbl_3a 384 1x3 | branch3x3dbl_3b 384 3x1",
        f"{pooling}, branch_pool 192 1x1",
    )


BLOCKS = {
    "Mixed_5b": _fives(32),
    "Mixed_5c": _fives(64),
    "Mixed_5d": _fives(64),
    "Mixed_6a": ("branch3x3 384 3x3/2", f"{_DOUBLE}/2", "max/2"),
    "Mixed_6b": _sevens(128),
    "Mixed_6c": _sevens(160),
    "Mixed_6d": _sevens(160),
    "Mixed_6e": _sevens(192),
    "Mixed_7a": (
        "branch3x3_1 192 1x1, branch3x3_2 320 3x3/2",
        "branch7x7x3_1 192 1x1, branch7x7x3_2 192 1x7, branch7x7x3_3 192 7x1, branch7x7x3_4 192 3x3/2",
        "max/2",
    ),
    "Mixed_7b": _wide("average"),
    "Mixed_7c": _wide("max"),
}


class InceptionV3(nn.Module):
    """Pictures (N, 3, 299, 299) in [-1, 1] to the averages of the last block (N, 2048), "pool3"."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2, pad=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), stride=1, pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), stride=1, pad=True)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), stride=1, pad=False)
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), stride=1, pad=False)
        channels = 192
        for name, branches in BLOCKS.items():
            block = Block(channels, *branches)
            self.add_module(name, block)
            channels = block.width

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(POOLS["max/2"](x)))
        x = POOLS["max/2"](x)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


class Inception:
    """The extractor ``inception:FILE``: pixels of any size, resized and scaled as the graph of 2015 does."""

    def __init__(self, file: str) -> None:
        network = InceptionV3()
        state = read_weights(file, what="FID's Inception-v3")
        fit_weights(network, state, file)
        self.network = network.to(device()).eval().requires_grad_(False)
        self.name, self.hash = f"inception:{Path(file).name}", fingerprint(file)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        levels = ((pixels.float() + 1) * 127.5).round()  # the bytes of the picture
        at = next(self.network.parameters()).device
        return self.network((resize(levels.to(at)) - 128) / 128)


def fit_weights(network: InceptionV3, state: dict[str, Tensor], file: str) -> None:
    """Load all of ``state``; ``TwinflowError`` says what another layout lacks, has more, or has of another shape."""
    given = {name: tuple(value.shape) for name, value in state.items() if not _counts(name)}
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items() if not _counts(name)}
    wanted |= {name: shape for name, shape in DROPPED.items() if name in given}
    other = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    for what, names in (
        ("lacks", sorted(wanted.keys() - given.keys())),
        ("has, beyond it,", sorted(given.keys() - wanted.keys())),
        ("has of another shape", other),
    ):
        if names:
            raise TwinflowError(
                f"{file} is not FID's Inception-v3 (of 2015, {CLASSES} classes, in torchvision's names): it {what} "
                f"{len(names)} weights, such as {names[0]}. torchvision's own, of 1000 classes, is another network"
            )
    network.load_state_dict({name: state[name] for name in wanted if name not in DROPPED}, strict=False)


def _counts(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # used in training alone, and not in every file


def resize(pixels: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear as TensorFlow 1 does it: row i comes from row i * height / side, counted from the first."""
    for dim in (2, 3):
        size = pixels.shape[dim]
        at = torch.arange(side, device=pixels.device) * (size / side)
        low = at.floor().long()
        high, share = (low + 1).clamp_max(size - 1), at - low
        share = share.to(pixels.dtype).unsqueeze(-1) if dim == 2 else share.to(pixels.dtype)
        below, above = pixels.index_select(dim, low), pixels.index_select(dim, high)
        pixels = below + (above - below) * share
    return pixels
