"""What a run leaves behind: checkpoints on the way, and a pipeline at its end."""

from __future__ import annotations

from pathlib import Path

from twinflow.training.averages import Averages
from twinflow.training.parallel import Layout
from twinflow.training.processes import Processes
from twinflow.training.protocols import Trainable
from twinflow.training.run_folder import RunFolder
from twinflow.training.sharded_checkpoint import ShardedCheckpoints
from twinflow.training.shards import sharded_parameters
from twinflow.training.state import RunState


class Saver:
    """Writes into ``folder``; every process has to make each call."""

    def __init__(self, folder: RunFolder, layout: Layout, processes: Processes, *, background: bool) -> None:
        self.folder, self.layout, self.processes = folder, layout, processes
        self._sharded: ShardedCheckpoints | None = None
        self.notes: list[str] = []  # for the user
        if background and not layout.sharded:
            self.notes = [
                "checkpoint.background: this run is not sharded, and waits while checkpoints are written"
            ]
        if layout.sharded:
            self._sharded = ShardedCheckpoints(folder.checkpoints, processes, background=background)

    def checkpoint(self, state: RunState) -> Path | None:
        """Where ``state`` is saved, or will be after :meth:`finish`; None in a process that writes nothing."""
        snapshot = state.snapshot()
        if self._sharded is not None:
            return self._sharded.save(state.step, snapshot, sharded_parameters(state.network))
        saved = self.folder.checkpoints.save(state.step, snapshot) if self.processes.is_main else None
        self.processes.barrier()
        return saved

    def finish(self, *, wait: bool = True) -> None:
        """Give a checkpoint that is written in the background its name; without ``wait`` if it is complete."""
        if self._sharded is not None:
            self._sharded.finish(wait=wait)

    def pipeline(self, pipe: Trainable, averages: Averages) -> None:
        """Write ``pipe``, with averaged weights if there is an average to draw with."""
        with self.layout.whole(pipe.network, averages.drawn, keep=self.processes.is_main):
            if self.processes.is_main:
                self.folder.save_pipeline(pipe, None if self.layout.sharded else averages.drawn)
        self.processes.barrier()
