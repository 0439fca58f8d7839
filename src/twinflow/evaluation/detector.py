"""Finds the shapes of ShapeWorld in a picture: a deterministic detector made of pixels and geometry.

A model's picture may be noisy, soft, tinted or a little bent; it is read as a scene only where the renderer's
own shapes fit it. A detection's score is the soft intersection over union of that fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from twinflow.data.shapeworld import LEVELS, Level, get_level
from twinflow.data.shapeworld.world import BACKGROUND
from twinflow.evaluation.scoring import Detection
from twinflow.evaluation.shape_fit import blurred, soft_iou, templates, unit_moments

GRAY = np.array(BACKGROUND)
ROUNDING = 1e-6  # of fp32 pictures: the least contrast itself is enough


@dataclass(frozen=True, kw_only=True)
class DetectorSettings:
    """Thresholds. Lengths and areas are in pixels of a 32 x 32 picture, colours are RGB in [0, 1]."""

    score: float = 0.80  # least fit; 0.75 forgives more deformation and twice as much junk
    contrast: float = 0.60  # least share of a colour's distance from gray; below lie averaged modes (ghosts)
    area: float = 18.0  # least covered area of an object
    area_share: float = 0.35  # largest covered share of the picture
    foreground: float = 0.26  # distance from gray
    vote: float = 0.20  # distance from a colour's ray within which a pixel votes for the colour
    spread: float = 0.14  # largest mean distance of an object's pixels from the object's own ray
    color: float = 0.25  # distance from a colour's ray beyond which an object has no known colour
    tint: float = 0.20  # largest offset of the whole picture that is taken away
    noise: float = 0.015  # standard deviation from which on the picture is smoothed
    blurs: tuple[float, ...] = (0.0, 0.6, 1.0)  # softness of the picture that the fit tries
    radii: tuple[float, ...] = (0.94, 1.0, 1.06)  # relative to the radius that the area tells
    max_objects: int = 16


@dataclass(frozen=True, kw_only=True)
class Region:
    """Foreground pixels that belong together and have one colour."""

    mask: np.ndarray  # (H, W) bool
    color: int  # index into the palette
    blob: int  # number of the connected foreground that it is a part of


class ShapeDetector:
    """``detect`` an (H, W, 3) picture in [0, 1] of a level's size.

    By default only the level's own shapes and colours are known; with ``full_vocabulary`` those of the
    full world are, so that a ring on a picture of level tiny is found and is wrong.
    """

    def __init__(
        self,
        level: str | Level = "tiny",
        *,
        full_vocabulary: bool = False,
        settings: DetectorSettings | None = None,
    ) -> None:
        self.level = get_level(level)
        known = LEVELS["full"] if full_vocabulary else self.level
        self.shapes, self.colors = known.shapes, known.colors
        self.settings = settings or DetectorSettings()
        self.rays = known.palette - GRAY  # (C, 3)

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Objects of the picture, best fit first."""
        size = self.level.size
        if image.shape != (size, size, 3):
            raise ValueError(f"level {self.level.name!r} has pictures ({size}, {size}, 3), got {image.shape}")
        if not np.isfinite(image).all():  # a model that diverged
            return []
        pixels = np.clip(np.asarray(image, dtype=np.float64), 0.0, 1.0)
        pixels, smoothing = denoise(pixels, self.settings.noise, self.level.scale)
        offset = remove_tint(pixels, self.settings.tint)  # (H, W, 3) from gray
        blobs = self._blobs(offset)
        regions = [region for k, blob in enumerate(blobs) for region in self._regions(offset, blob, k)]
        taken = [region.mask for region in regions]
        found, explained = [], set()
        for i, region in enumerate(regions):
            neighbours = np.any(taken[:i] + taken[i + 1 :], axis=0) if len(regions) > 1 else None
            detection = self._identify(offset, region, neighbours, smoothing)
            if detection is not None:
                found.append(detection)
                explained.add(region.blob)
        for k, blob in enumerate(blobs):
            if k not in explained and (unclear := self._unclear(offset, blob, smoothing)):
                found.append(unclear)
        return sorted(found, key=lambda d: -d.score)[: self.settings.max_objects]

    def _blobs(self, offset: np.ndarray) -> list[np.ndarray]:
        """Masks of connected foreground."""
        components, count = ndimage.label(np.linalg.norm(offset, axis=-1) > self.settings.foreground)
        masks = [components == k for k in range(1, count + 1)]
        return [mask for mask in masks if mask.sum() >= self._least_pixels]

    @property
    def _least_pixels(self) -> float:
        return 0.6 * self.settings.area * self.level.scale**2

    def _regions(self, offset: np.ndarray, mask: np.ndarray, blob: int) -> list[Region]:
        """A blob, split where objects of different colours touch."""
        distance = np.linalg.norm(offset, axis=-1)
        errors = ray_distance(offset[mask], self.rays)  # (P, C)
        present = self._colors_present(errors)
        if not present:  # washed out: the colour of its strongest pixels, which may still prove too far
            strongest = offset[mask & (distance >= np.quantile(distance[mask], 0.7))]
            present = [int(ray_distance(np.median(strongest, 0), self.rays).argmin())]
        if len(present) == 1:
            return [Region(mask=mask, color=present[0], blob=blob)]
        nearest = np.full(mask.shape, -1)
        nearest[mask] = np.array(present)[errors[:, present].argmin(-1)]
        regions = []
        for color in present:
            pieces, count = ndimage.label(nearest == color)
            masks = [pieces == j for j in range(1, count + 1)]
            regions += [
                Region(mask=piece, color=color, blob=blob)
                for piece in masks
                if piece.sum() >= self._least_pixels
            ]
        return regions

    def _colors_present(self, errors: np.ndarray) -> list[int]:
        """Colours with enough votes of a component's pixels; with too few for any, the one with most."""
        pure = errors.min(-1) < self.settings.vote
        votes = np.bincount(errors.argmin(-1)[pure], minlength=len(self.rays))
        least = max(3.0, 0.12 * len(errors), 0.25 * self.settings.area * self.level.scale**2)
        ranked = np.argsort(-votes, kind="stable")
        return [int(c) for c in ranked if votes[c] >= least] or [int(c) for c in ranked[:1] if votes[c] > 0]

    def _identify(
        self, offset: np.ndarray, region: Region, neighbours: np.ndarray | None, smoothing: float
    ) -> Detection | None:
        """The region as an object, or None where it is a ghost, of several colours, of a wrong size or shape."""
        window = bounding_window(region.mask, margin=2)
        own = region.mask[window]
        mine = ndimage.binary_dilation(ndimage.binary_fill_holes(own))
        if neighbours is not None:
            mine &= ~neighbours[window]
        ray = self.rays[region.color]
        alpha = np.where(mine, np.clip(offset[window] @ ray / (ray @ ray), 0, 1), 0.0)

        color = core_color(offset[window], alpha, mine)
        if color @ ray < self.settings.contrast * (ray @ ray) * (1 - ROUNDING):
            return None
        if color_spread(offset[window][own], color) > self.settings.spread:
            return None
        if not self._right_size(alpha, offset):
            return None
        shape, box, score = self._fit(alpha, mine, own, window, smoothing)
        if score < self.settings.score:
            return None
        distance = ray_distance(color, self.rays)
        known = distance.min() < self.settings.color
        return Detection(
            class_name=shape,
            box=box,
            score=score,
            color=self.colors[int(distance.argmin())] if known else None,
        )

    def _unclear(self, offset: np.ndarray, blob: np.ndarray, smoothing: float) -> Detection | None:
        """A shape in which no object of one colour was recognised: its colours are blended."""
        window = bounding_window(blob, margin=2)
        own = blob[window]
        distance = np.linalg.norm(offset[window], axis=-1)
        solid = float(np.quantile(distance[own], 0.7))
        core = offset[window][own & (distance >= solid)].mean(0)
        ray = self.rays[(self.rays @ core / np.linalg.norm(self.rays, axis=-1)).argmax()]
        if core @ ray < self.settings.contrast * (ray @ ray) * (1 - ROUNDING):
            return None  # a ghost
        mine = ndimage.binary_dilation(ndimage.binary_fill_holes(own))
        alpha = np.where(mine, np.clip(distance / solid, 0, 1), 0.0)
        if not self._right_size(alpha, offset):
            return None
        shape, box, score = self._fit(alpha, mine, own, window, smoothing)
        if score < self.settings.score:
            return None
        return Detection(class_name=shape, box=box, score=score, clear=False)

    def _right_size(self, alpha: np.ndarray, offset: np.ndarray) -> bool:
        least, most = self.settings.area * self.level.scale**2, self.settings.area_share * offset[..., 0].size
        return bool(least <= alpha.sum() <= most)

    def _fit(
        self,
        alpha: np.ndarray,
        mine: np.ndarray,
        own: np.ndarray,
        window: tuple[slice, slice],
        smoothing: float,
    ) -> tuple[str, tuple[float, float, float, float], float]:
        """Best shape, its box (centre and half-extent, like ``SceneObject.box``) and its soft IoU with alpha."""
        y0, x0 = window[0].start, window[1].start
        area = alpha.sum()
        cy = y0 + (alpha.sum(1) @ (np.arange(alpha.shape[0]) + 0.5)) / area
        cx = x0 + (alpha.sum(0) @ (np.arange(alpha.shape[1]) + 0.5)) / area
        amplitude = float(np.clip(np.quantile(alpha[own], 0.85), 0.55, 1.0))
        areas = [area] if amplitude > 0.93 else [area, area / amplitude]  # pale, or made pale by blur
        factors = np.outer(np.sqrt(areas), self.settings.radii).ravel()
        units = [unit_moments(shape) for shape in self.shapes]
        radii = np.stack([factors / np.sqrt(unit.area) for unit in units])  # (S, R)
        xs = cx - radii * np.array([[unit.x] for unit in units])
        ys = cy - radii * np.array([[unit.y] for unit in units])
        sharp = templates(self.shapes, xs - x0, ys - y0, radii, alpha.shape)
        widths = {round(float(np.hypot(b * self.level.scale, smoothing)), 3) for b in self.settings.blurs}
        scores = soft_iou(alpha, blurred(sharp, sorted(widths)) * mine)  # (B, S, R)
        _, i, j = np.unravel_index(scores.argmax(), scores.shape)
        x, y, radius = float(xs[i, j]), float(ys[i, j]), float(radii[i, j])
        return self.shapes[i], (x - radius, y - radius, x + radius, y + radius), float(scores.max())


def noise_level(pixels: np.ndarray) -> float:
    """Standard deviation of white noise, from the median diagonal detail: edges are rare, noise is not."""
    detail = (pixels[:-1, :-1] - pixels[1:, :-1] - pixels[:-1, 1:] + pixels[1:, 1:]) / 2
    return float(np.median(np.abs(detail))) / 0.6745


def denoise(pixels: np.ndarray, threshold: float, scale: float) -> tuple[np.ndarray, float]:
    """The picture smoothed as its noise demands, and the Gaussian's width in pixels (0: left alone)."""
    noise = noise_level(pixels)
    if noise < threshold:
        return pixels, 0.0
    width = round(float(np.clip(0.35 + 4.0 * noise, 0.4, 0.85)) * scale**0.5, 2)
    return ndimage.gaussian_filter(pixels, (width, width, 0), mode="nearest"), width


def remove_tint(pixels: np.ndarray, largest: float) -> np.ndarray:
    """Offset of every pixel from the background, (H, W, 3): the border's median, if that is about gray."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    if np.linalg.norm(background - GRAY) > largest:
        return pixels - GRAY
    return np.clip(pixels - background + GRAY, 0.0, 1.0) - GRAY


def ray_distance(offset: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Distance (…, C) of colours (…, 3) from each ray gray -> palette colour, at 0.65 to 1.1 of its length.

    A ray and not a point: noise and blur change an object's contrast before they change its hue.
    """
    along, squared = offset @ rays.T, (rays * rays).sum(-1)
    reach = np.clip(along / squared, 0.65, 1.1)
    norm = (offset * offset).sum(-1)[..., None]
    return np.sqrt(np.maximum(norm - 2 * reach * along + reach**2 * squared, 0.0))


def bounding_window(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns of the mask's bounding box, widened inside the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(int(rows[0]) - margin, 0), min(int(rows[-1]) + margin + 1, mask.shape[0])),
        slice(max(int(columns[0]) - margin, 0), min(int(columns[-1]) + margin + 1, mask.shape[1])),
    )


def core_color(offset: np.ndarray, alpha: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Mean colour (3,) of the pixels that an object covers fully, or else of its strongest."""
    core = mine & (alpha > 0.85)
    if core.sum() < 3:
        core = mine & (alpha >= np.quantile(alpha[mine], 0.7))
    return offset[core].mean(0)


def color_spread(offset: np.ndarray, color: np.ndarray) -> float:
    """Mean distance of pixels (P, 3) from the line of ``color`` (3,) through gray: blobs of noise have many."""
    share = offset @ color / (color @ color)
    return float(np.linalg.norm(offset - share[:, None] * color, axis=-1).mean())
