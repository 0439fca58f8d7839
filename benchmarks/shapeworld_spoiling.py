"""What ``shapeworld_verifier.py`` does to pictures: degradations of scenes, and junk that shows none.

Pictures are (H, W, 3) in [0, 1] where they are drawn; what is done to them may leave that range.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Degrade = Callable[[np.ndarray, np.random.Generator], np.ndarray]


# ---- degradations of a picture (H, W, 3) in [0, 1]; lengths are in its own pixels ----------------------------


def noise(sigma: float) -> Degrade:
    return lambda x, rng: x + rng.normal(0, sigma, x.shape)


def soft(sigma: float) -> Degrade:
    return lambda x, rng: ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def contrast(share: float) -> Degrade:
    return lambda x, rng: 0.5 + (x - 0.5) * share


def then(first: Degrade, second: Degrade) -> Degrade:
    return lambda x, rng: second(first(x, rng), rng)


def jpeg(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    to_uint8(x).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file), dtype=np.float64) / 255


def to_uint8(x: np.ndarray) -> Image.Image:
    return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))


def warp(x: np.ndarray, rng: np.random.Generator, scale: float | None = None) -> np.ndarray:
    """Bends the picture by a smooth random field, half a pixel (of 32) in standard deviation.

    With ``scale`` 1 that is half of its own pixels: of a larger picture, less of a shape.
    """
    size = x.shape[0]
    scale = scale or size / 32
    field = rng.normal(size=(2, size, size))
    field = ndimage.gaussian_filter(field, (0, 2 * scale, 2 * scale), mode="nearest")
    field *= 0.5 * scale / field.std()
    places = np.mgrid[:size, :size] + field
    channels = [ndimage.map_coordinates(x[..., k], places, order=1, mode="nearest") for k in range(3)]
    return np.stack(channels, axis=-1)


DEGRADATIONS: dict[str, Degrade] = {
    "clean": lambda x, rng: x,
    "uint8": lambda x, rng: np.asarray(to_uint8(x)) / 255.0,
    "noise 0.05": noise(0.05),
    "noise 0.10": noise(0.10),
    "noise 0.15": noise(0.15),
    "noise 0.20": noise(0.20),
    "blur 0.5": soft(0.5),
    "blur 0.7": soft(0.7),
    "blur 1.0": soft(1.0),
    "blur 0.5 + noise 0.05": then(soft(0.5), noise(0.05)),
    "blur 0.7 + noise 0.10": then(soft(0.7), noise(0.10)),
    "tint 0.05": lambda x, rng: x + rng.normal(0, 0.05, 3),
    "gain 0.8-1.2": lambda x, rng: 0.5 + (x - 0.5) * rng.uniform(0.8, 1.2),
    **{f"contrast {share}": contrast(share) for share in (0.9, 0.8, 0.7, 0.6, 0.5)},
    "jpeg 75": jpeg,
    "warp 0.5": warp,
    "warp 0.5 of its own pixels": lambda x, rng: warp(x, rng, 1.0),  # that of "warp 0.5" at 32
}
NEGATIVE_CONDITIONS = ("clean", "blur 0.7", "noise 0.05", "noise 0.10")


# ---- pictures that show nothing, or several scenes at once ----------------------------------------------------


def smooth_noise(sigma: float) -> Callable[[list[np.ndarray], np.random.Generator], np.ndarray]:
    """Gaussian noise, blurred, brought back to a standard deviation of 0.25."""

    def draw(scenes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        width = sigma * scenes[0].shape[0] / 32
        x = ndimage.gaussian_filter(rng.normal(size=scenes[0].shape), (width, width, 0), mode="wrap")
        return 0.5 + 0.25 * x / x.std()

    return draw


def white_noise(scenes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0.5, rng.choice([0.1, 0.2, 0.3, 0.5]), scenes[0].shape)


def pattern(scenes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Uniform noise, binary noise, a constant or a gradient."""
    shape = scenes[0].shape
    kind = rng.integers(4)
    if kind == 0:
        return rng.uniform(size=shape)
    if kind == 1:
        return rng.integers(0, 2, shape).astype(float)
    if kind == 2:
        return np.broadcast_to(rng.uniform(size=3), shape)
    along = np.linspace(0, 1, shape[0])[:, None, None] * np.ones(shape)
    return along * rng.uniform(size=3) + (1 - along) * rng.uniform(size=3)


def shuffled_tiles(scenes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A scene cut in 4 x 4 tiles that are put back in random order: may still hold whole shapes."""
    size = scenes[0].shape[0]
    t = size // 4
    tiles = scenes[0].reshape(4, t, 4, t, 3).swapaxes(1, 2).reshape(16, t, t, 3)
    return rng.permutation(tiles).reshape(4, 4, t, t, 3).swapaxes(1, 2).reshape(size, size, 3)


JUNK: dict[str, Callable[[list[np.ndarray], np.random.Generator], np.ndarray]] = {
    "white noise": white_noise,
    "uniform, binary, constant, gradient": pattern,
    "smooth noise 0.7": smooth_noise(0.7),
    "smooth noise 1.5": smooth_noise(1.5),
    "smooth noise 2.5": smooth_noise(2.5),
    "smooth noise 4": smooth_noise(4.0),
    "mean of two scenes": lambda scenes, rng: np.mean(scenes[:2], axis=0),
    "mean of eight scenes": lambda scenes, rng: np.mean(scenes, axis=0),
    "shuffled tiles": shuffled_tiles,
    "scene + noise 0.4": lambda scenes, rng: scenes[0] + rng.normal(0, 0.4, scenes[0].shape),
}
