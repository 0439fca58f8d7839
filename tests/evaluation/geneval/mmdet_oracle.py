"""mmdet 2.x's Mask2Former with a Swin backbone, slow and obvious: a forward pass over its own state dict.

Written from mmdet's documented rules and parameter names, and not from transformers' code, so that equal logits mean
that the converter put every number where it belongs. What mmdet does in its own way: patch merging by ``nn.Unfold``,
one ``qkv`` matrix, windows shifted by half, ``nn.MultiheadAttention`` in the decoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POINTS = 4  # of the deformable attention, per level and head
GROUPS = 32  # of GroupNorm


class Architecture:
    """Sizes of a tiny model: every part is there, with more than one block where blocks differ."""

    depths = (2, 1, 2, 1)  # a second block has shifted windows
    swin_heads = (1, 2, 2, 4)
    embed = 8
    window = 3
    hidden = 64  # two channels to a group of GroupNorm: with one, the biases before it would have no effect
    heads = 2
    queries = 6
    classes = 80
    encoder_layers = 2
    decoder_layers = 4  # one more than there are levels
    encoder_ffn = 24
    decoder_ffn = 20


def random_state(seed: int = 0, arch: type[Architecture] = Architecture) -> dict[str, Tensor]:
    """A state dict with mmdet's names and shapes and random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(_shapes(arch))
    state = {}
    for name, shape in shapes.items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        numbers = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        state[name] = (
            1 + 0.1 * numbers if is_norm else numbers / math.sqrt(fan_in) * (1 if fan_in > 1 else 0.3)
        )
    return state


def _shapes(a: type[Architecture]):
    def linear(name, out, into, bias=True):
        yield f"{name}.weight", (out, into)
        if bias:
            yield f"{name}.bias", (out,)

    def norm(name, size):
        yield f"{name}.weight", (size,)
        yield f"{name}.bias", (size,)

    def conv(name, out, into, size, bias=True):
        yield f"{name}.weight", (out, into, size, size)
        if bias:
            yield f"{name}.bias", (out,)

    yield from conv("backbone.patch_embed.projection", a.embed, 3, 4)
    yield from norm("backbone.patch_embed.norm", a.embed)
    for i, depth in enumerate(a.depths):
        size = a.embed * 2**i
        for j in range(depth):
            p = f"backbone.stages.{i}.blocks.{j}"
            yield from norm(f"{p}.norm1", size)
            table = (2 * a.window - 1) ** 2
            yield f"{p}.attn.w_msa.relative_position_bias_table", (table, a.swin_heads[i])
            yield from linear(f"{p}.attn.w_msa.qkv", 3 * size, size)
            yield from linear(f"{p}.attn.w_msa.proj", size, size)
            yield from norm(f"{p}.norm2", size)
            yield from linear(f"{p}.ffn.layers.0.0", 4 * size, size)
            yield from linear(f"{p}.ffn.layers.1", size, 4 * size)
        if i + 1 < len(a.depths):
            yield from norm(f"backbone.stages.{i}.downsample.norm", 4 * size)
            yield from linear(f"backbone.stages.{i}.downsample.reduction", 2 * size, 4 * size, bias=False)
        yield from norm(f"backbone.norm{i}", size)
    d = "panoptic_head.pixel_decoder"
    for level in range(3):  # from the coarsest
        yield from conv(f"{d}.input_convs.{level}.conv", a.hidden, a.embed * 2 ** (3 - level), 1)
        yield from norm(f"{d}.input_convs.{level}.gn", a.hidden)
    for i in range(a.encoder_layers):
        p = f"{d}.encoder.layers.{i}"
        yield from linear(f"{p}.attentions.0.sampling_offsets", a.heads * 3 * POINTS * 2, a.hidden)
        yield from linear(f"{p}.attentions.0.attention_weights", a.heads * 3 * POINTS, a.hidden)
        yield from linear(f"{p}.attentions.0.value_proj", a.hidden, a.hidden)
        yield from linear(f"{p}.attentions.0.output_proj", a.hidden, a.hidden)
        yield from norm(f"{p}.norms.0", a.hidden)
        yield from linear(f"{p}.ffns.0.layers.0.0", a.encoder_ffn, a.hidden)
        yield from linear(f"{p}.ffns.0.layers.1", a.hidden, a.encoder_ffn)
        yield from norm(f"{p}.norms.1", a.hidden)
    yield f"{d}.level_encoding.weight", (3, a.hidden)
    yield from conv(f"{d}.lateral_convs.0.conv", a.hidden, a.embed, 1, bias=False)
    yield from norm(f"{d}.lateral_convs.0.gn", a.hidden)
    yield from conv(f"{d}.output_convs.0.conv", a.hidden, a.hidden, 3, bias=False)
    yield from norm(f"{d}.output_convs.0.gn", a.hidden)
    yield from conv(f"{d}.mask_feature", a.hidden, a.hidden, 1)
    h = "panoptic_head"
    for i in range(a.decoder_layers):
        p = f"{h}.transformer_decoder.layers.{i}"
        for k in range(2):
            yield f"{p}.attentions.{k}.attn.in_proj_weight", (3 * a.hidden, a.hidden)
            yield f"{p}.attentions.{k}.attn.in_proj_bias", (3 * a.hidden,)
            yield from linear(f"{p}.attentions.{k}.attn.out_proj", a.hidden, a.hidden)
        yield from linear(f"{p}.ffns.0.layers.0.0", a.decoder_ffn, a.hidden)
        yield from linear(f"{p}.ffns.0.layers.1", a.hidden, a.decoder_ffn)
        for k in range(3):
            yield from norm(f"{p}.norms.{k}", a.hidden)
    yield from norm(f"{h}.transformer_decoder.post_norm", a.hidden)
    yield f"{h}.query_embed.weight", (a.queries, a.hidden)
    yield f"{h}.query_feat.weight", (a.queries, a.hidden)
    yield f"{h}.level_embed.weight", (3, a.hidden)
    yield from linear(f"{h}.cls_embed", a.classes + 1, a.hidden)
    for k in (0, 2, 4):
        yield from linear(f"{h}.mask_embed.{k}", a.hidden, a.hidden)


class Oracle:
    """``Oracle(state)(pixels)`` -> class logits (Q, classes + 1) and mask logits (Q, H/4, W/4) of one picture."""

    def __init__(self, state: dict[str, Tensor], arch: type[Architecture] = Architecture) -> None:
        self.state, self.arch = state, arch

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        levels, mask_features = self.pixel_decoder(self.backbone(pixels))
        return self.decoder(levels, mask_features)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def conv_gn(self, name: str, x: Tensor, padding: int = 0) -> Tensor:
        x = F.conv2d(
            x, self.state[f"{name}.conv.weight"], self.state.get(f"{name}.conv.bias"), padding=padding
        )
        return F.group_norm(x, GROUPS, self.state[f"{name}.gn.weight"], self.state[f"{name}.gn.bias"])

    # The backbone

    def backbone(self, pixels: Tensor) -> list[Tensor]:
        p = "backbone.patch_embed.projection"
        x = F.conv2d(pixels, self.state[f"{p}.weight"], self.state[f"{p}.bias"], stride=4)
        height, width = x.shape[-2:]
        x = self.norm("backbone.patch_embed.norm", x.flatten(2).transpose(1, 2))  # (1, L, C)
        features = []
        for i, depth in enumerate(self.arch.depths):
            for j in range(depth):
                x = self.block(f"backbone.stages.{i}.blocks.{j}", x, height, width, i, shifted=bool(j % 2))
            out = self.norm(f"backbone.norm{i}", x)
            features.append(out.transpose(1, 2).reshape(1, -1, height, width))
            if i + 1 < len(self.arch.depths):
                picture = x.transpose(1, 2).reshape(1, -1, height, width)
                picture = F.pad(picture, (0, width % 2, 0, height % 2))
                x = nn.Unfold(kernel_size=2, stride=2)(picture).transpose(1, 2)  # (1, L/4, 4C)
                p = f"backbone.stages.{i}.downsample"
                x = self.linear(f"{p}.reduction", self.norm(f"{p}.norm", x))
                height, width = (height + 1) // 2, (width + 1) // 2
        return features

    def block(self, p: str, x: Tensor, height: int, width: int, stage: int, *, shifted: bool) -> Tensor:
        normed = self.norm(f"{p}.norm1", x).view(height, width, -1)
        x = x + self.window_attention(f"{p}.attn.w_msa", normed, stage, shifted=shifted).reshape(x.shape)
        hidden = F.gelu(self.linear(f"{p}.ffn.layers.0.0", self.norm(f"{p}.norm2", x)))
        return x + self.linear(f"{p}.ffn.layers.1", hidden)

    def window_attention(self, p: str, x: Tensor, stage: int, *, shifted: bool) -> Tensor:
        """Every token attends to the tokens of its window; slow: one full attention with a mask."""
        size, heads = self.arch.window, self.arch.swin_heads[stage]
        height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))  # padding takes part, as in mmdet
        rows, columns = x.shape[:2]
        shift = size // 2 if shifted else 0
        x = torch.roll(x, (-shift, -shift), (0, 1))
        y, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")

        def region(position: Tensor, length: int) -> Tensor:  # parts that the roll made neighbours
            return torch.where(position < length - size, 0, torch.where(position < length - shift, 1, 2))

        window = (y // size * (columns // size) + c // size).flatten()
        part = (region(y, rows) * 3 + region(c, columns)).flatten()
        query, key, value = (
            self.linear(f"{p}.qkv", x).view(rows * columns, 3, heads, channels // heads).permute(1, 2, 0, 3)
        )
        scores = (query * (channels // heads) ** -0.5) @ key.transpose(-1, -2)  # (heads, N, N)
        inside_y, inside_x = (y % size).flatten(), (c % size).flatten()
        dy = inside_y[:, None] - inside_y[None] + size - 1
        dx = inside_x[:, None] - inside_x[None] + size - 1
        scores = scores + self.state[f"{p}.relative_position_bias_table"][dy * (2 * size - 1) + dx].permute(
            2, 0, 1
        )
        if shift:
            scores = scores + torch.where(part[:, None] == part[None], 0.0, -100.0)
        scores = scores.masked_fill(window[:, None] != window[None], -math.inf)
        out = (scores.softmax(-1) @ value).transpose(0, 1).reshape(rows, columns, channels)
        out = torch.roll(self.linear(f"{p}.proj", out), (shift, shift), (0, 1))
        return out[:height, :width]

    # The pixel decoder

    def pixel_decoder(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        d, hidden = "panoptic_head.pixel_decoder", self.arch.hidden
        maps = [self.conv_gn(f"{d}.input_convs.{i}", features[3 - i]) for i in range(3)]
        sizes = [tuple(m.shape[-2:]) for m in maps]
        tokens = torch.cat([m.flatten(2).transpose(1, 2)[0] for m in maps])  # (N, C)
        encoding = self.state[f"{d}.level_encoding.weight"]
        position = torch.cat([sine(*size, hidden) + encoding[i] for i, size in enumerate(sizes)])
        reference = torch.cat([centres(*size) for size in sizes])  # (N, 2): x, y in [0, 1]
        for i in range(self.arch.encoder_layers):
            p = f"{d}.encoder.layers.{i}"
            attended = self.deformable_attention(f"{p}.attentions.0", tokens, position, reference, sizes)
            tokens = self.norm(f"{p}.norms.0", tokens + attended)
            inner = F.relu(self.linear(f"{p}.ffns.0.layers.0.0", tokens))
            tokens = self.norm(f"{p}.norms.1", tokens + self.linear(f"{p}.ffns.0.layers.1", inner))
        pieces = tokens.split([h * w for h, w in sizes])
        levels = [piece.T.reshape(1, hidden, *size) for piece, size in zip(pieces, sizes)]
        lateral = self.conv_gn(f"{d}.lateral_convs.0", features[0])
        upper = F.interpolate(levels[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        fine = F.relu(self.conv_gn(f"{d}.output_convs.0", lateral + upper, padding=1))
        p = f"{d}.mask_feature"
        return levels, F.conv2d(fine, self.state[f"{p}.weight"], self.state[f"{p}.bias"])

    def deformable_attention(
        self, p: str, tokens: Tensor, position: Tensor, reference: Tensor, sizes: list[tuple[int, int]]
    ) -> Tensor:
        heads, count = self.arch.heads, len(tokens)
        query = tokens + position
        value = self.linear(f"{p}.value_proj", tokens).view(count, heads, -1)
        offsets = self.linear(f"{p}.sampling_offsets", query).view(count, heads, 3, POINTS, 2)
        weights = self.linear(f"{p}.attention_weights", query).view(count, heads, 3 * POINTS).softmax(-1)
        weights = weights.view(count, heads, 3, POINTS)
        out = torch.zeros_like(value)
        start = 0
        for level, (h, w) in enumerate(sizes):
            own = value[start : start + h * w].view(h, w, heads, -1)
            start += h * w
            x = reference[:, None, None, 0] * w + offsets[:, :, level, :, 0] - 0.5  # in pixels
            y = reference[:, None, None, 1] * h + offsets[:, :, level, :, 1] - 0.5
            for head in range(heads):
                sampled = bilinear(own[:, :, head], x[:, head], y[:, head])  # (N, POINTS, C)
                out[:, head] += (weights[:, head, level, :, None] * sampled).sum(1)
        return self.linear(f"{p}.output_proj", out.flatten(1))

    # The transformer decoder

    def decoder(self, levels: list[Tensor], mask_features: Tensor) -> tuple[Tensor, Tensor]:
        h, hidden = "panoptic_head", self.arch.hidden
        embed = self.state[f"{h}.level_embed.weight"]
        memory = [m[0].flatten(1).T + embed[i] for i, m in enumerate(levels)]
        position = [sine(*m.shape[-2:], hidden) for m in levels]
        query, where = self.state[f"{h}.query_feat.weight"], self.state[f"{h}.query_embed.weight"]
        classes, masks = self.heads(query, mask_features)
        for i in range(self.arch.decoder_layers):
            level = i % 3
            size = tuple(levels[level].shape[-2:])
            small = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0].flatten(1)
            blocked = small.sigmoid() < 0.5
            blocked[blocked.all(1)] = False
            p = f"{h}.transformer_decoder.layers.{i}"
            attended = self.attention(
                f"{p}.attentions.0.attn",
                query + where,
                memory[level] + position[level],
                memory[level],
                blocked,
            )
            query = self.norm(f"{p}.norms.0", query + attended)
            attended = self.attention(f"{p}.attentions.1.attn", query + where, query + where, query, None)
            query = self.norm(f"{p}.norms.1", query + attended)
            inner = F.relu(self.linear(f"{p}.ffns.0.layers.0.0", query))
            query = self.norm(f"{p}.norms.2", query + self.linear(f"{p}.ffns.0.layers.1", inner))
            classes, masks = self.heads(query, mask_features)
        return classes, masks

    def attention(self, p: str, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None) -> Tensor:
        module = nn.MultiheadAttention(self.arch.hidden, self.arch.heads, batch_first=True)
        module.load_state_dict(
            {k.removeprefix(f"{p}."): v for k, v in self.state.items() if k.startswith(f"{p}.")}
        )
        return module(query[None], key[None], value[None], attn_mask=blocked)[0][0]

    def heads(self, query: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm("panoptic_head.transformer_decoder.post_norm", query)
        embedded = x
        for k in (0, 2, 4):
            embedded = self.linear(f"panoptic_head.mask_embed.{k}", embedded if k == 0 else F.relu(embedded))
        masks = torch.einsum("qc,chw->qhw", embedded, mask_features[0])
        return self.linear("panoptic_head.cls_embed", x), masks


def sine(height: int, width: int, channels: int) -> Tensor:
    """mmdet's SinePositionalEncoding(normalize=True) of a full picture: (H * W, C), y before x."""
    half = channels // 2
    y = torch.arange(1, height + 1.0) / (height + 1e-6) * 2 * math.pi
    x = torch.arange(1, width + 1.0) / (width + 1e-6) * 2 * math.pi
    frequency = 10000 ** (2 * (torch.arange(half) // 2) / half)

    def waves(values: Tensor) -> Tensor:
        angle = values[:, None] / frequency
        return torch.where(torch.arange(half) % 2 == 0, angle.sin(), angle.cos())

    rows = waves(y)[:, None].expand(height, width, half)
    columns = waves(x)[None].expand(height, width, half)
    return torch.cat([rows, columns], -1).reshape(height * width, channels)


def centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x.flatten() / width, y.flatten() / height], -1)


def bilinear(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values (H, W, C) at pixel coordinates (…); zero outside."""
    height, width = values.shape[:2]
    out = torch.zeros(*x.shape, values.shape[-1])
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            taken = values[row.long().clamp(0, height - 1), column.long().clamp(0, width - 1)]
            out += torch.where(inside, weight, 0.0)[..., None] * taken
    return out
