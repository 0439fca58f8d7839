"""Picture sizes for pictures of any shape: each goes to the nearest bucket, undistorted, and a batch has one size."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from twinflow.data.places import Places, check_length


@dataclass(frozen=True)
class Buckets:
    """The sizes (height, width) that pictures are brought to, narrow to wide."""

    sides: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for pair in self.sides:
            if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
                raise ValueError(f"a size is (height, width) in pixels, got {pair!r}")
        if not self.sides:
            raise ValueError("give at least one size")

    @classmethod
    def fixed(cls, size: int | tuple[int, int]) -> Buckets:
        """One size: a side in pixels, or (height, width)."""
        if not isinstance(size, (int, tuple, list)) or isinstance(size, bool):
            raise ValueError(f"size must be a side in pixels or (height, width), got {size!r}")
        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
            raise ValueError(f"size must be a side in pixels or (height, width), got {size!r}")
        return cls(((pair[0], pair[1]),))

    @classmethod
    def of_area(cls, size: int, *, multiple: int, longest: float = 2.0) -> Buckets:
        """All sizes of about ``size`` x ``size`` pixels with sides that are multiples of ``multiple``.

        None has more pixels than ``size`` x ``size``, and no side is more than ``longest`` times the other. For
        each height there is the largest width that fits.
        """
        if size < multiple or multiple < 1 or longest < 1:
            raise ValueError(
                f"buckets need size >= multiple >= 1 and longest >= 1, got size = {size}, multiple = {multiple}, "
                f"longest = {longest}"
            )
        found: dict[tuple[int, int], None] = {}
        for height in range(multiple, int(size * math.sqrt(longest)) + multiple, multiple):
            width = size * size // height // multiple * multiple
            if width and max(height / width, width / height) <= longest:
                found[(height, width)] = None
                found[(width, height)] = None
        square = size // multiple * multiple
        found[(square, square)] = None
        return cls(tuple(sorted(found, key=lambda pair: (pair[1] / pair[0], pair))))

    def nearest(self, height: int, width: int) -> int:
        """Number of the bucket whose aspect ratio is nearest: the one that crops least of such a picture.

        Of the picture, resized until it covers the bucket, a share of ``exp(-|difference of log ratios|)`` is kept.
        """
        ratio = math.log(width / height)
        place = bisect_left(self._log_ratios, ratio)
        near = [k for k in (place - 1, place) if 0 <= k < len(self.sides)]
        best = min(near, key=lambda k: abs(self._log_ratios[k] - ratio))
        same = [k for k in range(len(self.sides)) if self._log_ratios[k] == self._log_ratios[best]]
        return max(same, key=lambda k: self.sides[k])  # of equal ratios the largest size

    @cached_property
    def _log_ratios(self) -> list[float]:
        return [math.log(width / height) for height, width in self.sides]

    def __len__(self) -> int:
        return len(self.sides)


class BucketedOrder:
    """An endless stream of batches, each of rows of one bucket.

    Every bucket is an endless stream of its own: one permutation of its rows after another, cut into batches that
    may span two epochs, so that no row is dropped and none is seen twice before the others of its bucket. In epoch
    ``e`` a bucket of ``n`` rows has ``floor((e + 1) n / batch) - floor(e n / batch)`` batches: what is left over,
    fewer than ``batch`` rows, opens its next epoch. The batches of an epoch come in random order.

    All is a function of (seed, epoch). In a step the processes take successive batches, each of which may be of
    another bucket. The position is one number, so the number of processes may change on resume.
    """

    def __init__(
        self, bucket_of: Sequence[int], *, batch: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        numbers = np.asarray(bucket_of)
        if not len(numbers) or batch < 1:
            raise ValueError(f"length and batch must be at least 1, got {len(numbers)} and {batch}")
        self.batch, self.seed, self.rank, self.world_size = batch, seed, rank, world_size
        self._members = [np.flatnonzero(numbers == bucket) for bucket in np.unique(numbers)]
        self._counts = np.array([len(rows) for rows in self._members])
        self.batches = 0  # taken so far, by all processes together
        self._epoch, self._sequence = -1, np.empty(0, np.int64)
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    @property
    def epoch(self) -> int:
        return self._epoch_of(self.batches)

    def next_places(self) -> Places:
        """This process's next batch."""
        number = self.batches + self.rank
        self.batches += self.world_size
        epoch = self._epoch_of(number)
        if epoch != self._epoch:
            self._epoch, self._sequence = epoch, self._sequence_of(epoch)
        place = number - self._total(epoch)
        bucket = int(self._sequence[place])
        earlier = int((self._sequence[:place] == bucket).sum())
        first = (epoch * int(self._counts[bucket]) // self.batch + earlier) * self.batch
        rows, epochs = [], []
        for position in range(first, first + self.batch):
            turn, index = divmod(position, int(self._counts[bucket]))
            rows.append(int(self._permutation(bucket, turn)[index]))
            epochs.append(turn)
        return Places(rows=rows, epochs=epochs)

    def next_rows(self) -> list[int]:
        return self.next_places().rows

    def _total(self, epoch: int) -> int:
        """Batches before ``epoch``."""
        return int((epoch * self._counts // self.batch).sum())

    def _epoch_of(self, number: int) -> int:
        """The epoch of batch ``number``: the last one that begins at or before it and is not empty."""
        epoch = number * self.batch // int(self._counts.sum())  # never too late: the floors only take away
        while self._total(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _sequence_of(self, epoch: int) -> np.ndarray:
        """The buckets of the epoch's batches, in order."""
        counts = (epoch + 1) * self._counts // self.batch - epoch * self._counts // self.batch
        sequence = np.repeat(np.arange(len(counts)), counts)
        return np.random.default_rng([self.seed, epoch]).permutation(sequence)

    def _permutation(self, bucket: int, turn: int) -> np.ndarray:
        if (bucket, turn) not in self._permutations:
            kept = {key: rows for key, rows in self._permutations.items() if key[1] >= turn - 1}
            rng = np.random.default_rng([self.seed, turn, bucket])
            self._permutations = kept | {(bucket, turn): rng.permutation(self._members[bucket])}
        return self._permutations[bucket, turn]

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches, "length": int(self._counts.sum())}

    def load_state_dict(self, state: dict[str, int]) -> None:
        check_length(state, int(self._counts.sum()))
        self.batches = int(state["batches"])
