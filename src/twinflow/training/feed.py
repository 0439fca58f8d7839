"""The rows of a run: encoded before it or on the way, and in the order in which they come."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator

from twinflow.conditions import to_device
from twinflow.config import Recipe
from twinflow.data.cache import CachedRows
from twinflow.data.loader import (
    EncodedBatch,
    Examples,
    OnlineExamples,
    Order,
    cached_in_memory,
    order_of,
    row_of_each_size,
)
from twinflow.data.rows import CachedExamples
from twinflow.objectives import Objective
from twinflow.training.processes import Processes
from twinflow.training.progress import ProgressDisplay
from twinflow.training.protocols import Dataset, Trainable


class Feed:
    """What the steps of a run learn from."""

    def __init__(self, recipe: Recipe, dataset: Dataset, examples: Examples, *, device: torch.device) -> None:
        self.recipe, self.dataset, self.examples, self.device = recipe, dataset, examples, device

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        pipe: Trainable,
        dataset: Dataset,
        *,
        objective: Objective,
        display: ProgressDisplay,
        processes: Processes,
        device: torch.device,
    ) -> Feed:
        """With all of ``dataset`` encoded by ``pipe``, if the recipe wants it so: by each process a part."""
        data, unconditional, seed = recipe.data, recipe.unconditional_prompt, recipe.train.seed
        examples: Examples
        if isinstance(dataset, CachedRows):
            examples = CachedExamples(dataset, seed=seed)
        elif data.cache:
            display.start("encoding", total=len(dataset), unit="examples")
            examples = cached_in_memory(
                dataset,
                pipe,
                unconditional=unconditional,
                seed=seed,
                together=data.encode_batch,
                progress=lambda done, _: display.update(done),
                team=processes,
            )
            display.stop()
        else:
            examples = OnlineExamples(
                dataset,
                pipe,
                unconditional=unconditional,
                seed=seed,
                together=data.encode_batch,
                guided=getattr(objective, "guidance", 1) > 0 or getattr(objective, "guidance_mix", 1) != 1,
            )
        return cls(recipe, dataset, examples, device=device)

    def visit_sizes(self) -> None:
        """Encode an example of each size: a pipeline learns of a size from a call of its network, which can't be made
        in one process alone once the network is cut."""
        if not isinstance(self.examples, OnlineExamples):
            return
        if len(getattr(self.dataset, "bucket_of", ())) > 0:
            for row in row_of_each_size(self.dataset):
                self.examples.batch([row])
            return
        places = order_of(self.dataset, batch=1, seed=self.recipe.train.seed).next_places()
        self.examples.batch(places.rows, epochs=places.epochs)

    def order(self, processes: Processes) -> Order:
        """That of the rows of this process, from the start."""
        train = self.recipe.train
        return order_of(
            self.dataset,
            batch=train.batch,
            seed=train.seed,
            rank=processes.data_rank,
            world_size=processes.data_count,
        )

    def micro_batches(self, order: Order, generator: Generator) -> Iterator[EncodedBatch]:
        """Those of the next step, on the device; captions are dropped by ``generator``."""
        for _ in range(self.recipe.train.accumulate):
            places = order.next_places()
            dropped = None
            if self.recipe.caption_dropout > 0:
                draws = torch.rand(len(places.rows), generator=generator)
                dropped = draws < self.recipe.caption_dropout
            batch = self.examples.batch(places.rows, dropped, epochs=places.epochs)
            if isinstance(self.examples, OnlineExamples):
                self.examples.expect(order)
            yield EncodedBatch(
                x=to_device(batch.x, self.device),
                cond=to_device(batch.cond, self.device),
                uncond=to_device(batch.uncond, self.device),
            )
