"""GenEval's rule for where one object lies relative to another (djghosh13/geneval, arXiv 2310.11513).

The rule is needed twice: to draw scenes in which exactly one relation holds, and to score pictures.
It lives here, below both, so that the two can never disagree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RELATIONS = ("left of", "right of", "above", "below")


def relative_position(box_a: Sequence[float], box_b: Sequence[float], margin: float = 0.1) -> set[str]:
    """Relations of A to B: a subset of :data:`RELATIONS`; two can hold at once, or none.

    Boxes are (x1, y1, x2, y2) in pixels, y pointing down. The offset of the centres is first reduced by
    ``margin`` times the summed widths (heights), then compared with half of the *unreduced* distance, as
    the official scorer does.
    """
    a, b = np.asarray(box_a, dtype=float)[:4], np.asarray(box_b, dtype=float)[:4]
    offset = (a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2
    extent = np.abs(a[2:] - a[:2]) + np.abs(b[2:] - b[:2])
    reduced = np.maximum(np.abs(offset) - margin * extent, 0) * np.sign(offset)
    if np.all(np.abs(reduced) < 1e-3):  # the boxes are on top of each other; also avoids 0 / 0
        return set()
    dx, dy = reduced / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, true in holds.items() if true}
